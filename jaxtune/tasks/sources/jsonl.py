"""JSON lines: strict parsing of one line, and random access to a file of them through an index of line starts."""

import dataclasses
import functools
import json
import os
import re
import weakref
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import orjson
from jaxtyping import Int, UInt

from jaxtune.errors import UserError
from jaxtune.tasks.problems import Finding, Problem, RecordError
from jaxtune.tasks.sources.base import FileSource
from jaxtune.tasks.values import MAX_DEPTH, keys_and_depth, type_name

BLOCK = 1 << 24
"""Bytes read at a time while a file is indexed."""

_MAGIC = (
    (b"\xef\xbb\xbf", "byte-order-mark", "the file starts with a UTF-8 byte order mark"),
    (b"\xff\xfe", "utf-16", "the file is UTF-16 (little endian)"),
    (b"\xfe\xff", "utf-16", "the file is UTF-16 (big endian)"),
    (b"\x1f\x8b", "compressed", "the file is compressed by gzip, but its name does not end in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed", "the file is compressed by zstd, but its name does not end in .zst"),
    (b"BZh", "compressed", "the file is compressed by bzip2, which is not read"),
    (b"\xfd7zXZ", "compressed", "the file is compressed by xz, which is not read"),
    (b"PK\x03\x04", "compressed", "the file is a zip archive, which is not read"),
    (b"PAR1", "invalid-json", "the file is Parquet; read it with from_parquet (its name ends in .parquet)"),
)


def foreign_format(head: bytes) -> Finding | None:
    """Format of a file whose first bytes show that it is not UTF-8 JSON lines; None when they do not."""
    for magic, rule, message in _MAGIC:
        if head.startswith(magic):
            return rule, message
    if len(head) > 3 and (head[1] == 0 and head[3] == 0 or head[0] == 0 and head[2] == 0):
        return "utf-16", "the file is UTF-16 without a byte order mark"
    first = head.lstrip()
    if first.startswith(b"[") and first[1:].lstrip()[:1] in (b"{", b""):
        return "json-array-file", "the file is one JSON array, not JSON lines"
    return None


def written_keys(raw: bytes) -> int | None:
    """Number of object keys in JSON text, repeated ones included; None where that cannot be told quickly.

    A quote inside a string is escaped, so a quote and a colon close a key unless a backslash stands before them. White
    space before the colon, and two backslashes before the quote, are left to the slow parser.
    """
    if b'\\\\":' in raw or _LOOSE_KEY.search(raw):
        return None
    return raw.count(b'":') - raw.count(b'\\":')


_LOOSE_KEY = re.compile(rb'"[ \t\r\n]+:')


def may_lose_digits(raw: bytes) -> bool:
    """Whether JSON text has so many digits in a row that they may be an integer beyond 64 bits, or are in a string."""
    return _LONG in raw.translate(_AS_ZEROS)


_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
INTEGERS = range(-(2**63), 2**64)
"""Integers that the fast parser keeps; it makes a float of any other."""


def parse_line(raw: bytes) -> tuple[Any, list[Finding]]:
    """The value of one line, or what is wrong with it (then the value is None).

    Strict as RFC 8259 and I-JSON are: no NaN, no lone surrogates, no key twice, no integer beyond 64 bits. The fast
    parser decides nearly every line; a line that it refuses, or in which a key may stand twice or an integer may lose
    digits, is read again by the slow one that can say why.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return None, _diagnose(raw) or [("invalid-json", str(error))]
    keys, depth = keys_and_depth(value)
    if depth > MAX_DEPTH:
        return None, [TOO_DEEP]
    if written_keys(raw) == keys and not may_lose_digits(raw):
        return value, []
    findings = _diagnose(raw)
    return (None, findings) if findings else (value, [])


def parse_record(raw: bytes) -> tuple[Any, list[Finding]]:
    """`parse_line` for a line that must hold an object."""
    value, findings = parse_line(raw)
    if findings or isinstance(value, dict):
        return value, findings
    return None, [("not-an-object", f"the record is {type_name(value)}")]


TOO_DEEP: Finding = ("nested-too-deeply", f"more than {MAX_DEPTH} objects and arrays lie in one another")


def _diagnose(raw: bytes) -> list[Finding]:
    """What the slow parser finds wrong with a line."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return [("not-utf-8", f"byte {error.object[error.start]:#04x} at column {error.start + 1} is not UTF-8")]
    repeated: list[str] = []
    constants: list[str] = []
    large: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(items)

    def whole(digits: str) -> int:
        if (number := int(digits)) not in INTEGERS:
            large.append(digits)
        return number

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constants.append, parse_int=whole)
    except json.JSONDecodeError as error:
        return [("invalid-json", f"{error.msg} at column {error.pos + 1}{_hint(text, error.pos)}")]
    except RecursionError:
        return [TOO_DEEP]
    except ValueError as error:  # an integer of more digits than Python converts
        return [("invalid-json", str(error))]
    if keys_and_depth(value)[1] > MAX_DEPTH:  # how deep the slow parser goes is each Python's own affair
        return [TOO_DEEP]
    findings = [("duplicate-key", f"the key {key!r} stands twice in one object") for key in repeated]
    findings += [("nan-literal", f"{name} is not a JSON number") for name in dict.fromkeys(constants)]
    findings += [("large-integer", f"{digits[:40]} does not fit into 64 bits") for digits in dict.fromkeys(large)]
    surrogate = _lone_surrogate(value)
    if surrogate:
        findings.append(("lone-surrogate", f"\\u{ord(surrogate):04x} is half of a surrogate pair"))
    return findings


def _lone_surrogate(value: Any) -> str | None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return str(error.object)[error.start]
    return None


def _hint(text: str, at: int) -> str:
    start = text.lstrip()[:2]
    if "\r" in text[:at].lstrip():
        return " (lines that end in a carriage return alone? convert them: tr '\\r' '\\n' < FILE)"
    if start.startswith("{'"):
        return " (written by Python's str? JSON needs double quotes)"
    if text.strip() in ("{", "["):
        return " (one value spread over several lines? each record must stand on one line)"
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineIndex:
    """Index of the non-blank lines of a file: 12 bytes a record."""

    starts: Int[np.ndarray, " records"]
    lengths: UInt[np.ndarray, " records"]
    numbers: Int[np.ndarray, " records"] | None
    """1-based line numbers; None when no line is blank, so that record i is line i + 1."""


def build_index(path: Path) -> LineIndex:
    """Reads a file once, block by block; lines end at \\n only (U+2028 and \\r inside a string end nothing)."""
    starts, doubtful = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    offset = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            data = np.frombuffer(block, np.uint8)
            after = np.flatnonzero(data == 10) + 1
            starts.append(after + offset)
            # Only a line that starts with white space, or whose start is not in this block, can be blank.
            known = after[after < len(data)]
            doubtful.append(known[_WHITE[data[known]]] + offset)
            if len(known) < len(after):
                doubtful.append(after[-1:] + offset)
            offset += len(block)
        start = np.concatenate(starts)
        length = np.diff(start, append=offset + 1) - 1
        keep = np.ones(len(start), bool)
        for i in np.searchsorted(start, np.concatenate(doubtful)):
            keep[i] = bool(os.pread(file.fileno(), int(length[i]), int(start[i])).strip())
    if int(length.max()) >= 1 << 32:
        raise RecordError([Problem(rule="damaged-file", message="a line is longer than 4 GiB", file=str(path))])
    last_is_empty = not length[-1]  # the file ends with a line end: no line follows it
    lines = len(start) - last_is_empty
    return LineIndex(
        starts=start[keep],
        lengths=length[keep].astype(np.uint32),
        numbers=None if keep[:lines].all() else np.flatnonzero(keep) + 1,
    )


_WHITE = np.isin(np.arange(256), list(b" \t\r\n"))
"""By byte: is it white space?"""


class JsonlSource(FileSource):
    """Random access to a JSON lines file. The index is built at first use, by one pass; no record is kept in memory.

    Reads with `pread`, not a memory map: a file truncated under a map kills the process, here it is an error.
    """

    def __init__(self, path: str | os.PathLike[str], *, shown_as: str | os.PathLike[str] | None = None):
        """`shown_as` names the file in messages, where what is read is a decompressed copy."""
        super().__init__(path)
        self.name = str(shown_as or path)
        self._descriptor: int | None = None

    @functools.cached_property
    def index(self) -> LineIndex:
        """Index of each record's line."""
        self.check_format()
        return build_index(self.path)

    def check_format(self) -> None:
        """Raises `RecordError` when the first bytes show that the file is not UTF-8 JSON lines."""
        with self.text_path.open("rb") as file:
            foreign = foreign_format(file.read(4096))
        if foreign:
            raise RecordError([Problem(rule=foreign[0], message=foreign[1], file=self.name, line=1)])

    @property
    def text_path(self) -> Path:
        """The file of plain JSON lines."""
        return self.pins[0].path

    def __len__(self) -> int:
        return len(self.index.starts)

    def line(self, i: SupportsIndex) -> int:
        """1-based line of record i."""
        numbers = self.index.numbers
        return int(i) + 1 if numbers is None else int(numbers[i])

    def raw(self, i: SupportsIndex) -> bytes:
        """The bytes of record i's line, without its line end."""
        i = range(len(self))[i]
        start, length = int(self.index.starts[i]), int(self.index.lengths[i])
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        data = os.pread(self._descriptor, length, start)
        if len(data) != length:
            raise UserError(f"{self.name} became shorter while it was in use; put the old file back, or start again")
        return data

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        value, findings = parse_record(self.raw(i))
        if findings:
            raise self.error(i, *findings)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}
