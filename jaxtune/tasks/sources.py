"""Where records come from: random access by number, a fingerprint of the content, and a place to name in messages."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import orjson
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.tasks.jsonl import JsonlSource


@runtime_checkable
class RecordSource(Protocol):
    """Records by number. Sources pickle (a worker process reopens the file) and are opened at first use."""

    name: str
    """File or data set, as messages should name it."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> dict[str, Any]:
        """Record i; raises `RecordError` with the place when it cannot be read."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 of the content, in hexadecimal."""
        ...

    def where(self, i: int) -> str:
        """file:line (or :row) of record i."""
        ...

    def line(self, i: int) -> int:
        """1-based line or row of record i."""
        ...

    def check_unchanged(self) -> None:
        """Raises `UserError` when the content is no longer what was opened."""
        ...


def canonical(record: Mapping[str, Any]) -> bytes:
    """A record as bytes that do not depend on the order of its keys or on its `id`; equal content, equal bytes."""
    content = {key: value for key, value in record.items() if key != "id"}
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


class ListSource:
    """Records from a Python list."""

    def __init__(self, records: Iterable[Mapping[str, Any]], *, name: str = "list"):
        self.name = name
        self._records = tuple(dict(record) for record in records)
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for record in self._records:
                digest.update(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(self._records[i])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(dict, self._records)

    def line(self, i: int) -> int:
        return int(i) + 1

    def where(self, i: int) -> str:
        return f"{self.name}:{self.line(i)}"

    def check_unchanged(self) -> None:
        """The records are this object's own copies."""

    def __repr__(self) -> str:
        return f"ListSource({self.name!r}, {len(self)} records)"


class SubsetSource:
    """Some records of another source, in its order; places are the other source's."""

    def __init__(self, source: RecordSource, indices: Int[np.ndarray, " records"], *, label: str):
        self.base = source
        self.indices = indices
        self.name = f"{source.name} ({label})"
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256(self.base.fingerprint.encode())
            digest.update(np.asarray(self.indices, "<i8").tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.base[int(self.indices[i])]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def line(self, i: int) -> int:
        return self.base.line(int(self.indices[i]))

    def where(self, i: int) -> str:
        return self.base.where(int(self.indices[i]))

    def check_unchanged(self) -> None:
        self.base.check_unchanged()

    def __repr__(self) -> str:
        return f"SubsetSource({self.name!r}, {len(self)} records)"


class ConcatSource:
    """Several sources of one kind, one after the other (shards of a data set)."""

    def __init__(self, sources: Sequence[RecordSource]):
        if not sources:
            raise UserError("a source of several files needs at least one file")
        self.sources = tuple(sources)
        self.name = f"{sources[0].name} (+{len(sources) - 1} files)" if len(sources) > 1 else sources[0].name
        self._ends: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(source.fingerprint for source in self.sources).encode()).hexdigest()

    def __len__(self) -> int:
        if self._ends is None:
            self._ends = np.cumsum([len(source) for source in self.sources])
        return int(self._ends[-1])

    def _locate(self, i: int) -> tuple[RecordSource, int]:
        i = range(len(self))[i]
        assert self._ends is not None
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return self.sources[shard], i - (int(self._ends[shard - 1]) if shard else 0)

    def __getitem__(self, i: int) -> dict[str, Any]:
        source, inner = self._locate(i)
        return source[inner]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def line(self, i: int) -> int:
        source, inner = self._locate(i)
        return source.line(inner)

    def where(self, i: int) -> str:
        source, inner = self._locate(i)
        return source.where(inner)

    def check_unchanged(self) -> None:
        for source in self.sources:
            source.check_unchanged()

    def __repr__(self) -> str:
        return f"ConcatSource({self.name!r})"


def from_list(records: Iterable[Mapping[str, Any]], *, name: str = "list") -> ListSource:
    """Records that are already in memory; copied, so later changes to them change nothing."""
    return ListSource(records, name=name)


def from_jsonl(*paths: str | os.PathLike[str]) -> RecordSource:
    """Records of one or more JSON lines files."""
    return _joined([JsonlSource(path) for path in paths])


def _joined(sources: Sequence[RecordSource]) -> RecordSource:
    return sources[0] if len(sources) == 1 else ConcatSource(sources)
