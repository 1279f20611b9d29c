"""SHA-256 fingerprints of texts, JSON values, files, folders and arrays, and a short hash for draws.

Fingerprints are hexadecimal. None depends on the machine, the order of JSON keys or where a file lies.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

_CHUNK = 1 << 22


def bytes_fingerprint(content: bytes) -> str:
    """Of bytes."""
    return hashlib.sha256(content).hexdigest()


def text_fingerprint(text: str) -> str:
    """Of a text, e.g. a chat template, as UTF-8."""
    return bytes_fingerprint(text.encode())


def texts_fingerprint(texts: Iterable[str]) -> str:
    """Of several texts in order; where one ends and the next begins counts."""
    return text_fingerprint("\0".join(texts))


def json_fingerprint(value: Any) -> str:
    """Of a JSON value, whatever the order of its keys."""
    return text_fingerprint(json.dumps(value, sort_keys=True, separators=(",", ":")))


def array_fingerprint(*arrays: np.ndarray) -> str:
    """Of arrays: their types, shapes and bytes, in order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Of a file's content."""
    return sized_fingerprint(epath.Path(path))[1]


def sized_fingerprint(path: epath.Path) -> tuple[int, str]:
    """(bytes, fingerprint) of a file's content, read once and in parts."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return size, sha.hexdigest()


def files_below(folder: epath.Path, leave_out: Collection[str] = ()) -> list[str]:
    """Names of all files below `folder`, relative to it and sorted; `leave_out` are names at its top level.

    Pipes and devices are no files, whose reading would not end; a link that leads back to a folder above it is none.
    """
    remote = "://" in os.fspath(folder)

    def walk(path: epath.Path, prefix: str, above: tuple[str, ...]) -> list[str]:
        here = os.fspath(path) if remote else os.path.realpath(path)
        if here in above:
            return []
        names = []
        for child in path.iterdir():
            name = f"{prefix}{child.name}"
            if child.is_dir():
                names += walk(child, f"{name}/", (*above, here))
            elif remote or os.path.isfile(child):  # epath takes whatever is no folder for a file
                names.append(name)
        return names

    return sorted(set(walk(folder, "", ())) - set(leave_out))


def file_digests(folder: epath.Path, names: Sequence[str]) -> list[tuple[int, str]]:
    """(bytes, fingerprint) of each file; hashing releases the interpreter lock, so threads share the work."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: sized_fingerprint(folder / name), names))


def hash64(data: bytes) -> int:
    """An unsigned 64-bit number that looks random, the same on every machine (BLAKE2b); for draws, not for proofs."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
