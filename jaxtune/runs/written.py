"""Digests of a checkpoint's files, each made by the process that wrote the file, before the checkpoint is committed.

Orbax shows nobody the bytes on their way to the disk. So each process reads back what it wrote itself, which its
machine still holds in memory where the disk is local: when all its arrays are written, before it says so to the others.
It leaves the digests beside the files. Process 0, which commits, collects them and reads only what no process answers
for: the index that Orbax makes of all shares, and metadata.
"""

import re
import threading
from collections.abc import Callable

from etils import epath

from jaxtune.runs.documents import FileDigest
from jaxtune.storage.documents import read_sealed, write_sealed
from jaxtune.storage.fingerprints import file_digests, files_below

_NOTE = re.compile(r"digests\.(\d+)\.json")
_WRITTEN, _COMMITTED, _ENDED = "async_write_complete", "async_commit_complete", "set_value"
"""Parts of the names of Orbax's barriers: when the arrays of a process are written, when process 0 has committed, and
when a save has ended or failed."""


def own_files(folder: epath.Path, process: int) -> dict[str, str]:
    """Files that one process wrote into a checkpoint, those of its share of the arrays: name in the end -> name now.

    No folder of another process is listed, which takes time on an object store.
    """
    share = re.compile(rf"ocdbt\.process_(replica_)?{process}")
    names = {}
    for item in sorted(path for path in folder.iterdir() if path.is_dir()):
        final = item.name.partition(".")[0]  # `params.orbax-checkpoint-tmp` until it is whole
        for child in sorted(path for path in item.iterdir() if share.fullmatch(path.name)):
            below = [f"{child.name}/{name}" for name in files_below(child)]
            names |= {f"{final}/{name}": f"{item.name}/{name}" for name in below}
    return names


def note_own(folder: epath.Path, process: int) -> None:
    """Leave the digests of a process's files in the checkpoint's folder, for `all_digests`."""
    names = own_files(folder, process)
    found = digests_of(folder, list(names.values()))
    write_sealed(folder / f"digests.{process}.json", {"files": dict(zip(names, found.values(), strict=True))})


def all_digests(folder: epath.Path, leave_out: tuple[str, ...]) -> dict[str, FileDigest]:
    """Digests of all files: by what processes left, which is removed, and of all others by reading them.

    Raises FileNotFoundError for a file that a process wrote and that is not there, and UnreadableDocument.
    """
    notes = [path for path in folder.iterdir() if _NOTE.fullmatch(path.name)]
    noted = {name: digest for path in notes for name, digest in read_sealed(path)["files"].items()}
    for path in notes:
        path.unlink()
    names = files_below(folder, leave_out)
    if lost := sorted(set(noted) - set(names)):
        raise FileNotFoundError(f"{folder / lost[0]} was written and is not there")
    return dict(sorted((noted | digests_of(folder, [name for name in names if name not in noted])).items()))


def digests_of(folder: epath.Path, names: list[str]) -> dict[str, FileDigest]:
    """Size and SHA-256 of files, by reading them."""
    digests = zip(names, file_digests(folder, names), strict=True)
    return {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digests}


class Barrier:
    """Barrier of Orbax's background threads: digests are noted before the one that follows the arrays of this process.

    A process whose save failed passes the barriers at which Orbax would wait for the others, who wait for its arrays:
    so the error is raised in this process, which ends the job, instead of all of them standing still for an hour.
    """

    def __init__(self, wait: Callable[..., None], note: Callable[[], None]):
        self._wait, self._note, self._committed = wait, note, True

    def begin(self) -> None:
        """A save begins."""
        self._committed = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Wait for all processes, by Orbax's name of the place."""
        background = threading.current_thread() is not threading.main_thread()
        if _ENDED in key and background and not self._committed:
            return
        if _WRITTEN in key:
            self._note()
        self._wait(key=key, timeout_ms=timeout_ms)
        self._committed = self._committed or _COMMITTED in key
