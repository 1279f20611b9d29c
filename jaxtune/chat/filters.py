"""Functions and filters that a chat template may call: bounded in size, and with the source of every text kept."""

import datetime
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.filters

from jaxtune.chat.meter import guard_arguments, measure, meter, size_of, stopped
from jaxtune.chat.traced import Traced, join, source_of, trace


def raise_exception(message: str) -> None:
    """The template's own refusal of a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:
    """The date of the rendering, which is a setting and never the clock."""
    return datetime.datetime.combine(meter().today, datetime.time()).strftime(format)


def make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` as a function of templates."""
    return dict(*args, **kwargs)


def to_text(value: Any) -> str:
    """Text that `{{ value }}` prints for a value."""
    if isinstance(value, str):
        return value if type(value) in (str, Traced) else str.__str__(value)
    if isinstance(value, jinja2.Undefined) and value._undefined_exception is jinja2.exceptions.SecurityError:
        value._fail_with_undefined_error()
    meter().spend(measure(value))
    source = source_of(value)
    return str(value) if source is None else trace(str(value), source)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without the HTML escapes of Jinja's own filter. Raises ValueError for NaN and Infinity, which it lacks."""
    guard_arguments("tojson", "", (indent,), {})
    if any(size_of(text) > 16 for text in separators or ()):
        raise stopped("separators of more than 16 characters are not allowed")
    width = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    meter().spend(measure(value, width))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=False
    )
    source = source_of(value)
    return text if source is None else trace(text, source)


@jinja2.pass_environment
def filter_join(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    """The `join` of Jinja, with the source of every text kept."""
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return join_texts(d, value)


def join_texts(separator: str, values: Iterable[Any]) -> str:
    """Texts of values with a separator between them; stopped when they grow too large."""
    texts: list[str] = []
    size = 0
    for value in values:
        texts += ([separator] if texts and separator else []) + [to_text(value)]
        size += len(separator) + len(texts[-1])
        meter().allow(size)
    meter().spend(size)
    return join(texts)


_TEXT_FILTERS = frozenset(
    ("capitalize", "center", "format", "indent", "lower", "upper", "title", "truncate", "wordwrap", "replace")
    + ("striptags", "urlencode", "pprint", "trim")
)
"""Filters whose result is a new text made of their arguments."""


def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja whose arguments are checked and whose result is measured; a text keeps its source."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        text = given[0] if given and isinstance(given[0], str) else ""
        guard_arguments(name, text, given[1:] if text else given, kwargs)
        result = function(*args, **kwargs)
        meter().spend(size_of(result))
        if name in _TEXT_FILTERS and isinstance(result, str) and type(result) is not Traced:
            source = source_of([*given, kwargs])
            result = str.__str__(result) if source is None else trace(result, source)
        return result

    return run
