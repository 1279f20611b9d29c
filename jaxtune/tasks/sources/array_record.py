"""ArrayRecord files: random access through their own reader."""

import functools
import os
from collections.abc import Callable
from typing import Any, SupportsIndex

from jaxtune.errors import first_line
from jaxtune.tasks.problems import INTERRUPTS, Problem, RecordError, said_by
from jaxtune.tasks.sources.base import FileSource
from jaxtune.tasks.sources.jsonl import TOO_DEEP, parse_record
from jaxtune.tasks.values import MAX_DEPTH, keys_and_depth, odd_key, type_name


class ArrayRecordSource(FileSource):
    """Random access to an ArrayRecord file. Records are JSON unless `decode` says otherwise; counted from 1."""

    handles = ("_reader",)

    def __init__(self, path: str | os.PathLike[str], decode: Callable[[bytes], dict[str, Any]] | None = None):
        """`decode`: bytes of a record -> its fields; a module-level function, so that workers can import it."""
        super().__init__(path)
        self._decode = decode

    @functools.cached_property
    def _reader(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        path = str(self.pins[0].path)
        try:
            return ArrayRecordDataSource([path])
        except (RuntimeError, ValueError) as error:
            raise RecordError([Problem(rule="damaged-file", message=first_line(error), file=self.name)]) from error

    def __len__(self) -> int:
        return len(self._reader)

    def raw(self, i: SupportsIndex) -> bytes:
        """The bytes of record i."""
        i = range(len(self))[i]
        reader = self._reader
        try:
            return reader[i]
        except (RuntimeError, ValueError) as error:
            raise self.error(i, ("damaged-file", first_line(error))) from error

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        raw = self.raw(i)
        value, findings = parse_record(raw) if self._decode is None else decoded(self._decode, raw)
        if findings:
            raise self.error(i, *findings)
        return value


def decoded(decode: Callable[[bytes], Any], raw: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """Record that a user's function makes of bytes, or the problem that it raised."""
    try:
        value = decode(raw)
    except INTERRUPTS:
        raise
    except BaseException as error:  # a user's function may raise anything, and all of it is about this record
        return None, [("decode-failed", said_by(error))]
    if not isinstance(value, dict):
        return None, [("decode-failed", f"the decode function returned {type_name(value)}, not an object")]
    if keys_and_depth(value)[1] > MAX_DEPTH:
        return None, [TOO_DEEP]
    if (key := odd_key(value)) is not None:
        return None, [("decode-failed", f"the decode function gave the key {key}, which is no text; fields have names")]
    return value, []
