"""Equal and nearly equal texts among very many, in bounded memory: 48 bytes a text, in a temporary file.

A text is a record's messages joined by `MESSAGE`. Words are runs of letters and digits without regard to case; each
sign of arithmetic and code starts one, and each character of scripts written without spaces. Two texts are near
duplicates when their `similarity` is at least `THRESHOLD`. Candidates share a band of a MinHash signature over three
consecutive words, and the MinHash of the last message's words (Broder 1997; 6 bands of 4 rows find a pair that has one
answer with probability 0.96 at 0.8, and 0.998 at 0.9). A hash alone proves nothing: compare candidates before reporting
them.
"""

import dataclasses
import functools
import re
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int, UInt, UInt8, UInt32, UInt64

MESSAGE, RECORD = "\x1f", "\x1e"
"""Separators between the messages of a text, and between texts."""

SHINGLE = 3
"""Consecutive words that are compared."""

THRESHOLD = 0.8
"""`similarity` from which two texts count as nearly equal."""

BANDS, ROWS = 6, 4

DTYPE = np.dtype([("text", "<u8"), ("prompt", "<u8"), ("id", "<u8"), ("bands", "<u4", (BANDS,))])
"""What is kept of a text; 0 means that there is nothing to compare."""


def _splitmix(n: int) -> UInt64[np.ndarray, " n"]:
    """The first n outputs of splitmix64 from seed 0."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_CONSTANTS = _splitmix(5) | np.uint64(1)
_MULTIPLIERS = (_splitmix(BANDS * ROWS) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


_SIGNS = b"+*/=<>^%&|~#@$\\"
"""Fifteen characters that tell one sum or program from another; folded to the bytes from 33 to 47."""


def _fold(byte: int) -> int:
    """Small letters, digits and signs for words, 1 for control characters that do not belong in text, else a space."""
    if byte in _SIGNS:
        return 33 + _SIGNS.index(byte)
    if 65 <= byte <= 90:
        return byte + 32
    if 48 <= byte <= 57 or 97 <= byte <= 122 or byte >= 128 or byte in (ord(MESSAGE), ord(RECORD)):
        return byte
    return 1 if (byte < 32 and byte not in b"\t\n\r") or byte == 127 else 32


_FOLD = bytes(map(_fold, range(256)))
_PREFIX = np.array([(1 << (8 * k)) - 1 for k in range(8)] + [2**64 - 1], np.uint64)
"""By length: which bytes of eight belong to a word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sketch:
    """Sketch of some texts: the hashes that are kept of them."""

    rows: np.ndarray
    """One `DTYPE` element a text, without its id."""
    plain: bool
    """Whether no text holds a control character other than white space."""


def sketch(joined: bytes, texts: int, messages: int) -> Sketch:
    """Hashes and signatures of texts joined by `RECORD`, as UTF-8; `messages` is their number in all texts together."""
    rows = np.zeros(texts, DTYPE)
    if not texts:
        return Sketch(rows=rows, plain=True)
    folded = joined.translate(_FOLD)
    data = np.frombuffer(folded, np.uint8)
    ends = np.flatnonzero(data == ord(RECORD))
    inner = np.flatnonzero(data == ord(MESSAGE))
    if b"\1" in folded or len(ends) != texts - 1 or len(inner) != messages - texts:
        return Sketch(rows=rows, plain=False)
    at, hashes = _words(folded)
    if at.size:
        starts = np.concatenate([[0], ends + 1])
        stops = np.append(ends, len(data))
        answers = _last_before(inner, stops, starts)
        _hash_texts(rows, hashes, *(np.searchsorted(at, edge) for edge in (starts, answers, stops)))
    return Sketch(rows=rows, plain=True)


def _last_before(
    inner: Int[np.ndarray, " separators"], stops: Int[np.ndarray, " texts"], starts: Int[np.ndarray, " texts"]
) -> Int[np.ndarray, " texts"]:
    """Where the last message of each text starts."""
    k = np.searchsorted(inner, stops) - 1
    last = np.append(inner, -1)[k]
    return np.where((k >= 0) & (last >= starts), last, starts)


def _words(folded: bytes) -> tuple[Int[np.ndarray, " words"], UInt64[np.ndarray, " words"]]:
    """Where each word starts, and its hash (of its length and first eight bytes)."""
    padded = folded + b" " * 8
    data: UInt8[np.ndarray, " bytes"] = np.frombuffer(padded, np.uint8)
    inside: Bool[np.ndarray, " bytes"] = data > 32
    first = inside.copy()
    first[1:] &= ~inside[:-1]
    first |= data >= 0xE0  # the lead byte of a character of three or four bytes
    first |= inside & (data < 48)  # a sign
    at = np.flatnonzero(first)
    stop = ~inside
    stop |= first
    length = np.flatnonzero(inside[:-1] & stop[1:]) + 1 - at
    hashes = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))[at]
    hashes &= _PREFIX[np.minimum(length, 8)]
    hashes += length.astype(np.uint64) * _CONSTANTS[0]
    hashes *= _CONSTANTS[1]
    hashes ^= hashes >> np.uint64(31)
    return at, hashes


def _hash_texts(
    rows: np.ndarray,
    words: UInt64[np.ndarray, " words"],
    start: Int[np.ndarray, " texts"],
    answer: Int[np.ndarray, " texts"],
    stop: Int[np.ndarray, " texts"],
) -> None:
    """Fills the rows, given each text's first word, its last message's first word, and the word past its end.

    The hash of a text is the sum of its words': texts of the same words in another order share it.
    """
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])
    rows["text"] = total[stop] - total[start]
    rows["prompt"] = total[answer] - total[start]
    shingles = words * _CONSTANTS[2]
    shingles[:-1] += words[1:] * _CONSTANTS[3]
    shingles[:-2] += words[2:]
    shingles ^= shingles >> np.uint64(29)
    shingles *= _CONSTANTS[4]
    low = (shingles >> np.uint64(32)).astype(np.uint32)
    long_enough = stop - start >= SHINGLE
    for back in range(1, SHINGLE):  # a shingle that runs into the next text counts as its own text's first
        low[stop[long_enough] - back] = low[start[long_enough]]
    if long_enough.any():
        with_words = np.flatnonzero(stop > start)
        bands = _bands(low, start[with_words]) ^ _answers(words, answer[with_words], stop[with_words])
        rows["bands"][long_enough] = np.maximum(bands, 1).T[long_enough[with_words]]


def _bands(
    shingles: UInt32[np.ndarray, " words"], start: Int[np.ndarray, " texts"]
) -> UInt32[np.ndarray, "bands texts"]:
    """MinHash of each text's shingles under `BANDS * ROWS` hash functions, folded to one number a band."""
    folded = np.zeros((BANDS, len(start)), np.uint32)
    scaled = np.empty_like(shingles)
    for k, multiplier in enumerate(_MULTIPLIERS):
        np.multiply(shingles, multiplier, out=scaled)
        band = folded[k // ROWS]
        band ^= np.minimum.reduceat(scaled, start)
        band *= np.uint32(0x9E3779B1)
        band ^= band >> np.uint32(15)
    return folded


def _answers(
    words: UInt64[np.ndarray, " words"], answer: Int[np.ndarray, " texts"], stop: Int[np.ndarray, " texts"]
) -> UInt32[np.ndarray, "bands texts"]:
    """MinHash of the words of each text's last message, one for the even bands and one for the odd; 0 without words."""
    low = np.append((words >> np.uint64(32)).astype(np.uint32), np.uint32(0))
    edges = np.ravel(np.column_stack([answer, stop]))
    values = np.empty((BANDS, len(answer)), np.uint32)
    for k in range(2):
        values[k::2] = np.where(answer < stop, np.minimum.reduceat(low * _MULTIPLIERS[k], edges)[::2], 0)
    return values


class Sketches:
    """Rows of very many texts, numbered from 0 as they are added; a temporary file for the length of a `with` block."""

    def __init__(self):
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed on leaving the context
        self._length = 0

    def __enter__(self) -> "Sketches":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: np.ndarray) -> None:
        self._file.write(rows.tobytes())
        self._length += len(rows)

    def __len__(self) -> int:
        return self._length

    def groups(self, field: str) -> Iterator[Int[np.ndarray, " members"]]:
        """Numbers of the texts that share a value of a field, for each value that two or more share; ascending."""
        members, values = self._shared(self._column(field, None))
        if members.size:
            order = np.lexsort((members, values))
            edges = np.flatnonzero(np.diff(values[order])) + 1
            yield from sorted(np.split(members[order], edges), key=lambda group: int(group[0]))

    def pairs(self) -> Int[np.ndarray, "pairs 2"]:
        """Texts that share a band, as (earlier, later), in the order of the later ones.

        Of many that share a band, each is paired with its neighbour when they are sorted by the next band: those that
        share that as well, as near duplicates often do, stand together.
        """
        found = [np.empty((0, 2), np.int64)]
        following = self._column("bands", 0)
        for band in reversed(range(BANDS)):
            values = self._column("bands", band)
            members, shared = self._shared(values)
            order = np.lexsort((members, following[members], shared))
            members, shared = members[order], shared[order]
            same = np.flatnonzero(shared[1:] == shared[:-1])
            found.append(np.column_stack([members[same], members[same + 1]]))
            following = values
        pairs = np.sort(np.concatenate(found), axis=1)
        return np.unique(pairs[:, ::-1], axis=0)[:, ::-1]

    @staticmethod
    def _shared(
        values: UInt[np.ndarray, " texts"],
    ) -> tuple[Int[np.ndarray, " members"], UInt[np.ndarray, " members"]]:
        """Numbers and values of the texts whose value another text has; 0 is no value."""
        ordered = np.sort(values[values != 0])
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        if not shared.size:
            return np.empty(0, np.int64), np.empty(0, values.dtype)
        slots = np.minimum(np.searchsorted(shared, values), len(shared) - 1)
        members = np.flatnonzero(shared[slots] == values)
        return members, values[members]

    def _column(self, field: str, band: int | None) -> UInt[np.ndarray, " texts"]:
        self._file.flush()
        self._file.seek(0)
        parts = []
        while block := self._file.read(DTYPE.itemsize << 16):
            column = np.frombuffer(block, DTYPE)[field]
            parts.append(np.ascontiguousarray(column if band is None else column[:, band]))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def words(text: str) -> tuple[bytes, ...]:
    """The words of a text, as they are compared."""
    return tuple(_WORD.findall(text.encode(errors="replace").translate(_FOLD)))


_WORD = re.compile(rb"[\x21-\x2f\xe0-\xff][0-9a-z\x80-\xdf]*|[0-9a-z\x80-\xdf]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """A text as it is compared."""

    all: tuple[bytes, ...]
    answer: frozenset[bytes]
    """Of the last message."""

    @classmethod
    def of(cls, text: str) -> "Words":
        prompt, _, answer = text.rpartition(MESSAGE)
        said = words(answer)
        return cls(all=words(prompt) + said, answer=frozenset(said))

    @functools.cached_property
    def shingles(self) -> frozenset[tuple[bytes, ...]]:
        """Sets of consecutive words."""
        return frozenset(zip(*(self.all[k:] for k in range(SHINGLE)), strict=False))


def similarity(left: Words, right: Words) -> float:
    """Similarity of two texts, from 0 to 1: the Jaccard index (shared / all) of their sets of three consecutive words.

    It is 0 when the last messages share less than half of their words: two questions about one long passage are two
    examples, however long the passage is.
    """
    if left.all == right.all:
        return 1.0
    if _jaccard(left.answer, right.answer) < 0.5:
        return 0.0
    return _jaccard(left.shingles, right.shingles)


def _jaccard(left: frozenset[Any], right: frozenset[Any]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if left or right else 1.0
