"""Lengths of the examples: counts of tokens by task, example and template, looked up in bulk."""

import dataclasses
import hashlib
import mmap
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.mixture.settings import MixingUnit

Counts = Mapping[str, Int[np.ndarray, "_ _"]]
"""By task, a number for each usable example (rows) under each template (columns)."""

_BYTES_PER_EXAMPLE = 12
_SMALL_TABLE = 2**26
"""Bytes of a flat table of lengths that are never too many."""


class LengthTable:
    """Counts of tokens, loss tokens and response tokens by (task, example, template).

    Copied into one flat table where that takes at most 12 bytes an example (or little at all), which makes looking up
    many tasks quick; otherwise read from the arrays given. Memory-mapped arrays pickle as the name of their file.
    """

    def __init__(self, *tables: Counts):
        """Tokens, loss tokens and, where prompts carry weight, response tokens. Names are in the order of the first."""
        self.names = tuple(tables[0])
        self._tables = [[table[name] for name in self.names] for table in tables]
        for name, *arrays in zip(self.names, *self._tables, strict=True):
            if len(shapes := {a.shape for a in arrays}) > 1:
                raise ValueError(f"task {name!r}: the lengths must agree in shape, got {sorted(shapes)}")
        self._flatten()

    @property
    def tokens(self) -> list[Int[np.ndarray, "_ _"]]:
        """Tokens of each example under each template, by task."""
        return self._tables[0]

    @property
    def loss_tokens(self) -> list[Int[np.ndarray, "_ _"]]:
        """Tokens that carry loss weight of each example under each template, by task."""
        return self._tables[1]

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each task."""
        return {name: len(counts) for name, counts in zip(self.names, self.tokens, strict=True)}

    @property
    def mean_tokens(self) -> dict[str, float]:
        """Mean tokens of an example of each task, over its templates; 1 where there is no example."""
        return {n: float(np.mean(a)) if len(a) else 1.0 for n, a in zip(self.names, self.tokens, strict=True)}

    def unit_totals(self, unit: MixingUnit) -> dict[str, Fraction]:
        """Mixing units that each task holds, a mean over its templates."""
        if unit is MixingUnit.EXAMPLES:
            return {task: Fraction(size) for task, size in self.sizes.items()}
        counts = self.tokens if unit is MixingUnit.TOKENS else self.loss_tokens
        return {
            task: Fraction(int(np.sum(a, dtype=np.int64)), a.shape[1])
            for task, a in zip(self.names, counts, strict=True)
        }

    def _flatten(self) -> None:
        examples, entries = sum(len(a) for a in self.tokens), sum(a.size for a in self.tokens)
        dtype = np.dtype(np.uint16 if self.longest < 2**16 else np.int32)
        columns = len(self._tables)
        self._flat = None
        if columns * entries * dtype.itemsize <= max(_BYTES_PER_EXAMPLE * examples, _SMALL_TABLE):
            self._flat = np.empty((entries, columns), dtype)
            for column, arrays in enumerate(self._tables):
                np.concatenate([a.reshape(-1) for a in arrays], out=self._flat[:, column], casting="unsafe")
            self._starts = np.cumsum([0] + [a.size for a in self.tokens])
            self._templates = np.array([a.shape[1] for a in self.tokens])

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((int(a.max()) for a in self.tokens if a.size), default=0)

    def look_up(
        self, task: Int[np.ndarray, " k"], example: Int[np.ndarray, " k"], template: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, "k 3"]:
        """Tokens, loss tokens and response tokens of each (task, example, template)."""
        if self._flat is not None:
            found = self._flat[self._starts[task] + example * self._templates[task] + template].astype(np.int64)
        else:
            found = np.empty((len(task), len(self._tables)), np.int64)
            by_task = np.argsort(task, kind="stable")
            ids, starts = np.unique(task[by_task], return_index=True)
            for i, part in zip(ids.tolist(), np.split(by_task, starts[1:]), strict=True):
                for column, arrays in enumerate(self._tables):
                    found[part, column] = arrays[i][example[part], template[part]]
        return found if found.shape[1] == 3 else found[:, [0, 1, 1]]

    def check(self, seq_len: int) -> None:
        """Raise UserError if an example does not fit a row."""
        long = [name for name, a in zip(self.names, self.tokens, strict=True) if a.size and int(a.max()) > seq_len]
        if long:
            raise UserError(
                f"examples of {', '.join(long)} are longer than rows of {seq_len} tokens; "
                "raise seq_len, or choose a length policy that drops or truncates"
            )

    def digests(self) -> list[list[str]]:
        """Fingerprint of each task's tokens and loss tokens."""
        return [[_digest(a), _digest(b)] for a, b in zip(*self._tables[:2], strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "_tables": [[_packed(a) for a in table] for table in self._tables]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.names = state["names"]
        self._tables = [[_unpacked(a) for a in table] for table in state["_tables"]]
        self._flatten()


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array, "<i4").data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _MappedFile:
    """Where a memory-mapped array lies."""

    filename: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _packed(array: np.ndarray) -> np.ndarray | _MappedFile:
    """The place of an array in a file, if it is a view of a whole memory-mapped file; else the array."""
    base = array
    while isinstance(base, np.ndarray) and not (isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap)):
        base = base.base
    if not isinstance(base, np.memmap) or not array.size or not array.flags.c_contiguous:
        return array
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0] + base.offset
    return _MappedFile(str(base.filename), array.dtype.str, array.shape, offset)


def _unpacked(array: np.ndarray | _MappedFile) -> np.ndarray:
    if isinstance(array, _MappedFile):
        return np.memmap(array.filename, array.dtype, "r", array.offset, array.shape)
    return array
