"""A run or sweep folder in an object store: the store holds it, and this machine's disk a working copy of it.

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
import re
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
from jaxtune.runs.sweeps import RECORD
from jaxtune.storage import locks
from jaxtune.storage.documents import UnreadableDocument, read_object, write_json
from jaxtune.storage.fingerprints import text_fingerprint
from jaxtune.storage.lease import Lease
from jaxtune.storage.stores import Store, StoreError, default_cache, is_url

LATE = ("summary.json", seal.SEAL)
"""Files that say that a run has ended; they are sent after all others, in this order."""
_INCOMING = "incoming-"
FETCH_TRIES = 5
"""Listings after which files that are gone when they are copied are an error."""
REPORT = "report.html"
FIRST_FILE = "config.json"
"""The file that makes a folder a run folder; the first one that is sent, the last one that is removed."""
KINDS = {FIRST_FILE: "run", RECORD: "sweep"}
"""Kind of a folder by the file that makes it one."""
_CHECKPOINTS = re.compile(rf"(runs/[^/]+/)?{seal.CHECKPOINTS}/")
_MODEL = re.compile(rf"(runs/[^/]+/)?{seal.MODEL}/")
"""Beginnings of names in the folder of a run, or of a run in the folder of a sweep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
    """Versions of a file in the store and on the disk when both were last the same."""

    version: str
    """The store's own (see `Store.names`)."""
    size: int
    modified: int
    """Nanoseconds, by the disk."""


class RemoteFolder:
    """A run or sweep folder at a URL and its working copy in the cache.

    Files of the working copy are in `folder`. Every method raises `StoreError` where the store cannot be reached.
    """

    def __init__(self, url: str, cache: pathlib.Path, *, reading: bool = False, mark: str = FIRST_FILE):
        """Nothing is read or made. A copy for `reading` is another than the one that a run on this machine works in.

        `mark` is the file that makes it a folder of its kind; one for `reading` may be of either kind.

        Raises UserError for a URL that names no folder, or whose scheme no installed package reaches.
        """
        self.url = url.rstrip("/")
        name = posixpath.basename(self.url)
        if name in ("", ".", "..") or not is_url(f"{posixpath.dirname(self.url)}/"):
            raise UserError(f"{url!r} names no folder of a bucket; give for example gs://bucket/runs/first")
        self.store = Store(self.url, "runs")
        place = cache.absolute() / ("read" if reading else "runs") / text_fingerprint(self.url)[:16]
        self.folder = place / name
        self._cache, self._mark, self._marks = cache, mark, tuple(KINDS) if reading else (mark,)
        self._record = place / "copies.json"
        self._turn = threading.Lock()  # checkpoints are committed by a thread of their own
        self._lease: Lease | None = None

    def run(self, name: str) -> "RemoteFolder":
        """The folder of a run in this folder of a sweep."""
        return RemoteFolder(f"{self.url}/runs/{name}", self._cache)

    def sweep_name(self) -> str | None:
        """Name of the sweep whose folder holds this run's; None where none does."""
        above = posixpath.dirname(posixpath.dirname(self.url))
        return posixpath.basename(above) if is_url(above) and Store(above, "runs").version(RECORD) else None

    # ------------------------------------------------------------------------------------------------ of the run

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes there, with a working copy as the store has it; at the end all is sent.

        Where the block raises, what can be sent is sent, and the block's error stays the one that is raised.
        """
        self.store.check()
        with locks.only_writer(self.folder, self.url), Lease(self.store) as self._lease:
            for left in self._record.parent.glob(f"{_INCOMING}*"):  # by a process that was killed
                shutil.rmtree(left)
            self.fetch(lambda name: not _MODEL.match(name))
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
        """Remove what is in the store: first what makes checkpoints count, last what makes it a run or a sweep."""
        names = [name for name in self.store.names() if name != locks.NAME]
        documents = [name for name in names if posixpath.basename(name) == DOCUMENT]
        self._remove([*documents, *(set(names) - {*documents, self._mark}), *({self._mark} & set(names))])
        self._write_record({})

    def forget(self) -> None:
        """Remove the working copy from this disk, unless another process works in it; the store has all of it."""
        with contextlib.suppress(locks.FolderInUse), locks.only_writer(self.folder):
            shutil.rmtree(self._record.parent)

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
            if str(self.folder) not in str(error):
                raise
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
            early = [name for name in changed if name not in (self._mark, *LATE)]
            self._pipe(name for name in (self._mark,) if name in changed)
            if early:
                self.store.put({name: self.folder / name for name in early})
            self._pipe(name for name in LATE if name in changed)
            if changed or known.keys() - set(here):
                versions = self.store.names()
                kept = {name: known[name] for name in here if name not in changed}  # others may have sent newer ones
                sent = {name: stats[name] for name in changed if name in versions}
                self._write_record(
                    kept | {name: Copy(version=versions[name], size=s, modified=m) for name, (s, m) in sent.items()}
                )

    def send_changed(self, names: Iterable[str]) -> None:
        """Send those of some files of a copy for reading that were written since it was brought, in this order."""
        known = self._read_record()
        here = [name for name in names if (self.folder / name).is_file()]
        self._pipe(name for name in here if name not in known or _stat(self.folder / name) != _stat_of(known[name]))

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
        for tries in range(FETCH_TRIES, 0, -1):
            try:
                self._fetch(wanted)
                return
            except StoreError as error:  # in a sweep's folder other hosts remove files between a listing and a copy
                if tries == 1 or not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def _fetch(self, wanted: Callable[[str], bool]) -> None:
        known = self._read_record()
        there = {name: version for name, version in self.store.names().items() if _is_copied(name)}
        if there and not any(mark in there for mark in self._marks):  # it may be the folder of a thousand runs
            kinds = " or ".join(KINDS[mark] for mark in self._marks)
            raise UserError(
                f"{self.url} holds files but no {kinds} (no {' and no '.join(self._marks)}); give the folder of a "
                f"{kinds}, or a new one"
            )
        stale = [name for name in there if wanted(name) and not self._is_current(name, there[name], known)]
        if stale:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_INCOMING, dir=self._record.parent) as made:
                aside = pathlib.Path(made)
                for name in stale:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                self.store.ask("get", [self.store.path(n) for n in stale], [str(aside / n) for n in stale])
                for name in stale:
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).replace(self.folder / name)
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
def read_places(
    places: Sequence[pathlib.Path | str], *, model: bool = False, missing: bool = False
) -> Iterator[list[pathlib.Path]]:
    """Run and sweep folders on this disk, to be read in the block: paths, and copies of what is at URLs now.

    `model`: their exported models as well. Errors of the block name the URL. Raises UserError where nothing is at a
    URL, unless it may be `missing`.
    """
    folders = []
    with contextlib.ExitStack() as names:
        for place in places:
            if isinstance(place, str):
                remote = RemoteFolder(place, default_cache(), reading=True)
                remote.fetch(lambda name: model or not _MODEL.match(name))
                if not missing and not _files_of(remote.folder):
                    raise UserError(f"{place}: nothing is there")
                names.enter_context(remote.named())
                place = remote.folder
            folders.append(place)
        yield folders


PAGES = (REPORT, "heatmap.png", "transfer.png", "recommendation.json", "mixture_law.json", seal.SEAL)
"""Files that commands write into the folders that they read; the seal binds the page of a run."""


def send_pages(url: str) -> str:
    """Put what a command wrote into the copy that `read_places` made beside what it read; returns the page's place."""
    remote = RemoteFolder(url, default_cache(), reading=True)
    remote.send_changed(PAGES)
    return f"{remote.url}/{REPORT}"


def folder_of(place: pathlib.Path | RemoteFolder) -> pathlib.Path:
    """The folder on this disk of what may lie in a bucket: itself, or its working copy."""
    return place.folder if isinstance(place, RemoteFolder) else place


def how_far(place: pathlib.Path | str, checkpoint: CheckpointConfig) -> list[bool]:
    """Of a run folder or its URL: whether it has a checkpoint to go on from, and whether a run was begun there."""
    if isinstance(place, pathlib.Path):
        return [checkpoint.can_resume(place), (place / FIRST_FILE).exists()]
    return [checkpoint.kept_at(place).in_use(), Store(place, "runs").read(FIRST_FILE) is not None]


def _is_copied(name: str) -> bool:
    """Whether a file of a run folder is part of the copy: no hidden one, and nothing of the checkpoints."""
    return not _CHECKPOINTS.match(name) and not any(part.startswith(".") for part in name.split("/"))


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
