"""Parquet files, and Hugging Face `datasets` saved to disk (Arrow streams): rows as records, one at a time."""

import bisect
import contextlib
import functools
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsIndex

from jaxtune.errors import UserError
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.pinned import PinnedFile

GROUPS_KEPT = 2
"""Parquet row groups that one source holds decoded; a row group is the least that Parquet can read."""


def without_nulls(value: Any) -> Any:
    """A value without the null fields of its objects, at all depths.

    Arrow gives every object of a column the same fields and fills those that were absent with null: tool-call
    arguments {"city": "Rome"} and {"x": 1} in one column come back as {"city": "Rome", "x": null} and
    {"city": null, "x": 1}. Taking the nulls out restores them.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns Arrow's errors about a file's content into a `RecordError` that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        message = str(error).strip().splitlines()[0]
        raise RecordError([Problem(rule="damaged-file", message=message, file=name)]) from error


class ParquetSource(RecordSource):
    """Random access to a Parquet file by row groups, of which at most two are in memory. Rows are counted from 1."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.name = str(path)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    @functools.cached_property
    def _pin(self) -> PinnedFile:
        return PinnedFile(self.path, shown_as=self.name)

    @functools.cached_property
    def _file(self) -> Any:
        from pyarrow import parquet

        with _reading(self.name):
            return parquet.ParquetFile(self._pin.path)

    @functools.cached_property
    def _starts(self) -> list[int]:
        """First row of each row group, and the number of rows."""
        starts = [0]
        for k in range(self._file.num_row_groups):
            starts.append(starts[-1] + self._file.metadata.row_group(k).num_rows)
        return starts

    @property
    def fingerprint(self) -> str:
        return self._pin.sha256

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((str(self.path.resolve()),))

    def __len__(self) -> int:
        return self._starts[-1]

    def _group(self, k: int) -> Any:
        if k not in self._groups:
            with _reading(self.name):
                self._groups[k] = self._file.read_row_group(k)
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(k)
        return self._groups[k]

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        k = bisect.bisect_right(self._starts, i) - 1
        return _row(self._group(k), i - self._starts[k], self.where(i))

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        self._pin.check()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"} | {"_groups": OrderedDict()}


def _row(table: Any, i: int, where: str) -> dict[str, Any]:
    try:
        (row,) = table.slice(i, 1).to_pylist()
    except UnicodeDecodeError as error:
        file, _, line = where.rpartition(":")
        problem = Problem(rule="not-utf-8", message=f"a text column: {error}", file=file, line=int(line))
        raise RecordError([problem]) from error
    return without_nulls(row)


class ArrowFolderSource(RecordSource):
    """A data set that Hugging Face `datasets` saved with `save_to_disk`, memory-mapped; needs only pyarrow."""

    def __init__(self, folder: str | os.PathLike[str], split: str | None = None):
        """`split` names a folder of a saved `DatasetDict`; a saved `Dataset` has none."""
        self.folder = Path(folder)
        self.split = split
        self.name = str(self.folder / split) if split else str(folder)

    @functools.cached_property
    def _pins(self) -> list[PinnedFile]:
        root = _split_folder(self.folder, self.split)
        state = _read_json(root / "state.json", "_data_files")
        if not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in state):
            raise UserError(f"{root / 'state.json'} names no data files; save the data set again")
        return [PinnedFile(root / entry["filename"], shown_as=str(root / entry["filename"])) for entry in state]

    @functools.cached_property
    def _batches(self) -> tuple[list[Any], list[int]]:
        """Record batches, and the first row of each followed by the number of rows."""
        import pyarrow

        batches: list[Any] = []
        for pin in self._pins:
            with _reading(pin.name):
                batches += pyarrow.ipc.open_stream(pyarrow.memory_map(pin.name)).read_all().to_batches()
        starts = [0]
        for batch in batches:
            starts.append(starts[-1] + batch.num_rows)
        return batches, starts

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(pin.sha256 for pin in self._pins).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((str(Path(self.name).resolve()),))

    def __len__(self) -> int:
        return self._batches[1][-1]

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        batches, starts = self._batches
        k = bisect.bisect_right(starts, i) - 1
        return _row(batches[k], i - starts[k], self.where(i))

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        for pin in self._pins:
            pin.check()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_batches"}


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder that holds one split's `state.json`."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; from_hf_folder reads what datasets.save_to_disk wrote")
    names = folder / "dataset_dict.json"
    if names.is_file():
        splits = _read_json(names, "splits")
        if split not in splits:
            raise UserError(f"{folder} holds the splits {splits}; name one with split=, not {split!r}")
        return folder / str(split)
    if split is not None:
        raise UserError(f"{folder} holds one data set without splits; leave split= out, or name its parent folder")
    if not (folder / "state.json").is_file():
        raise UserError(
            f"{folder} is no saved data set: it has neither state.json nor dataset_dict.json; "
            "write it with datasets.save_to_disk, or read its files with from_parquet or from_jsonl"
        )
    return folder


def _read_json(file: Path, field: str) -> list[Any]:
    """A list under a field of a JSON file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}); save the data set again with save_to_disk") from error
    if not isinstance(value, list):
        raise UserError(f"{file}: {field} must be a list, got {value!r}; save the data set again with save_to_disk")
    return value
