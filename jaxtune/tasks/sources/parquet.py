"""Parquet files: rows as records, one at a time."""

import bisect
import functools
import os
from collections import OrderedDict
from typing import Any, SupportsIndex

from jaxtune.tasks.sources.base import FileSource
from jaxtune.tasks.sources.columns import check_schema, reading, row

GROUPS_KEPT = 2
"""Parquet row groups that one source holds decoded; a row group is the least that Parquet can read."""


class ParquetSource(FileSource):
    """Random access to a Parquet file by row groups, of which at most two are in memory. Rows are counted from 1."""

    handles = ("_file",)

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    @functools.cached_property
    def _file(self) -> Any:
        from pyarrow import parquet

        with reading(self.name):
            file = parquet.ParquetFile(self.pins[0].path)
            check_schema(file.schema_arrow, self.name)
        return file

    @functools.cached_property
    def _starts(self) -> list[int]:
        """First row of each row group, and the number of rows."""
        starts = [0]
        for k in range(self._file.num_row_groups):
            starts.append(starts[-1] + self._file.metadata.row_group(k).num_rows)
        return starts

    def __len__(self) -> int:
        return self._starts[-1]

    def _group(self, k: int) -> Any:
        if k not in self._groups:
            with reading(self.name):
                self._groups[k] = self._file.read_row_group(k)
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(k)
        return self._groups[k]

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        k = bisect.bisect_right(self._starts, i) - 1
        return row(self._group(k), i - self._starts[k], self.name, self.line(i))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": OrderedDict()}
