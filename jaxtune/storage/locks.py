"""A lock that makes one process the only writer of a folder, released by the process's death.

The lock is `flock` on the file `.writer` in the folder, which says who holds it. Reading the folder needs no lock.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import stat
import warnings
from collections.abc import Iterator

from jaxtune.errors import UserError
from jaxtune.storage.documents import UnreadableDocument, json_line, made_folder, number, read_object

NAME = ".writer"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a link, a folder, a socket


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """The process that holds a folder's lock."""

    host: str
    process: int
    since: str
    """Local date and time."""


class FolderInUse(UserError):
    """A folder that another process is writing; the message says which one."""


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, called: str | None = None) -> Iterator[None]:
    """Be the folder's only writer inside the block; the folder is made, and removed where it is still empty then.

    `called`: what an error calls it, such as the URL of which it is a working copy; None: its path.

    Raises FolderInUse, and leaves everything as it is, where another process (or another block) writes there; UserError
    where no folder can be (below a file, in a place that is no disk, by a name that no file can have), and where the
    lock file is a link, a pipe or anything else that is no file.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    made_folder(folder)
    handle = _acquire(folder, called or str(folder))
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for path in missing:
                path.rmdir()


def writer_of(folder: pathlib.Path) -> Writer | None:
    """The process that says in the folder's lock file that it writes there; None where the file names none."""
    try:
        said = read_object(folder / NAME)
        return Writer(host=str(said["host"]), process=int(number(said["process"])), since=str(said["since"]))
    except (UnreadableDocument, KeyError, ValueError, TypeError):  # it is being written just now
        return None


def _acquire(folder: pathlib.Path, called: str) -> int:
    """An open, locked and signed lock file."""
    while True:
        handle = _opened(folder / NAME)
        try:
            _lock(handle, folder, called)
            if _is_still(handle, folder / NAME):
                os.ftruncate(handle, 0)
                now = datetime.datetime.now().isoformat(" ", "seconds")
                os.pwrite(handle, json_line(Writer(host=socket.gethostname(), process=os.getpid(), since=now)), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder removed it between our opening and our locking


def _opened(path: pathlib.Path) -> int:
    """The lock file, open. In a stranger's folder it may be a link to a file that must stay as it is, or a pipe."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise UserError(f"{path} is no plain file; remove it, as it stands where the folder's lock belongs") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is no plain file; remove it, as it stands where the folder's lock belongs")
    return handle


def _lock(handle: int, folder: pathlib.Path, called: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUse(_in_words(called, writer_of(folder))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        message = f"the file system of {folder} has no locks; start no second run in this folder while this one goes on"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _is_still(handle: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _in_words(called: str, writer: Writer | None) -> str:
    who = f"process {writer.process} on {writer.host}, since {writer.since}" if writer else "another process"
    return f"{called} is being written by {who}; wait for its end or stop it, or choose another folder"
