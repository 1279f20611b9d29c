"""The files that Python code writes, for tests that nothing is written where it must not be."""

import os
import sys


class Writes:
    """Files and folders that Python code writes while it is open, by the interpreter's audit events."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.open = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.open:
            return
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.seen.add(os.path.abspath(path))
        elif event in ("os.mkdir", "os.rename", "shutil.copyfile", "os.symlink"):
            self.seen.add(os.path.abspath(arguments[0 if event == "os.mkdir" else 1]))

    def outside(self, *allowed: object) -> set[str]:
        """What was written neither below one of some folders nor to devices nor as compiled Python."""
        below = (*map(str, allowed), "/dev/")
        return {path for path in self.seen if not path.startswith(below) and "__pycache__" not in path}
