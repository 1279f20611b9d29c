"""TFDS data sets prepared as ArrayRecord: random access through their own reader."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from jaxtune.errors import UserError, first_line
from jaxtune.storage.fingerprints import texts_fingerprint
from jaxtune.tasks.sources.base import PinnedSource
from jaxtune.tasks.sources.pinned import PinnedFile


def plain(value: Any) -> Any:
    """A value that a reader gave, in Python's own types: arrays as lists, and bytes as text where they are text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value  # a picture, or text in another encoding: whoever needs it as text will name it
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def split_fingerprint(pins: list[PinnedFile], split: str, length: int) -> str:
    """sha256 over a split's files, its name (which may be a slice) and its length."""
    parts = [pin.sha256 for pin in pins] + [split, str(length)]
    return texts_fingerprint(parts)


class TfdsSource(PinnedSource):
    """A TFDS data set prepared with `file_format="array_record"`, read without TensorFlow. Rows are counted from 1."""

    handles = ("_data", "_builder")

    def __init__(
        self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = False
    ):
        """`name`: a data set (`my_chat`, `my_chat:1.0.0`) or the folder of a prepared one; `split` may be a slice."""
        self.dataset = name
        self.split = split
        self.data_dir = data_dir
        self.download = download
        self.name = f"{name}[{split}]"

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        if os.path.isfile(Path(self.dataset) / "dataset_info.json"):
            return tfds.builder_from_directory(self.dataset)
        try:
            builder = tfds.builder(self.dataset, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(
                f"TFDS finds no data set {self.dataset!r} in {self.data_dir or 'its own folder'}; check the name and "
                "data_dir=, import the module that defines it, or name the folder that holds its dataset_info.json"
            ) from error
        if self.download:
            builder.download_and_prepare(file_format="array_record")
        return builder

    @functools.cached_property
    def _data(self) -> Any:
        builder = self._builder
        try:
            return builder.as_data_source(split=self.split)
        except (AssertionError, NotImplementedError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.name} cannot be read: {first_line(error)}; prepare it with "
                "builder.download_and_prepare(file_format='array_record') and name one of its splits"
            ) from error

    @functools.cached_property
    def pins(self) -> list[PinnedFile]:
        _ = self._data  # says what is wrong with the split before its files are looked up
        files = self._builder.info.splits[self.split].filepaths
        return [PinnedFile(Path(file), shown_as=str(file)) for file in files]

    @property
    def fingerprint(self) -> str:
        return split_fingerprint(self.pins, self.split, len(self))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i, data = range(len(self))[i], self._data
        try:
            return plain(data[i])
        except (RuntimeError, ValueError) as error:
            raise self.error(i, ("damaged-file", first_line(error))) from error
