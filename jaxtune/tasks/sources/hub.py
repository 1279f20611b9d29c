"""Hugging Face hub data sets, through the `datasets` package (extra `hub`)."""

import functools
from pathlib import Path
from typing import Any, SupportsIndex

from jaxtune.errors import UserError
from jaxtune.tasks.sources.base import PinnedSource
from jaxtune.tasks.sources.columns import first_line, without_nulls
from jaxtune.tasks.sources.pinned import PinnedFile
from jaxtune.tasks.sources.tfds import plain, split_fingerprint


class HubSource(PinnedSource):
    """A split of a hub data set. Rows are counted from 1."""

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
                f"{self.name} cannot be loaded: {first_line(error)}; check the name, the split, the network and your "
                "login (huggingface-cli login), or save the data set with save_to_disk and use from_hf_folder"
            ) from error

    @functools.cached_property
    def pins(self) -> list[PinnedFile]:
        """The downloaded Arrow files."""
        files = [Path(entry["filename"]) for entry in self._data.cache_files]
        return [PinnedFile(file, shown_as=str(file)) for file in files]

    @property
    def fingerprint(self) -> str:
        return split_fingerprint(self.pins, self.split, len(self))

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.name.partition("[")[0],))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return without_nulls(plain(self._data[range(len(self))[i]]))
