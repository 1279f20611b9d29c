"""Notes of fingerprints in the cache, so that a restart need not read all data and weights again.

A note holds the size, times and inode of a file when its bytes were read. It counts as long as the file still has them
and was last changed well before it was read: within the grain of a file system's clock a file may change and keep its
time. The time of the last change of status, which no program can set, is among them.
"""

import contextlib
import contextvars
import os
import pathlib
import time
from collections.abc import Iterator

from jaxtune.storage.documents import UnreadableDocument, read_object, write_json
from jaxtune.storage.fingerprints import file_fingerprint, text_fingerprint
from jaxtune.storage.stores import default_cache

SMALLEST = 1 << 20
"""Bytes below which reading a file costs no more than looking up its note."""
GRAIN = 2.0
"""Seconds within which two changes of a file may leave the same time, on the coarsest file systems."""
_ANEW = contextvars.ContextVar("anew", default=False)


@contextlib.contextmanager
def reading_anew() -> Iterator[None]:
    """Inside the block no note counts: every file is read. For commands that ask whether a disk holds what it held."""
    token = _ANEW.set(True)
    try:
        yield
    finally:
        _ANEW.reset(token)


def noted_fingerprint(path: str | os.PathLike[str]) -> str:
    """Fingerprint of a file's content, of a note where it counts; else the file is read, and a note is made."""
    file = pathlib.Path(path)
    before = _state(file)
    if before["size"] < SMALLEST:
        return file_fingerprint(file)
    note = default_cache() / "digests" / f"{text_fingerprint(str(file.absolute()))[:32]}.json"
    if not _ANEW.get() and (known := _counts(note, before)) is not None:
        return known
    begun = time.time()
    digest = file_fingerprint(file)
    with contextlib.suppress(OSError):  # without its note, the file is read again the next time, and nothing is lost
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {**before, "read": begun, "sha256": digest})
    return digest


def _state(file: pathlib.Path) -> dict[str, int]:
    info = file.stat()
    return {"size": info.st_size, "modified": info.st_mtime_ns, "changed": info.st_ctime_ns, "inode": info.st_ino}


def _counts(note: pathlib.Path, state: dict[str, int]) -> str | None:
    """The fingerprint of a note, if it speaks of the file as it is now."""
    try:
        said = read_object(note)
    except UnreadableDocument:
        return None
    digest, read = said.get("sha256"), said.get("read")
    if not isinstance(digest, str) or not isinstance(read, float) or {**state, "read": read, "sha256": digest} != said:
        return None
    return digest if max(state["modified"], state["changed"]) / 1e9 < read - GRAIN else None
