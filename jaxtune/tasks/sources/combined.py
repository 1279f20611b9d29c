"""Sources made of others: some records of one, several one after the other."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.tasks.sources.base import RecordSource


class SubsetSource(RecordSource):
    """Some records of another source, in its order; places are the other source's."""

    def __init__(self, source: RecordSource, indices: Int[np.ndarray, " records"], *, label: str):
        self.base = source
        self.indices = indices
        self.name = f"{source.name} ({label})"
        self.label = label

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.base.fingerprint.encode())
        digest.update(np.asarray(self.indices, "<i8").tobytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def cached_in(self, folder: Path) -> RecordSource:
        return SubsetSource(self.base.cached_in(folder), self.indices, label=self.label)

    @property
    def origins(self) -> frozenset[str]:
        return self.base.origins

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return self.base[int(self.indices[i])]

    def line(self, i: SupportsIndex) -> int:
        return self.base.line(int(self.indices[i]))

    def file(self, i: SupportsIndex) -> str:
        return self.base.file(int(self.indices[i]))

    def check_unchanged(self) -> None:
        self.base.check_unchanged()


class ConcatSource(RecordSource):
    """Several sources of one kind, one after the other (shards of a data set)."""

    def __init__(self, sources: Sequence[RecordSource]):
        if not sources:
            raise UserError("a source of several files needs at least one file")
        self.sources = tuple(sources)
        self.name = f"{sources[0].name} (+{len(sources) - 1} files)" if len(sources) > 1 else sources[0].name

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(source.fingerprint for source in self.sources).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset().union(*(source.origins for source in self.sources))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " sources"]:
        """Records up to and with each source."""
        return np.cumsum([len(source) for source in self.sources])

    def cached_in(self, folder: Path) -> RecordSource:
        return ConcatSource([source.cached_in(folder) for source in self.sources])

    def _locate(self, i: SupportsIndex) -> tuple[RecordSource, int]:
        i = range(len(self))[i]
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return self.sources[shard], i - (int(self._ends[shard - 1]) if shard else 0)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        source, inner = self._locate(i)
        return source[inner]

    def line(self, i: SupportsIndex) -> int:
        source, inner = self._locate(i)
        return source.line(inner)

    def file(self, i: SupportsIndex) -> str:
        source, inner = self._locate(i)
        return source.file(inner)

    def check_unchanged(self) -> None:
        for source in self.sources:
            source.check_unchanged()
