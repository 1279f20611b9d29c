"""SHA-256 of the files below a folder, and JSON documents that carry their own."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from typing import Any

from etils import epath

_CHUNK = 1 << 22


def files_below(folder: epath.Path, leave_out: Collection[str] = ()) -> list[str]:
    """Names of all files below `folder`, relative to it and sorted; `leave_out` are names at its top level."""

    def walk(path: epath.Path, prefix: str) -> list[str]:
        names = []
        for child in path.iterdir():
            names += walk(child, f"{prefix}{child.name}/") if child.is_dir() else [f"{prefix}{child.name}"]
        return names

    return sorted(set(walk(folder, "")) - set(leave_out))


def file_digests(folder: epath.Path, names: Sequence[str]) -> list[tuple[int, str]]:
    """(bytes, SHA-256) of each file; hashing releases the interpreter lock, so threads share the work."""

    def digest(name: str) -> tuple[int, str]:
        sha, size = hashlib.sha256(), 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                size += len(chunk)
        return size, sha.hexdigest()

    with concurrent.futures.ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, names))


def write_document(path: epath.Path, document: dict[str, Any]) -> None:
    """Write a JSON document with its own digest, as a whole or not at all."""
    unfinished = path.parent / f".{path.name}"
    unfinished.write_text(json.dumps(document | {"digest": _digest(document)}))
    unfinished.replace(path)


def read_document(path: epath.Path) -> dict[str, Any] | str:
    """What `write_document` wrote, or what is wrong with it."""
    if not path.exists():
        return f"{path.name}: missing"
    try:
        document = json.loads(path.read_bytes())
        recorded = document.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, no digest, no object
        return f"{path.name}: not readable"
    return document if recorded == _digest(document) else f"{path.name}: content changed"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
