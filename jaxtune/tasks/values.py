"""Values in a record, whatever reader gave them: their names in messages, their nesting, their bytes for hashing."""

import datetime
import decimal
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import orjson

MAX_DEPTH = 100
"""Levels of objects and arrays that a record may have; real ones have ten or so. Readers, writers and templates recurse
over values, and each of them gives up at another depth."""

_NAMES = (
    (type(None), "null"),
    (bool, "true or false"),
    (str, "a string"),
    ((int, float, np.number), "a number"),
    (Mapping, "an object"),
    ((list, tuple, np.ndarray), "an array"),
    ((bytes, bytearray), "bytes"),
    (datetime.datetime, "a date with time"),
    (datetime.date, "a date"),
    (datetime.time, "a time of day"),
    (datetime.timedelta, "a duration"),
    (decimal.Decimal, "a decimal number"),
)


class Unwritable(ValueError):
    """A value that has no spelling as bytes, and so no fingerprint."""


def type_name(value: Any) -> str:
    """The kind of a value in words, with its article: JSON's names, and names for what only columnar files hold."""
    return next((name for kind, name in _NAMES if isinstance(value, kind)), f"a Python {type(value).__name__}")


def keys_and_depth(value: Any) -> tuple[int, int]:
    """Number of object keys in a value at all depths, and the depth of its objects and arrays.

    Goes level by level, as a recursion would end at Python's own limit; stops counting below `MAX_DEPTH`.
    """
    keys = depth = 0
    level = [value] if isinstance(value, dict | list) else []
    while level and depth <= MAX_DEPTH:
        depth += 1
        keys += sum(len(item) for item in level if isinstance(item, dict))
        inner = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in inner if isinstance(part, dict | list)]
    return keys, depth


def odd_key(value: Any) -> str | None:
    """The first key, as Python shows it, that is no text, of the objects in a value; None where all are."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for item in level:
            found = [key for key in item if not isinstance(key, str)] if isinstance(item, Mapping) else []
            if found:
                return repr(found[0])[:60]
        parts = (item.values() if isinstance(item, Mapping) else item for item in level)
        level = [part for inner in parts for part in inner if isinstance(part, Mapping | list | tuple)]
    return None


def canonical(record: Mapping[str, Any]) -> bytes:
    """A record as bytes that do not depend on the order of its keys or on its `id`; equal content, equal bytes."""
    return encoded({key: value for key, value in record.items() if key != "id"})


def encoded(value: Any) -> bytes:
    """A value as bytes that decide it, keys in order; what JSON lacks (bytes, decimals) by type and Python spelling.

    Raises `Unwritable` for what has no text, or another one in the next process: nesting without end, half a surrogate
    pair, sets, and objects that Python shows by their address.
    """
    try:
        return orjson.dumps(value, default=_spelled, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise Unwritable(f"a value cannot be written as JSON: {error}") from error


_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def _spelled(value: Any) -> str:
    if isinstance(value, Set) or type(value).__repr__ is object.__repr__:
        raise TypeError(f"a {type(value).__name__} is not written alike in every process")
    return f"{type(value).__name__} {value!r}"
