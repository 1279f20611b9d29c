"""Where records come from: random access by number, a fingerprint of the content, and a place to name in messages."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import orjson
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.tasks.sources.array_record import ArrayRecordSource, HubSource, TfdsSource
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.compressed import FORMATS, CompressedJsonlSource
from jaxtune.tasks.sources.jsonl import JsonlSource
from jaxtune.tasks.sources.parquet import ArrowFolderSource, ParquetSource


class ListSource(RecordSource):
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

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((f"{self.name} (list {id(self._records)})",))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return dict(self._records[i])

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        """The records are this object's own copies."""


class SubsetSource(RecordSource):
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
        self._ends: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(source.fingerprint for source in self.sources).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset().union(*(source.origins for source in self.sources))

    def __len__(self) -> int:
        if self._ends is None:
            self._ends = np.cumsum([len(source) for source in self.sources])
        return int(self._ends[-1])

    def _locate(self, i: SupportsIndex) -> tuple[RecordSource, int]:
        i = range(len(self))[i]
        assert self._ends is not None
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


def from_list(records: Iterable[Mapping[str, Any]], *, name: str = "list") -> ListSource:
    """Records that are already in memory; copied, so later changes to them change nothing."""
    return ListSource(records, name=name)


def from_jsonl(*paths: str | os.PathLike[str]) -> RecordSource:
    """Records of JSON lines files (shards in the given order): .jsonl, .jsonl.gz or .jsonl.zst."""
    compressed = [Path(path).suffix in FORMATS for path in paths]
    return _joined(
        [
            CompressedJsonlSource(path) if packed else JsonlSource(path)
            for path, packed in zip(paths, compressed, strict=True)
        ]
    )


def from_parquet(*paths: str | os.PathLike[str]) -> RecordSource:
    """Rows of Parquet files, in the given order."""
    return _joined([ParquetSource(path) for path in paths])


def from_array_record(
    *paths: str | os.PathLike[str], decode: Callable[[bytes], dict[str, Any]] | None = None
) -> RecordSource:
    """Records of ArrayRecord files, in the given order: JSON, or what `decode` reads from a record's bytes."""
    return _joined([ArrayRecordSource(path, decode) for path in paths])


def from_tfds(
    name: str, *, split: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> RecordSource:
    """A split of a TFDS data set prepared as ArrayRecord; `name` is a data set's name or its prepared folder."""
    return TfdsSource(name, split, data_dir, download=download)


def from_hf_folder(folder: str | os.PathLike[str], *, split: str | None = None) -> RecordSource:
    """Rows of a data set that `datasets.save_to_disk` wrote."""
    return ArrowFolderSource(folder, split)


def from_hub(
    dataset: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
    data_dir: str | None = None,
) -> RecordSource:
    """A split of a Hugging Face hub data set; needs the extra `hub`, and the network on first use."""
    return HubSource(dataset, split, config=config, revision=revision, data_files=data_files, data_dir=data_dir)


def from_file(path: str | os.PathLike[str]) -> RecordSource:
    """The source of a file or folder, by its name: JSON lines, Parquet, ArrayRecord, saved Hugging Face data set."""
    path = Path(path)
    if path.is_dir():
        return from_hf_folder(path)
    opener = {".parquet": from_parquet, ".array_record": from_array_record, ".arrayrecord": from_array_record}
    return opener.get(path.suffix, from_jsonl)(path)


def _joined(sources: Sequence[RecordSource]) -> RecordSource:
    return sources[0] if len(sources) == 1 else ConcatSource(sources)
