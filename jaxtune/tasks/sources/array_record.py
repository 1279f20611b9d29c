"""ArrayRecord files, TFDS data sets and Hugging Face hub data sets: random access through their own readers."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from jaxtune.errors import UserError
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.jsonl import json_type, parse_line
from jaxtune.tasks.sources.parquet import without_nulls
from jaxtune.tasks.sources.pinned import PinnedFile


class ArrayRecordSource(RecordSource):
    """Random access to an ArrayRecord file. Records are JSON unless `decode` says otherwise; counted from 1."""

    def __init__(self, path: str | os.PathLike[str], decode: Callable[[bytes], dict[str, Any]] | None = None):
        """`decode`: bytes of a record -> its fields; a module-level function, so that workers can import it."""
        self.path = Path(path)
        self.name = str(path)
        self._decode = decode

    @functools.cached_property
    def _pin(self) -> PinnedFile:
        return PinnedFile(self.path, shown_as=self.name)

    @functools.cached_property
    def _reader(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            return ArrayRecordDataSource([str(self._pin.path)])
        except (RuntimeError, ValueError) as error:
            raise RecordError([Problem(rule="damaged-file", message=_short(error), file=self.name)]) from error

    @property
    def fingerprint(self) -> str:
        return self._pin.sha256

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((str(self.path.resolve()),))

    def __len__(self) -> int:
        return len(self._reader)

    def raw(self, i: SupportsIndex) -> bytes:
        """The bytes of record i."""
        i = range(len(self))[i]
        try:
            return self._reader[i]
        except (RuntimeError, ValueError) as error:
            raise self._error(i, "damaged-file", _short(error)) from error

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        raw = self.raw(i)
        if self._decode is not None:
            return self._decode(raw)
        value, findings = parse_line(raw)
        if findings:
            raise self._error(i, *findings[0])
        if not isinstance(value, dict):
            raise self._error(i, "not-an-object", f"the record is {json_type(value)}")
        return value

    def _error(self, i: SupportsIndex, rule: str, message: str) -> RecordError:
        return RecordError([Problem(rule=rule, message=message, file=self.name, line=self.line(i))])

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        self._pin.check()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_reader"}


def _short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plain(value: Any) -> Any:
    """A value that a reader gave, in Python's own types: bytes as text, arrays as lists, at all depths."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class TfdsSource(RecordSource):
    """A TFDS data set prepared with `file_format="array_record"`, read without TensorFlow. Rows are counted from 1."""

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

        if (Path(self.dataset) / "dataset_info.json").is_file():
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
        try:
            return self._builder.as_data_source(split=self.split)
        except (AssertionError, NotImplementedError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.name} cannot be read: {_short(error)}; prepare it with "
                "builder.download_and_prepare(file_format='array_record') and name one of its splits"
            ) from error

    @functools.cached_property
    def _pins(self) -> list[PinnedFile]:
        _ = self._data  # says what is wrong with the split before its files are looked up
        files = self._builder.info.splits[self.split].filepaths
        return [PinnedFile(Path(file), shown_as=str(file)) for file in files]

    @property
    def fingerprint(self) -> str:
        """sha256 over the split's files, its name (which may be a slice) and its length."""
        parts = [pin.sha256 for pin in self._pins] + [self.split, str(len(self))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(str(pin.path.resolve()) for pin in self._pins)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        try:
            return plain(self._data[i])
        except (RuntimeError, UnicodeDecodeError) as error:
            problem = Problem(rule="damaged-file", message=_short(error), file=self.name, line=self.line(i))
            raise RecordError([problem]) from error

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        for pin in self._pins:
            pin.check()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_data", "_builder")}


class HubSource(RecordSource):
    """A split of a Hugging Face hub data set, through the `datasets` package (extra `hub`). Rows are counted from 1."""

    def __init__(
        self,
        dataset: str,
        split: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        data_files: Any = None,
        data_dir: str | None = None,
    ):
        """`split` may be a slice; the arguments are those of `datasets.load_dataset`."""
        self.dataset, self.split, self.config = dataset, split, config
        self._arguments = {"revision": revision, "data_files": data_files, "data_dir": data_dir}
        self.name = f"{dataset}[{split}]" if config is None else f"{dataset}/{config}[{split}]"

    @functools.cached_property
    def _data(self) -> Any:
        try:
            import datasets  # pyright: ignore[reportMissingImports] optional
        except ModuleNotFoundError as error:
            raise UserError("from_hub needs the package `datasets`: pip install 'jaxtune[hub]'") from error
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, **self._arguments)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            raise UserError(
                f"{self.name} cannot be loaded: {_short(error)}; check the name, the split, the network and your login "
                "(huggingface-cli login), or save the data set with save_to_disk and use from_hf_folder"
            ) from error

    @functools.cached_property
    def _pins(self) -> list[PinnedFile]:
        files = [Path(entry["filename"]) for entry in self._data.cache_files]
        return [PinnedFile(file, shown_as=str(file)) for file in files]

    @property
    def fingerprint(self) -> str:
        """sha256 over the downloaded Arrow files, the split (which may be a slice) and its length."""
        parts = [pin.sha256 for pin in self._pins] + [self.split, str(len(self))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.name.partition("[")[0],))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return without_nulls(plain(self._data[range(len(self))[i]]))

    def line(self, i: SupportsIndex) -> int:
        return int(i) + 1

    def file(self, i: SupportsIndex) -> str:
        return self.name

    def check_unchanged(self) -> None:
        for pin in self._pins:
            pin.check()
