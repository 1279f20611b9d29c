"""Opening data: the functions that users name in a config, one for each format."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage.stores import is_url
from jaxtune.storage.userfiles import locate
from jaxtune.tasks.sources.array_record import ArrayRecordSource
from jaxtune.tasks.sources.arrow import ArrowFolderSource
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.combined import ConcatSource
from jaxtune.tasks.sources.compressed import FORMATS, CompressedJsonlSource
from jaxtune.tasks.sources.hub import HubSource
from jaxtune.tasks.sources.jsonl import JsonlSource
from jaxtune.tasks.sources.memory import ListSource
from jaxtune.tasks.sources.parquet import ParquetSource
from jaxtune.tasks.sources.tfds import TfdsSource


def from_list(records: Iterable[Mapping[str, Any]], *, name: str = "list") -> ListSource:
    """Records that are already in memory; copied, so later changes to them change nothing."""
    return ListSource(records, name=name)


def from_jsonl(*paths: str | os.PathLike[str]) -> RecordSource:
    """Records of JSON lines files (shards in the given order): .jsonl, .jsonl.gz or .jsonl.zst.

    Paths, or URLs such as gs://bucket/chats.jsonl: their objects are copied into the cache when they are first read.
    """
    compressed = [Path(path).suffix in FORMATS for path in paths]
    return _joined(
        [
            CompressedJsonlSource(path) if packed else JsonlSource(path)
            for path, packed in zip(paths, compressed, strict=True)
        ]
    )


def from_parquet(*paths: str | os.PathLike[str]) -> RecordSource:
    """Rows of Parquet files (paths or URLs), in the given order."""
    return _joined([ParquetSource(path) for path in paths])


def from_array_record(
    *paths: str | os.PathLike[str], decode: Callable[[bytes], dict[str, Any]] | None = None
) -> RecordSource:
    """Records of ArrayRecord files (paths or URLs), in the given order: JSON, or what `decode` reads from the bytes."""
    return _joined([ArrayRecordSource(path, decode) for path in paths])


def from_tfds(
    name: str, *, split: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> RecordSource:
    """A split of a TFDS data set prepared as ArrayRecord; `name` is a data set's name or its prepared folder."""
    for place in (name, data_dir or ""):
        _refuse_url(str(place), "its ArrayRecord files themselves are read from there by from_array_record")
    return TfdsSource(name, split, data_dir, download=download)


def from_hf_folder(folder: str | os.PathLike[str], *, split: str | None = None) -> RecordSource:
    """Rows of a data set that `datasets.save_to_disk` wrote."""
    _refuse_url(str(folder), "Parquet files (Dataset.to_parquet) are read from there by from_parquet")
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
    """The source of a file (a path or a URL) or folder, by its name: JSON lines, Parquet, ArrayRecord, saved Hugging
    Face data set."""
    if not is_url(str(path)):
        path = locate(path)
        if os.path.isdir(path):
            return from_hf_folder(path)
    opener = {".parquet": from_parquet, ".array_record": from_array_record, ".arrayrecord": from_array_record}
    return opener.get(Path(path).suffix, from_jsonl)(path)


def _joined(sources: Sequence[RecordSource]) -> RecordSource:
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _refuse_url(place: str, instead: str) -> None:
    if is_url(place):
        raise UserError(f"{place}: folders of data sets are read from a disk only; copy it there. {instead}")
