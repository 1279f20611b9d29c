"""What hostile inputs are made of: an attack, and small sound records to spoil."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
ANSWER: Json = {"role": "assistant", "content": "b"}
WEIGHTS = "model.safetensors"
"""Name of the file of weights in a model folder."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """An input, and the command that reads it."""

    kind: str
    name: str
    command: tuple[object, ...]
    accepted: bool = False
    """A sound input, which must be taken."""
    either: bool = False
    """Whether it is sound is not the point: taken or refused, but in words and in time."""
    untouched: pathlib.Path | None = None
    """A file that must stay as it is."""


def chat(number: int, **fields: Any) -> Json:
    turns = [("user", f"say {number}"), ("assistant", str(number))]
    return {"id": f"r{number}", "messages": [{"role": role, "content": text} for role, text in turns], **fields}


def lines(*records: Any) -> bytes:
    return b"".join(record if isinstance(record, bytes) else json.dumps(record).encode() + b"\n" for record in records)


def field(file: str, key: str, text: str) -> Callable[[pathlib.Path], object]:
    """Changes a JSON file of a folder: the value of `key` becomes `text` as it is, which JSON need not allow."""

    def change(folder: pathlib.Path) -> None:
        values = json.loads((folder / file).read_text())
        values[key] = "@"
        (folder / file).write_text(json.dumps(values).replace('"@"', text))

    return change
