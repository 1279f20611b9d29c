"""Data sets that Hugging Face `datasets` saved with `save_to_disk`: Arrow streams in a folder, named by state.json."""

import bisect
import functools
import os
from pathlib import Path
from typing import Any, SupportsIndex

from jaxtune.errors import UserError
from jaxtune.storage.documents import UnreadableDocument, read_object
from jaxtune.tasks.sources.base import PinnedSource
from jaxtune.tasks.sources.columns import check_schema, reading, row
from jaxtune.tasks.sources.pinned import PinnedFile, unreadable


class ArrowFolderSource(PinnedSource):
    """A saved data set, memory-mapped; needs only pyarrow. Rows are counted from 1, over all files."""

    handles = ("_batches",)

    def __init__(self, folder: str | os.PathLike[str], split: str | None = None):
        """`split` names a folder of a saved `DatasetDict`; a saved `Dataset` has none."""
        self.folder = Path(folder)
        self.split = split
        self.name = str(self.folder / split) if split else str(folder)

    @functools.cached_property
    def pins(self) -> list[PinnedFile]:
        root = _split_folder(self.folder, self.split)
        names = _file_names(root / "state.json")
        return [PinnedFile(root / name, shown_as=str(root / name)) for name in names]

    @functools.cached_property
    def _batches(self) -> tuple[list[Any], list[int]]:
        """Record batches, and the first row of each followed by the number of rows."""
        import pyarrow

        batches: list[Any] = []
        for pin in self.pins:
            with reading(pin.name):
                table = pyarrow.ipc.open_stream(pyarrow.memory_map(pin.name)).read_all()
                table.validate(full=True)  # Arrow trusts the offsets in a file; damaged ones would end the process
                check_schema(table.schema, pin.name)
                batches += table.to_batches()
        starts = [0]
        for batch in batches:
            starts.append(starts[-1] + batch.num_rows)
        return batches, starts

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((os.path.realpath(self.name),))

    def __len__(self) -> int:
        return self._batches[1][-1]

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        batches, starts = self._batches
        k = bisect.bisect_right(starts, i) - 1
        return row(batches[k], i - starts[k], self.name, self.line(i))


def _file_names(state: Path) -> list[str]:
    """The data files that a state.json names; each must lie in its own folder, so that the folder is all there is."""
    entries = _read_json(state, "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    for name in names:
        if not isinstance(name, str) or not is_plain_name(name):
            raise UserError(
                f"{state} names the data file {name!r}; a data file lies in the same folder and is called by its plain "
                "name; save the data set again with save_to_disk"
            )
    if not names:
        raise UserError(f"{state} names no data files; save the data set again")
    return [name for name in names if isinstance(name, str)]


def is_plain_name(name: str) -> bool:
    """Whether a name stands for an entry of a folder: no path, no parent, nothing that some file systems read so."""
    return name not in ("", ".", "..") and not any(c in "/\\\0" for c in name)


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder that holds one split's `state.json`."""
    if not os.path.isdir(folder):
        raise UserError(f"no folder {folder}; from_hf_folder reads what datasets.save_to_disk wrote")
    names = folder / "dataset_dict.json"
    if unreadable(names) is None:
        splits = [name for name in _read_json(names, "splits") if isinstance(name, str) and is_plain_name(name)]
        if split not in splits:
            raise UserError(f"{folder} holds the splits {splits}; name one with split=, not {split!r}")
        return folder / str(split)
    if split is not None:
        raise UserError(f"{folder} holds one data set without splits; leave split= out, or name its parent folder")
    if unreadable(folder / "state.json") is not None:
        raise UserError(
            f"{folder} is no saved data set: it has neither state.json nor dataset_dict.json; "
            "write it with datasets.save_to_disk, or read its files with from_parquet or from_jsonl"
        )
    return folder


def _read_json(file: Path, field: str) -> list[Any]:
    """A list under a field of a JSON file."""
    if why := unreadable(file):
        raise UserError(f"{file}: {why}; save the data set again with save_to_disk")
    try:
        value = read_object(file)[field]
    except (UnreadableDocument, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); save the data set again with save_to_disk") from error
    if not isinstance(value, list):
        raise UserError(f"{file}: {field} must be a list, got {value!r}; save the data set again with save_to_disk")
    return value
