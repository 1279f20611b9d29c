"""Faults of disks and file systems in words: full, read-only, forbidden, out of quota, too large.

They are neither the user's input nor a bug: the command line prints one line and exits with `EXIT_STORAGE`. What was
saved before stays good, because nothing is written in place.
"""

import errno
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

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


def is_unforeseen(record: logging.LogRecord) -> bool:
    """A filter for loggers of libraries: without faults of the disk, which they raise as well.

    The one line about the fault would stand behind their traceback.
    """
    error = record.exc_info[1] if record.exc_info else None
    return error is None or describe_fault(error) is None


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
