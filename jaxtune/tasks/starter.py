"""`jaxtune init`: a folder with a config, two small data files and a page that says how to go on."""

import json
import pathlib

from jaxtune.batch import Example
from jaxtune.errors import UserError
from jaxtune.tasks.builtin import TASKS

ASSETS = pathlib.Path(__file__).parent.parent / "assets" / "init"
RECORDS = {"qa": 240, "math": 60}
"""Conversations taken from built-in tasks: unequal, as in practice."""


def write_project(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the files of a first experiment; returns them. Raises UserError where one of them is there."""
    contents = {
        folder / "config.py": (ASSETS / "config.py.txt").read_text(encoding="utf-8"),
        folder / "README.md": (ASSETS / "README.md.txt").read_text(encoding="utf-8"),
        **{folder / "data" / f"{name}.jsonl": conversations(name, count) for name, count in RECORDS.items()},
    }
    there = [str(path) for path in contents if path.exists()]
    if there:
        raise UserError(f"jaxtune init replaces no file, and {', '.join(there)} is there; name another folder")
    try:
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; name another folder") from error
    return list(contents)


def conversations(name: str, count: int) -> str:
    """JSONL: the first training conversations of a built-in task."""
    lines = []
    for number in range(count):
        conversation = TASKS[name].read("train", number)
        assert not isinstance(conversation, Example)
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        lines.append(json.dumps({"id": f"{name}-{number}", "messages": messages}, ensure_ascii=False))
    return "\n".join(lines) + "\n"
