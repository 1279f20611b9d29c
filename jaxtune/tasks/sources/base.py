"""The interface of every source of records, and the base of those that read files."""

import abc
import copy
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

from jaxtune.storage.fetching import fetched_file
from jaxtune.storage.stores import StoreError, default_cache, is_url, refuse_unserved
from jaxtune.storage.userfiles import locate
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.pinned import PinnedFile


class RecordSource(abc.ABC):
    """Records by number. Sources are opened at first use, and pickle: a worker process reopens the file."""

    name: str
    """File or data set, as messages name it."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Record i; raises `RecordError` with the place when it cannot be read."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the content, in hexadecimal."""

    @property
    @abc.abstractmethod
    def origins(self) -> frozenset[str]:
        """The files or objects that the records come from; two sources that share one share records."""

    @abc.abstractmethod
    def check_unchanged(self) -> None:
        """Raises `UserError` when the content is no longer what was opened."""

    def line(self, i: SupportsIndex) -> int:
        """1-based line or row of record i in its file."""
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        """The file that record i is in."""
        return self.name

    def where(self, i: SupportsIndex) -> str:
        """file:line of record i."""
        return f"{self.file(i)}:{self.line(i)}"

    def error(self, i: SupportsIndex, *findings: tuple[str, str]) -> RecordError:
        """(rule, message) pairs about record i as an error that names its place."""
        return RecordError(
            [Problem(rule=rule, message=text, file=self.file(i), line=self.line(i)) for rule, text in findings]
        )

    def cached_in(self, folder: Path) -> "RecordSource":
        """The same records, with the copies that reading needs kept in `folder`; most sources need none."""
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class PinnedSource(RecordSource):
    """Records of files that must not change while they are in use; a subclass opens the files and reads records."""

    handles: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold open files and what was read from them: left behind when the source is pickled."""

    @functools.cached_property
    @abc.abstractmethod
    def pins(self) -> Sequence[PinnedFile]:
        """The files that hold the records, in order."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the file, or over the sha256 of each of several."""
        digests = [pin.sha256 for pin in self.pins]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(os.path.realpath(pin.path) for pin in self.pins)

    def check_unchanged(self) -> None:
        for pin in self.pins:
            pin.check()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self.handles}


class FileSource(PinnedSource):
    """Records of one file, on this disk or at a URL such as gs://bucket/chats.jsonl, of which the cache has a copy."""

    from_cache: ClassVar[tuple[str, ...]] = ("path", "pins")
    """Attributes computed at first use that depend on the cache folder."""

    def __init__(self, path: str | os.PathLike[str], cache: Path | None = None):
        """`cache`: folder of copies; None takes `default_cache()` when it is needed.

        Raises UserError for a URL whose scheme no installed package reaches.
        """
        self.name = str(path)
        self.cache = cache
        self._url = self.name if is_url(self.name) else None
        if self._url is None:
            self._local = locate(path)
        else:
            refuse_unserved(self._url, "data")

    @functools.cached_property
    def path(self) -> Path:
        """The file on this disk; raises `RecordError` where it is at a URL and cannot be fetched."""
        if self._url is None:
            return self._local
        try:
            return fetched_file(self._url, self.cache or default_cache())
        except StoreError as error:
            raise RecordError([Problem(rule="unreadable-file", message=str(error), file=self._url)]) from error

    @functools.cached_property
    def pins(self) -> Sequence[PinnedFile]:
        return (PinnedFile(self.path, shown_as=self.name),)

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self._url or os.path.realpath(self._local),))  # known before there is a file

    def cached_in(self, folder: Path) -> RecordSource:
        return self if self._url is None else self._with_cache(folder)

    def _with_cache(self, folder: Path) -> RecordSource:
        other = copy.copy(self)
        for name in self.from_cache:
            vars(other).pop(name, None)
        other.cache = folder
        return other
