"""Records that are in memory already."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from jaxtune.errors import UserError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.jsonl import TOO_DEEP
from jaxtune.tasks.values import MAX_DEPTH, Unwritable, encoded, keys_and_depth, odd_key, type_name


class ListSource(RecordSource):
    """Records from a Python list."""

    def __init__(self, records: Iterable[Mapping[str, Any]], *, name: str = "list"):
        self.name = name
        given = tuple(records)
        for i, record in enumerate(given):
            if not isinstance(record, Mapping):
                raise UserError(f"{name}: record {i + 1} is {type_name(record)}; a record has named fields (a dict)")
        self._records = tuple(map(dict, given))

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i, record in enumerate(self._records):
            try:
                digest.update(encoded(record) + b"\n")
            except Unwritable as error:
                raise self.error(i, ("unwritable", str(error))) from error
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((f"{self.name} (list {id(self._records)})",))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        record = dict(self._records[i])
        if keys_and_depth(record)[1] > MAX_DEPTH:
            raise self.error(i, TOO_DEEP)
        if (key := odd_key(record)) is not None:
            raise self.error(i, ("wrong-type", f"the key {key} is no text; fields have names"))
        return record

    def check_unchanged(self) -> None:
        """The records are this object's own copies."""
