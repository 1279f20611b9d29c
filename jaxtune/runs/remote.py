"""A run folder in an object store: the store holds the run, and this machine's disk a working copy of it.

Everything that writes or reads a run folder works on local files: rows are appended, models renamed into place, what a
kill may cut off is written aside. An object store has none of these, so the run works in a folder of the cache, and the
files go to the store at fixed points: before step 0, before each checkpoint counts, and at the end, the seal last. What
a store that Orbax writes to holds below `checkpoints/` is written there by all hosts, and is no part of the copy.
"""

import contextlib
import dataclasses
import os
import pathlib
import posixpath
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxtune.errors import UserError, say
from jaxtune.runs import seal
from jaxtune.runs.history import ORIGIN
from jaxtune.runs.retention import DOCUMENT, CheckpointConfig
from jaxtune.storage import locks
from jaxtune.storage.documents import UnreadableDocument, read_object, write_json
from jaxtune.storage.fingerprints import text_fingerprint
from jaxtune.storage.lease import Lease
from jaxtune.storage.stores import Store, StoreError, default_cache, is_url

LATE = ("summary.json", seal.SEAL)
"""Files that say that a run has ended; they are sent after all others, in this order."""
_INCOMING = "incoming-"
REPORT = "report.html"
FIRST_FILE = "config.json"
"""The file that makes a folder a run folder; the first one that is sent, the last one that is removed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
    """Versions of a file in the store and on the disk when both were last the same."""

    version: str
    """The store's own (see `Store.names`)."""
    size: int
    modified: int
    """Nanoseconds, by the disk."""


class RemoteFolder:
    """A run folder at a URL and its working copy in the cache.

    Files of the working copy are in `folder`. Every method raises `StoreError` where the store cannot be reached.
    """

    def __init__(self, url: str, cache: pathlib.Path, *, reading: bool = False):
        """Nothing is read or made. A copy for `reading` is another than the one that a run on this machine works in.

        Raises UserError for a URL that names no folder, or whose scheme no installed package reaches.
        """
        self.url = url.rstrip("/")
        name = posixpath.basename(self.url)
        if name in ("", ".", "..") or not is_url(f"{posixpath.dirname(self.url)}/"):
            raise UserError(f"{url!r} names no folder of a bucket; give for example gs://bucket/runs/first")
        self.store = Store(self.url, "runs")
        place = cache.absolute() / ("read" if reading else "runs") / text_fingerprint(self.url)[:16]
        self.folder = place / name
        self._record = place / "copies.json"
        self._turn = threading.Lock()  # checkpoints are committed by a thread of their own
        self._lease: Lease | None = None

    # ------------------------------------------------------------------------------------------------ of the run

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes there, with a working copy as the store has it; at the end all is sent.

        Where the block raises, what can be sent is sent, and the block's error stays the one that is raised.
        """
        self.store.check()
        with locks.only_writer(self.folder), Lease(self.store) as self._lease:
            for left in self._record.parent.glob(f"{_INCOMING}*"):  # by a process that was killed
                shutil.rmtree(left)
            self.fetch(lambda name: not name.startswith(f"{seal.MODEL}/"))
            try:
                yield
            except BaseException:
                try:
                    self.send()
                except UserError as error:
                    say(f"warning: not all of {self.url} could be sent: {error}", file=sys.stderr)
                raise
            self.send_at_last()
        self._lease = None

    def clear(self) -> None:
        """Remove the run from the store: first what makes its checkpoints count, last what makes it a run."""
        names = [name for name in self.store.names() if name != locks.NAME]
        documents = [name for name in names if posixpath.basename(name) == DOCUMENT]
        self._remove([*documents, *(set(names) - {*documents, FIRST_FILE}), *({FIRST_FILE} & set(names))])
        self._write_record({})

    def drop(self, top: str) -> None:
        """Remove a folder of the run, here and from the store."""
        self._remove([name for name in self.store.names() if name.startswith(f"{top}/")])
        shutil.rmtree(self.folder / top, ignore_errors=True)
        self._write_record({n: copy for n, copy in self._read_record().items() if not n.startswith(f"{top}/")})

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the block that name the working copy name the URL instead, which is what was given."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace(str(self.folder), self.url)) from error

    def send(self) -> None:
        """Make the store hold the files of the working copy as they are now. May be called by any thread."""
        with self._turn:
            if self._lease is not None:
                self._lease.confirm()
            known, here = self._read_record(), _files_of(self.folder)
            self._remove([name for name in known if name not in here])
            stats = {name: _stat(self.folder / name) for name in here}
            changed = [name for name in here if name not in known or stats[name] != _stat_of(known[name])]
            early = [name for name in changed if name not in (FIRST_FILE, *LATE)]
            self._pipe(name for name in (FIRST_FILE,) if name in changed)
            if early:
                self.store.put({name: self.folder / name for name in early})
            self._pipe(name for name in LATE if name in changed)
            if changed or known.keys() - set(here):
                versions = self.store.names()
                sent = {
                    n: Copy(version=versions[n], size=s, modified=m) for n, (s, m) in stats.items() if n in versions
                }
                self._write_record(sent)

    def send_at_last(self) -> None:
        """Send what is left; a failure says where the whole run is."""
        try:
            self.send()
        except StoreError as error:
            raise UserError(
                f"not all of the run could be sent to {self.url}: {error}\nIt is whole in {self.folder}."
            ) from error

    # ---------------------------------------------------------------------------------------------- of its readers

    def fetch(self, wanted: Callable[[str], bool]) -> None:
        """Make the working copy hold what the store has now of the files that are `wanted`, and nothing else of them.

        A file is brought where the store has another version of it than the one that was brought or sent last, or where
        it was changed on this disk since. Checkpoints are brought by `Bucket.bring`, or read where they are. Raises
        UserError where files are there that are no run's.
        """
        known = self._read_record()
        there = {name: version for name, version in self.store.names().items() if _is_copied(name)}
        if there and FIRST_FILE not in there:  # it may be the folder of a thousand runs
            raise UserError(
                f"{self.url} holds files but no run (no {FIRST_FILE}); give the folder of a run, or a new one"
            )
        stale = [name for name in there if wanted(name) and not self._is_current(name, there[name], known)]
        if stale:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            aside = pathlib.Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._record.parent))
            for name in stale:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
            self.store.ask("get", [self.store.path(n) for n in stale], [str(aside / n) for n in stale])
            for name in stale:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(self.folder / name)
            shutil.rmtree(aside)
        for name in _files_of(self.folder):
            if name not in there or not (wanted(name) or name in known):  # else it would be sent as if it were new
                (self.folder / name).unlink()
        here = [name for name in there if (self.folder / name).is_file()]
        stats = {name: _stat(self.folder / name) for name in here}
        kept = {name: known[name] for name in there if name in known and not wanted(name)}
        brought = {n: Copy(version=there[n], size=s, modified=m) for n, (s, m) in stats.items() if wanted(n)}
        self._write_record({**kept, **brought})
        (self._record.parent / ORIGIN).write_text(self.url, encoding="utf-8")

    def _pipe(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.write(name, (self.folder / name).read_bytes())

    def _is_current(self, name: str, version: str, known: dict[str, Copy]) -> bool:
        file, copy = self.folder / name, known.get(name)
        return copy is not None and copy.version == version and file.is_file() and _stat(file) == _stat_of(copy)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            if self.store.ask("exists", self.store.path(name)):
                self.store.ask("rm_file", self.store.path(name))

    def _read_record(self) -> dict[str, Copy]:
        """What is known of both sides; nothing where the record is missing or damaged: then all is compared anew."""
        try:
            recorded: dict[str, Any] = read_object(self._record)
            return {name: Copy(**copy) for name, copy in recorded.items()}
        except (UnreadableDocument, TypeError):
            return {}

    def _write_record(self, known: dict[str, Copy]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._record, known)


@contextlib.contextmanager
def read_places(places: Sequence[pathlib.Path | str], *, model: bool = False) -> Iterator[list[pathlib.Path]]:
    """Run folders on this disk, to be read in the block: paths themselves, and copies of what is at URLs now.

    `model`: their exported models as well. Errors of the block name the URL. Raises UserError where nothing is there.
    """
    folders = []
    with contextlib.ExitStack() as names:
        for place in places:
            if isinstance(place, str):
                remote = RemoteFolder(place, default_cache(), reading=True)
                remote.fetch(lambda name: model or not name.startswith(f"{seal.MODEL}/"))
                if not _files_of(remote.folder):
                    raise UserError(f"{place}: nothing is there")
                names.enter_context(remote.named())
                place = remote.folder
            folders.append(place)
        yield folders


def send_report(url: str) -> str:
    """Put the page of a run, written into the copy that `read_places` made, beside the run; returns where it is."""
    remote = RemoteFolder(url, default_cache(), reading=True)
    for name in (REPORT, seal.SEAL):  # the seal binds the page
        if (remote.folder / name).is_file():
            remote.store.write(name, (remote.folder / name).read_bytes())
    return f"{remote.url}/{REPORT}"


def how_far(place: pathlib.Path | str, checkpoint: CheckpointConfig) -> list[bool]:
    """Of a run folder or its URL: whether it has a checkpoint to go on from, and whether a run was begun there."""
    if isinstance(place, pathlib.Path):
        return [checkpoint.can_resume(place), (place / FIRST_FILE).exists()]
    return [checkpoint.kept_at(place).in_use(), Store(place, "runs").read(FIRST_FILE) is not None]


def _is_copied(name: str) -> bool:
    """Whether a file of a run folder is part of the copy: no hidden one, and nothing of the checkpoints."""
    return not name.startswith(f"{seal.CHECKPOINTS}/") and not any(part.startswith(".") for part in name.split("/"))


def _files_of(folder: pathlib.Path) -> list[str]:
    """Names of the files of a copy. Folders that are none of it are not entered: others write and rename them."""
    names = []
    for place, folders, files in os.walk(folder, onerror=_unless_gone):
        above = pathlib.Path(place).relative_to(folder)
        folders[:] = [name for name in folders if _is_copied(f"{(above / name).as_posix()}/")]
        names += [(above / name).as_posix() for name in files]
    return sorted(filter(_is_copied, names))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _stat(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _stat_of(copy: Copy) -> tuple[int, int]:
    return copy.size, copy.modified
