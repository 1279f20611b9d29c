"""Files that must not change while they are in use."""

import functools
import hashlib
import os
from pathlib import Path

from jaxtune.errors import UserError
from jaxtune.tasks.problems import Problem, RecordError


def cache_folder() -> Path:
    """`$JAXTUNE_CACHE`, else `.cache/jaxtune` in the working folder."""
    return Path(os.environ.get("JAXTUNE_CACHE") or Path(".cache") / "jaxtune")


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, _state: tuple[int, int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PinnedFile:
    """A file as it was when it was opened: size, time and inode, and the sha256 of its bytes once that is known."""

    def __init__(self, path: Path, *, shown_as: str):
        """Raises `RecordError` when there is no such file; messages call it `shown_as`."""
        self.path = path
        self.name = shown_as
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise RecordError([Problem(rule="unreadable-file", message=what, file=shown_as)])
        if not os.access(path, os.R_OK):
            raise RecordError([Problem(rule="unreadable-file", message="no permission to read it", file=shown_as)])
        self._state = self._stat()
        self._sha256: str | None = None

    def _stat(self) -> tuple[int, int, int]:
        info = self.path.stat()
        return info.st_size, info.st_mtime_ns, info.st_ino

    @property
    def sha256(self) -> str:
        """sha256 of the bytes, in hexadecimal; files are read once per process."""
        if self._sha256 is None:
            self._sha256 = _sha256(self.path, self._state)
        return self._sha256

    def check(self) -> None:
        """Raises `UserError` when the file holds other bytes than before; a new time alone is no change."""
        if not self.path.is_file():
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
