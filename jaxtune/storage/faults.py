"""Faults of disks and file systems in words: full, read-only, forbidden, out of quota, too large.

They are neither the user's input nor a bug: the command line prints one line and exits with `EXIT_STORAGE`. What was
saved before stays good, because nothing is written in place.
"""

import contextlib
import errno
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from jaxtune.errors import say
from jaxtune.storage.userfiles import blame

EXIT_STORAGE = 74
"""Exit code of a fault of the disk (EX_IOERR of sysexits.h). Starting again at once does not help: make room first."""

MAKE_ROOM = "make room there, then start again with --resume; everything saved so far is good"
FAULTS = {
    errno.ENOSPC: ("no space is left on the device", MAKE_ROOM),
    errno.EDQUOT: ("the quota is used up", MAKE_ROOM),
    errno.EFBIG: ("a file may not grow that large here", "raise the limit (ulimit -f), then start again with --resume"),
    errno.EROFS: ("the file system is read-only", "give a folder that can be written"),
    errno.EACCES: ("permission denied", "give a folder that you may write, or change its permissions"),
    errno.EPERM: ("the operation is not permitted", "give a folder that you may write, or change its permissions"),
    errno.EIO: ("the device reports an error", "look at the disk, then start again with --resume"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter path"),
    errno.ELOOP: ("symbolic links lead in a circle", "give the folder itself"),
    errno.ESTALE: ("the network file system lost the file", "mount it again, then start again with --resume"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
_TEXTS = {os.strerror(code).lower(): code for code in FAULTS}
_PATH = re.compile(r"""["'](/[^"']+)["']""")


def describe_fault(error: BaseException) -> str | None:
    """The fault of the disk behind an exception: what, where, how much room there is, what to do; None for others.

    Looks through the causes of `error`, since libraries wrap what the system said, some of them as text alone.
    """
    for cause in _causes(error):
        code = _code(cause)
        if code is None:
            continue
        what, remedy = FAULTS[code]
        path = _place(cause)
        return f"{path + ': ' if path else ''}{what}{_room(path) if remedy is MAKE_ROOM else ''}; {remedy}"
    return None


def foreseen(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message for what is no bug of this package: an error of the user's file, a fault of the disk.

    A path that no disk could hold is the user's input.
    """
    if (message := blame(error)) is not None:
        return 1, message
    fault = describe_fault(error)
    if fault is None:
        return None
    given = any(_code(cause) in (errno.ENAMETOOLONG, errno.ELOOP) for cause in _causes(error))
    return 1 if given else EXIT_STORAGE, fault


@contextlib.contextmanager
def faults_at(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context in which a fault of the disk that names no file is raised as an OSError at `path`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        causes = list(_causes(error))
        code = next((code for cause in causes if (code := _code(cause)) is not None), None)
        if code is None or any(_code(cause) is not None and _place(cause) for cause in causes):
            raise
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


class FaultsOfThreads:
    """Context manager: tracebacks of faults of the disk in threads are kept back until the end of the block.

    A save that fails in a thread of a library is raised in the main thread as well, which tells it in one line. Python
    and the library show it at once and as a traceback; so do threads whose writes are still under way then, and which
    find the event loop of the save closed. What was kept is shown at the end, unless `told` was called: then the line
    stands for all of it. Every other exception of a thread is shown at once, as ever.
    """

    LOGGERS = ("absl", "asyncio")
    """Loggers that show exceptions of saving threads."""
    MOST = 20
    """Exceptions kept; the same one can come from hundreds of writes."""

    def __init__(self):
        self._kept: list[str] = []
        self._told = False
        self._before: tuple[Any, Any] = sys.unraisablehook, threading.excepthook

    def __enter__(self) -> "FaultsOfThreads":
        self._before = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = self._unraisable, self._of_thread
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self._of_log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._told:
            return  # writes may still be under way, and show their ends until the interpreter has gone
        sys.unraisablehook, threading.excepthook = self._before
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self._of_log)
        for text in self._kept:
            say(text.rstrip(), file=sys.stderr)

    def told(self) -> None:
        """The main thread tells the fault; what threads meet of it is left out from now on, to the process's end."""
        self._told = True

    def _unraisable(self, unraisable: Any) -> None:
        if not self._keep(unraisable.exc_value):
            self._before[0](unraisable)

    def _of_thread(self, arguments: Any) -> None:
        if not self._keep(arguments.exc_value):
            self._before[1](arguments)

    def _of_log(self, record: logging.LogRecord) -> bool:
        return not self._keep(record.exc_info[1] if record.exc_info else None)

    def _keep(self, error: BaseException | None) -> bool:
        """Keep a fault of the disk, or what follows from one, as text; whether it was one."""
        after = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if error is None or not (after or describe_fault(error) is not None):
            return False
        if len(self._kept) < self.MOST:
            self._kept.append("".join(traceback.format_exception(error)))
        return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it was raised from, and the members of groups, each once."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in FAULTS else None
    if isinstance(error, (OSError, ValueError, RuntimeError)):  # tensorstore says it in words
        text = str(error).lower()
        return next((code for words, code in _TEXTS.items() if words in text), None)
    return None


def _place(error: BaseException) -> str | None:
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        return os.fsdecode(error.filename)
    found = _PATH.search(str(error))
    return found[1] if found else None


def _room(path: str | None) -> str:
    """` (3.2 MB are free)` for a path whose folder exists."""
    folder = next((one for one in pathlib.Path(path).parents if one.is_dir()), None) if path else None
    return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free)" if folder else ""
