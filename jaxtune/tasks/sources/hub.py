"""Hugging Face hub data sets, through the `datasets` package (extra `hub`)."""

import functools
import os
from pathlib import Path
from typing import Any, SupportsIndex

from jaxtune.errors import UserError, first_line
from jaxtune.storage.userfiles import locate, looked_for
from jaxtune.tasks.sources.base import PinnedSource
from jaxtune.tasks.sources.columns import without_nulls
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
                f"{self.name} cannot be loaded: {first_line(error)}; {self._local()}; check the name, the split, the "
                "network and your login (hf auth login), or save the data set with save_to_disk and use from_hf_folder"
            ) from error

    def _local(self) -> str:
        """Whether the name was meant for a path on this machine."""
        if os.path.exists(locate(self.dataset)):
            return f"{locate(self.dataset)} is there: if that is meant, use from_file"
        return f"no file or folder is called {self.dataset} either{looked_for(self.dataset)}"

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
