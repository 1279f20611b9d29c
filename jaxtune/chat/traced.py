"""Strings that remember where each part came from, through the operations that a chat template applies to them.

A rendered chat mixes text of the template with text of the user. Only the template may write control tokens, and only
the assistant's words train, so every character must know its source:

    >>> text = join(["<|user|>", trace(" hi <|end|> ", 0).strip(), "<|end|>"])
    >>> pieces_of(text)
    (('<|user|>', None, 0), ('hi <|end|>', 0, 0), ('<|end|>', None, 0))

An operation that keeps characters (concatenation, slicing, strip, split) keeps their sources. Any other operation gives
its whole result the source of its first user part: text of the template may then pass for the user's, never the
reverse.
"""

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

Piece = tuple[str, int | None, int]
"""Text, its source (a message's index, `OTHER`, or None for the template), and its generation block (0: none)."""

OTHER = -1
"""Source of user text that belongs to no message: tool declarations, documents, template variables."""


class Traced(str):
    """A string made of pieces. `_pieces` is private, so that a sandboxed template can't reach it."""

    __slots__ = ("_pieces",)
    _pieces: tuple[Piece, ...]

    def __new__(cls, text: str = "", pieces: tuple[Piece, ...] | None = None) -> "Traced":
        """A string of `pieces`, which join to `text`; all template without them."""
        made = super().__new__(cls, text)
        made._pieces = pieces_of(text) if pieces is None else pieces
        return made

    def __str__(self) -> "Traced":  # str(x) keeps the trace
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Traced, (str.__str__(self), self._pieces)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(self, other), self._pieces + pieces_of(other))

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(other, self), pieces_of(other) + self._pieces)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = str.__getitem__(self, key)
        start, stop, step = key.indices(len(self)) if isinstance(key, slice) else (key.__index__(), 0, 1)
        if step != 1:
            return _blur(found, self)
        start = start + len(self) if start < 0 else start
        return _cut(self, start, start + len(found))

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return _cut(self, len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return _cut(self, 0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return _cut(self, len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return _cut(self, 0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return _locate(self, str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return _locate(self, str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        with_ends = _locate(self, str.splitlines(self, keepends=True), "")
        return with_ends if keepends else [line[: len(str.splitlines(line)[0])] for line in with_ends]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = _locate(self, list(str.partition(self, sep)), "")
        return before, middle, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = _locate(self, list(str.rpartition(self, sep)), "")
        return before, middle, after


def _blurred(name: str) -> Any:
    plain = getattr(str, name)

    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        return _blur(result, self) if isinstance(result, str) else result

    method.__name__ = name
    return method


for _name in (
    *("capitalize", "casefold", "center", "expandtabs", "format", "format_map", "join", "ljust", "lower", "replace"),
    *("rjust", "swapcase", "title", "translate", "upper", "zfill", "__mod__", "__rmod__", "__mul__", "__rmul__"),
    "__format__",
):
    setattr(Traced, _name, _blurred(_name))


def trace(text: str, source: int | None, block: int = 0) -> Traced:
    """`text` with every character from `source`."""
    text = str.__str__(text)
    return Traced(text, ((text, source, block),))


def pieces_of(text: str) -> tuple[Piece, ...]:
    """The pieces of a string; a plain string is all template."""
    if isinstance(text, Traced):
        return text._pieces
    return ((text, None, 0),) if text else ()


def join(parts: Iterable[str]) -> str:
    """Concatenate, keeping sources; a plain string if every part is plain."""
    parts = list(parts)
    text = "".join(parts)
    for part in parts:
        if type(part) is Traced:
            return Traced(text, tuple(piece for part in parts for piece in pieces_of(part)))
    return text


def in_block(text: str, block: int) -> str:
    """`text` with every piece marked as inside generation block `block`."""
    return Traced(str.__str__(text), tuple((t, source, block) for t, source, _ in pieces_of(text)))


def trace_all(value: Any, source: int) -> Any:
    """A copy of plain data (dicts, lists, strings, numbers) in which every string, keys included, has `source`."""
    if isinstance(value, str):
        return trace(value, source)
    if isinstance(value, Mapping):
        return {trace_all(key, source): trace_all(item, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [trace_all(item, source) for item in value]
    return value


def source_of(value: Any) -> int | None:
    """Source of the first user text found in `value`, looking into lists and dicts; None without any."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Traced):
            found = next((source for _, source, _ in item._pieces if source is not None), None)
            if found is not None:
                return found
        elif isinstance(item, Mapping):
            pending += [*reversed(list(item.values())), *reversed(list(item.keys()))]
        elif isinstance(item, list | tuple):
            pending += reversed(item)
    return None


def _blur(result: str, origin: Traced) -> Traced:
    block = origin._pieces[0][2] if origin._pieces else 0
    return trace(result, source_of(origin), block)


def _cut(text: Traced, start: int, stop: int) -> Traced:
    if start <= 0 and stop >= len(text):
        return text
    plain = str.__str__(text)
    kept: list[Piece] = []
    begin = 0
    for part, source, block in text._pieces:
        low, high = max(start, begin), min(stop, begin + len(part))
        if low < high:
            kept.append((plain[low:high], source, block))
        begin += len(part)
    return Traced(str.__getitem__(text, slice(start, stop)), tuple(kept))


def _locate(text: Traced, parts: list[str], sep: str | None) -> list[str]:
    """The parts of a split string with their sources; between them stands `sep`, or white space for None."""
    found: list[str] = []
    begin = 0
    for index, part in enumerate(parts):
        if sep is None:
            begin = str.find(text, part, begin)
        elif index:
            begin += len(sep)
        found.append(_cut(text, begin, begin + len(part)))
        begin += len(part)
    return found
