"""Bounds on what rendering a template may use: steps, processor time, the size of values and their sum, memory.

The bounds are module constants, so that a test can lower them. A value is measured before it is built where its size
can be told, and what was built is summed; growth of the process's memory is the net below.
"""

import contextlib
import dataclasses
import datetime
import re
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2.exceptions
import jinja2.nodes

MAX_STEPS = 200_000
"""Loop iterations and macro calls that one render may take."""
MAX_SECONDS = 10.0
"""Processor seconds of one render, as a second bound."""
MAX_CHARS = 4_000_000
"""Size of any string a render builds, on top of eight times the characters it was given."""
MAX_BUILT = 25
"""How many times that size all values together may have that one render builds."""
MAX_GROWTH = 1 << 30
"""Bytes by which the process may grow during one render."""
MAX_INT_ARG = 1_000_000
"""Largest integer that a method or filter may be given: widths, counts and the like."""


@dataclasses.dataclass
class Meter:
    """Time and size that one render has used so far, and their bounds."""

    max_chars: int
    deadline: float
    today: datetime.date
    memory: int
    steps: int = 0
    blocks: int = 0
    built: int = 0

    def step(self) -> None:
        """Count one turn of a loop or call of a macro."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise stopped(f"the template took more than {MAX_STEPS:,} steps; it may loop for ever")
        if self.steps % 32 == 0:
            self.check_process()

    def check_process(self) -> None:
        """Stop a render that takes too long, or makes the process grow too much."""
        if time.thread_time() > self.deadline:
            raise stopped(f"the template ran for more than {MAX_SECONDS:g} seconds")
        if peak_memory() - self.memory > MAX_GROWTH:
            raise stopped(f"the template used more than {MAX_GROWTH >> 20:,} MiB of memory")

    def allow(self, size: int) -> None:
        """Refuse a value of so many characters or items."""
        if size > self.max_chars:
            raise stopped(f"the template builds a value of {size:,} characters or items")

    def spend(self, size: int) -> None:
        """Count a value of so many characters or items that is built now; refuse it, or the sum, where too large."""
        self.allow(size)
        self.built += size
        if self.built > MAX_BUILT * self.max_chars:
            raise stopped(f"the template builds values of more than {MAX_BUILT * self.max_chars:,} characters in all")


_local = threading.local()


def stopped(reason: str) -> jinja2.exceptions.SecurityError:
    """The error that ends a render."""
    return jinja2.exceptions.SecurityError(reason)


def meter() -> Meter:
    """The meter of the render that runs in this thread."""
    found = getattr(_local, "meter", None)
    if found is None:
        raise jinja2.nodes.Impossible  # at compile time: leave the expression for the render
    return found


@contextlib.contextmanager
def metered(given_chars: int, today: datetime.date) -> Iterator[Meter]:
    """One render of a text with so many characters of user text."""
    outer = getattr(_local, "meter", None)
    limit = MAX_CHARS + 8 * given_chars
    _local.meter = Meter(limit, time.thread_time() + MAX_SECONDS, today, peak_memory())
    try:
        yield _local.meter
    finally:
        _local.meter = outer


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size_of(value: Any) -> int:
    """Characters or items of a value; 0 of one that has none."""
    return len(value) if isinstance(value, str | list | tuple | dict | set) else 0


def measure(value: Any, indent: int = 0) -> int:
    """About how many characters the printed form of plain data has, `indent` more for each level in every item.

    Refuses a value that is too large, also one that shares parts of itself until its text would be.
    """
    if isinstance(value, int | float | None):
        return 0
    limit, seen, pending = meter(), 0, [(value, 1)]
    while pending:
        item, depth = pending.pop()
        seen += (len(item) if isinstance(item, str) else 8) + indent * depth
        if seen > limit.max_chars:
            limit.allow(seen)
        if isinstance(item, Mapping):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            pending += [(part, depth + 1) for part in item]
    return seen


def guard_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse `*`, `**` and `%` where the result would be huge."""
    if operator == "%" and isinstance(left, str):
        guard_format(left)
    if operator == "**" and isinstance(right, int | float) and abs(right) > 1000:
        raise stopped(f"an exponent of {right} is too large")
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        meter().allow(left.bit_length() * (right if operator == "**" else 1) + right.bit_length())
    for sized, count in ((left, right), (right, left)):
        if operator == "*" and isinstance(sized, str | list | tuple) and isinstance(count, int):
            meter().spend(len(sized) * max(count, 0))


def guard_arguments(name: str, text: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse calls of string methods and filters whose result would be huge."""
    args = [*args, *kwargs.values()]
    for arg in args:
        if isinstance(arg, int) and abs(arg) > MAX_INT_ARG:
            raise stopped(f"the argument {arg} of {name!r} is too large")
    if name in ("format", "format_map"):
        guard_format(text)
    strings = [arg for arg in args if isinstance(arg, str)]
    widths = [len(arg) if isinstance(arg, str) else int(arg) for arg in args if isinstance(arg, str | int)]
    if name == "replace" and len(strings) >= 2:
        meter().allow(len(text) + (text.count(strings[0]) + 1) * len(strings[1]))
    elif name in ("indent", "expandtabs"):
        meter().allow(len(text) + (len(text.splitlines()) + text.count("\t") + 1) * max([4, *widths]))
    elif name == "wordwrap":
        meter().allow(len(text) * (1 + max([1, *map(len, strings)])))


def guard_format(pattern: str) -> None:
    """Refuse format patterns that reach for attributes, or ask for widths that are huge or computed."""
    if re.search(r"\{[^}]*__", pattern):
        raise stopped("a format can't name private attributes")
    if re.search(r"\d{6}|\*|\{[^{}]*\{", pattern):
        raise stopped("a format with widths this large or computed is not allowed")
