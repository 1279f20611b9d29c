"""Files that must not change while they are in use."""

import functools
import os
import stat
from pathlib import Path

from jaxtune.errors import UserError
from jaxtune.storage.notes import noted_fingerprint
from jaxtune.storage.userfiles import looked_for
from jaxtune.tasks.problems import Problem, RecordError


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, _state: tuple[int, int, int]) -> str:
    return noted_fingerprint(path)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""By file type: what stands at a path, other than a regular file."""


def unreadable(path: Path) -> str | None:
    """Why a path cannot be read as a file; None if it can. Opens nothing: opening a named pipe waits for a writer."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL in the name
        return f"no such file ({getattr(error, 'strerror', None) or error})"
    if kind != stat.S_IFREG:
        return f"is {_KINDS.get(kind, 'no regular file')}, not a file"
    return None if os.access(path, os.R_OK) else "no permission to read it"


class PinnedFile:
    """A file as it was when it was opened: size, time and inode, and the sha256 of its bytes once that is known."""

    def __init__(self, path: Path, *, shown_as: str):
        """Raises `RecordError` when there is no such file; messages call it `shown_as`."""
        self.path = path
        self.name = shown_as
        if why := unreadable(path):
            looked = looked_for(shown_as) if why.startswith("no such file") else ""
            raise RecordError([Problem(rule="unreadable-file", message=why + looked, file=shown_as)])
        self._state = self._stat()
        self._sha256: str | None = None

    def _stat(self) -> tuple[int, int, int]:
        info = self.path.stat()
        return info.st_size, info.st_mtime_ns, info.st_ino

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self._state[0]

    @property
    def sha256(self) -> str:
        """sha256 of the bytes, in hexadecimal; files are read once per process."""
        if self._sha256 is None:
            self._sha256 = _sha256(self.path, self._state)
        return self._sha256

    def check(self) -> None:
        """Raises `UserError` when the file holds other bytes than before; a new time alone is no change."""
        if unreadable(self.path):
            raise UserError(f"{self.name} was removed while it was in use; put it back, or start again without it")
        state = self._stat()
        if state == self._state:
            return
        if self._sha256 is None or _sha256(self.path, state) != self._sha256:
            raise UserError(
                f"{self.name} changed while it was in use; put the old file back, or start a new run "
                "(a plan belongs to the data that it was made from)"
            )
        self._state = state
