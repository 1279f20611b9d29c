"""Parquet files: rows as records, one at a time."""

import bisect
import functools
import os
from collections import OrderedDict
from typing import Any, SupportsIndex

from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.sources.base import FileSource
from jaxtune.tasks.sources.columns import check_schema, reading, row
from jaxtune.tasks.sources.compressed import FREE_RATIO, MAX_RATIO

GROUPS_KEPT = 2
"""Parquet row groups that one source holds decoded; a row group is the least that Parquet can read."""


ROWS = 128
"""Most rows that are decoded at once."""


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
                self._groups[k] = self._decoded(k)
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(k)
        return self._groups[k]

    def _decoded(self, k: int) -> Any:
        """Row group k as a table. A text that stands once in a column's dictionary may fill every row; that is bounded.

        Rows are decoded a few at a time: what the file says of its own sizes may be wrong.
        """
        import pyarrow

        most = max(FREE_RATIO, MAX_RATIO * self.pins[0].size)
        packed = max(1, self._file.metadata.row_group(k).total_byte_size)
        total, batches = 0, []
        for batch in self._file.iter_batches(batch_size=max(1, min(ROWS, most // packed)), row_groups=[k]):
            total += batch.nbytes
            if total > most:
                message = f"its {self.pins[0].size:,} bytes unfold to more than {most:,}, which no text of chats does"
                raise RecordError([Problem(rule="too-large", message=message, file=self.name)])
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, None if batches else self._file.schema_arrow).combine_chunks()

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        i = range(len(self))[i]
        k = bisect.bisect_right(self._starts, i) - 1
        return row(self._group(k), i - self._starts[k], self.name, self.line(i))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": OrderedDict()}
