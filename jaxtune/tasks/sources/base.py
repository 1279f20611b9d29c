"""What every source of records offers."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import orjson


class RecordSource(abc.ABC):
    """Records by number. Sources are opened at first use, and pickle: a worker process reopens the file."""

    name: str
    """File or data set, as messages name it."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Record i; raises `RecordError` with the place when it cannot be read."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the content, in hexadecimal."""

    @property
    @abc.abstractmethod
    def origins(self) -> frozenset[str]:
        """The files or objects that the records come from; two sources that share one share records."""

    @abc.abstractmethod
    def line(self, i: SupportsIndex) -> int:
        """1-based line or row of record i in its file."""

    @abc.abstractmethod
    def file(self, i: SupportsIndex) -> str:
        """The file that record i is in."""

    @abc.abstractmethod
    def check_unchanged(self) -> None:
        """Raises `UserError` when the content is no longer what was opened."""

    def where(self, i: SupportsIndex) -> str:
        """file:line of record i."""
        return f"{self.file(i)}:{self.line(i)}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def canonical(record: Mapping[str, Any]) -> bytes:
    """A record as bytes that do not depend on the order of its keys or on its `id`; equal content, equal bytes."""
    content = {key: value for key, value in record.items() if key != "id"}
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
