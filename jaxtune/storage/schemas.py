"""The shape of a JSON document, checked once where it is read: what stands behind a reader meets no surprise.

Shapes are Python types: `str`, `bool`, `int`, `float`, `Any`, `list[X]`, `Mapping[str, X]`, unions, and `TypedDict`s,
whose keys may be `NotRequired`; further keys are ignored. A `float` is a number as `documents.plain` writes it, so null
stands for NaN; a `Real` is there.
"""

import functools
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

from jaxtune.storage.documents import UnreadableDocument


class Real(float):
    """A number that is there: no null, no infinity."""


WHOLE = range(-(2**63), 2**63)
"""Whole numbers that a document may hold."""
SHOWN = 60
_NAMES = {str: "a text", bool: "true or false", int: "a whole number of 64 bits", float: "a number", Real: "a number"}


def check_shape(value: Any, shape: Any, source: str | os.PathLike[str]) -> None:
    """Raises `UnreadableDocument` naming `source` and the place in it whose value does not have its shape."""
    found = _problem(value, shape)
    if found is not None:
        place, given, needed = found
        where = f"`{place}` is" if place else "the whole is"
        raise UnreadableDocument(
            f"{os.fspath(source)}: {where} {_short(given)}; {needed} is needed; put back a whole copy of the file"
        )


def _problem(value: Any, shape: Any, place: str = "") -> tuple[str, Any, str] | None:
    """(place, what is there, what is needed) of the first value that does not fit."""
    if get_origin(shape) in (Union, types.UnionType):
        problems = [_problem(value, kind, place) for kind in get_args(shape)]
        return None if None in problems else (place, value, _in_words(shape))
    if shape is Any or (shape in _NAMES or shape in (None, type(None))) and _is_plain(value, shape):
        return None
    items: list[tuple[str, Any, Any]] = []
    if is_typeddict(shape) and isinstance(value, dict):
        missing = sorted(_required(shape) - value.keys())
        if missing:
            return place, value, f"an object with the key {missing[0]!r}"
        items = [(f".{key}", value[key], kind) for key, kind in _keys(shape).items() if key in value]
    elif get_origin(shape) in (list, Sequence) and isinstance(value, list):
        items = [(f"[{index}]", item, get_args(shape)[0]) for index, item in enumerate(value)]
    elif get_origin(shape) in (dict, Mapping) and isinstance(value, dict):
        items = [(f".{key}", item, get_args(shape)[1]) for key, item in value.items()]
    else:
        return place, value, _in_words(shape)
    found = (_problem(item, kind, (place + name).lstrip(".")) for name, item, kind in items)
    return next((problem for problem in found if problem is not None), None)


def _required(shape: Any) -> frozenset[str]:
    return shape.__required_keys__


@functools.cache
def _keys(shape: Any) -> dict[str, Any]:
    hints = get_type_hints(shape, include_extras=True)
    unwrap = lambda hint: get_args(hint)[0] if get_origin(hint) in (NotRequired, Required) else hint
    return {key: unwrap(hint) for key, hint in hints.items()}


def _is_plain(value: Any, shape: Any) -> bool:
    if shape is float:
        return (
            _is_number(value) if isinstance(value, int | float) else value is None or value == "inf" or value == "-inf"
        )
    if shape is Real:
        return isinstance(value, int | float) and _is_number(value)
    if shape is int:
        return isinstance(value, int) and _is_number(value)
    return value is None if shape in (None, type(None)) else isinstance(value, shape)


def _is_number(value: int | float) -> bool:
    return isinstance(value, float) or (not isinstance(value, bool) and value in WHOLE)


def _in_words(shape: Any) -> str:
    if get_origin(shape) in (Union, types.UnionType):
        return " or ".join(_in_words(kind) for kind in get_args(shape))
    if shape in (None, type(None)):
        return "null"
    if is_typeddict(shape) or get_origin(shape) in (dict, Mapping):
        return "an object"
    return _NAMES.get(shape, "a list")


def _short(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: str(value).lower(), type(None): "null"}
    text = names.get(type(value)) or repr(value)[: SHOWN + 1]
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
