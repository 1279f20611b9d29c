"""The global order as a pure function of (seed, position): interleaving of tasks, permutations, choice of templates.

Everything is computed from integer hashes, element by element, so any stretch of the order can be had alone, on any
platform and NumPy version.
"""

import abc
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_MULTIPLIERS = tuple(
    np.uint64(m)
    for m in (
        0xBF58476D1CE4E5B9,
        0x94D049BB133111EB,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
        0x8EBC6AF09C88C6E3,
    )
)
_HEAVY = 32


def splitmix64(x: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Bijective hash of 64 bits (Steele, Lea and Flood, OOPSLA 2014), element by element."""
    z = x + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stream_key(seed: int, purpose: str, name: str) -> int:
    """64-bit key of one random stream: by seed, by what it decides, by the task's name."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def keyed(key: UInt64[np.ndarray, " k"], counter: Int[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Hash of (key, counter), element by element."""
    return splitmix64(key + counter.astype(np.uint64) * _GOLDEN)


def permute(
    key: UInt64[np.ndarray, " k"], size: Int[np.ndarray, " k"], slot: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " k"]:
    """Image of `slot` under the permutation of range(size) that `key` names; a bijection at every size.

    Keyed rounds of add, odd multiplication and xor-shift are bijections of the next power of two; values outside the
    range are mapped again until they fall inside (cycle walking), at most twice on average.
    """
    out = slot.astype(np.uint64)
    size = size.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        out[todo] = _mix_bits(key[todo], _bit_width(size[todo]), out[todo])
        todo = todo[out[todo] >= size[todo]]
    return out.astype(np.int64)


def permutation(seed: int, name: str, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """Order in which `epoch` visits the examples of the task `name`."""
    slots = np.arange(size)
    key = keyed(np.full(size, stream_key(seed, "epoch", name), np.uint64), np.full(size, epoch))
    return permute(key, np.full(size, size), slots)


def _bit_width(size: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Bits of the numbers below `size`, at least 1."""
    return np.maximum(np.frexp((size - np.uint64(1)).astype(np.float64))[1], 1).astype(np.uint64)


def _mix_bits(
    key: UInt64[np.ndarray, " k"], width: UInt64[np.ndarray, " k"], x: UInt64[np.ndarray, " k"]
) -> UInt64[np.ndarray, " k"]:
    """Keyed bijection of the numbers of `width` bits."""
    mask = (np.uint64(1) << width) - np.uint64(1)
    half = (width + np.uint64(1)) >> np.uint64(1)
    for i, multiplier in enumerate(_ROUND_MULTIPLIERS):
        round_key = key * multiplier
        x = (x + (round_key >> np.uint64(24))) * ((round_key >> np.uint64(40)) | np.uint64(1)) & mask
        x = x ^ (x >> (half if i % 2 else np.uint64(1)))
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive positions of an order: what stands at each."""

    task: Int[np.ndarray, " k"]
    """Index of the task."""
    use: Int[np.ndarray, " k"]
    """How many examples of this task stand before it."""
    epoch: Int[np.ndarray, " k"]
    """Full passes over the task before it."""
    example: Int[np.ndarray, " k"]
    template: Int[np.ndarray, " k"]


class Order(abc.ABC):
    """A sequence of (task, example, template), any stretch of which can be had alone."""

    total: int

    @abc.abstractmethod
    def stretch(self, start: int, stop: int) -> Stretch:
        """Positions `start` to `stop`."""


class SequentialOrder(Order):
    """Every example once, in file order with its first template, task after task."""

    def __init__(self, sizes: Int[np.ndarray, " n"]):
        self._ends = np.cumsum(sizes)
        self.total = int(self._ends[-1])

    def stretch(self, start: int, stop: int) -> Stretch:
        position = np.arange(start, stop)
        task = np.searchsorted(self._ends, position, side="right")
        example = position - np.append(0, self._ends)[task]
        zero = np.zeros_like(position)
        return Stretch(task=task, use=example, epoch=zero, example=example, template=zero)


class MixedOrder(Order):
    """Tasks interleaved by their counts; within a task a new permutation of its examples every epoch.

    With n' examples of a task taking part, its use j is the example `permutation(seed, task, epoch)[slot]`, where
    `epoch, slot = divmod(j, n')`. An example meets its templates in an order of its own, all before it meets one again.
    Streams are keyed by the task's name: adding a task leaves the order within the others as it was.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        counts: Int[np.ndarray, " n"],
        sizes: Int[np.ndarray, " n"],
        usable: Int[np.ndarray, " n"],
        templates: Int[np.ndarray, " n"],
        seed: int,
        permuted_subset: bool = True,
        earlier: Sequence[Int[np.ndarray, " n"]] = (),
    ):
        """`earlier`: counts of the shorter orders that this one begins with, none smaller than the one before."""

        def keys(purpose: str) -> UInt64[np.ndarray, " n"]:
            return np.array([stream_key(seed, purpose, name) for name in names], np.uint64)

        self._parts = []
        for number, (before, after) in enumerate(itertools.pairwise([np.zeros_like(counts), *earlier, counts])):
            purpose = f"interleave {number}" if number else "interleave"
            self._parts.append((before, Interleaving(after - before, keys(purpose))))
        self._ends = np.cumsum([0, *(part.total for _, part in self._parts)])
        self.total = int(self._ends[-1])
        self._epoch_keys, self._subset_keys, self._template_keys = keys("epoch"), keys("subset"), keys("template")
        self._sizes, self._usable, self._templates = sizes, usable, templates
        self._subset = permuted_subset and bool((usable < sizes).any())

    def stretch(self, start: int, stop: int) -> Stretch:
        task, use = self._positions(start, stop)
        usable = self._usable[task]
        epoch, slot = np.divmod(use, usable)
        example = permute(keyed(self._epoch_keys[task], epoch), usable, slot)
        if self._subset:
            some = np.flatnonzero(usable < self._sizes[task])
            key = keyed(self._subset_keys[task[some]], np.zeros_like(some))
            example[some] = permute(key, self._sizes[task[some]], example[some])
        template = self._template(task, example, epoch)
        return Stretch(task=task, use=use, epoch=epoch, example=example, template=template)

    def _positions(self, start: int, stop: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Task index and use number at the positions `start` to `stop`, which may lie in several parts."""
        found = []
        for (before, part), first in zip(self._parts, self._ends[:-1].tolist(), strict=True):
            low, high = max(start - first, 0), min(stop - first, part.total)
            if low < high:
                task, use = part.positions(low, high)
                found.append((task, use + before[task]))
        task, use = (np.concatenate(column) for column in zip(*found, strict=True))
        return task, use

    def _template(
        self, task: Int[np.ndarray, " k"], example: Int[np.ndarray, " k"], epoch: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, " k"]:
        template = np.zeros_like(task)
        some = np.flatnonzero(self._templates[task] > 1)
        if some.size:
            task, number = task[some], self._templates[task[some]]
            round_, turn = np.divmod(epoch[some], number)
            key = keyed(keyed(self._template_keys[task], example[some]), round_)
            template[some] = permute(key, number, turn)
        return template


class Interleaving:
    """Sequence of tasks over sum(counts) positions.

    Use j of a task with c uses stands at time (j + u) / c, with u in [0, 1) hashed from (key, j); positions are the
    ranks of the times. So every prefix holds each task's share within a few examples, all of it at the end, and no
    pattern repeats. Tasks below 1/32 of the whole are interleaved among themselves first and stand as one task beside
    the others: otherwise the many roundings of small tasks would add up in the large ones.
    """

    def __init__(self, counts: Int[np.ndarray, " n"], keys: UInt64[np.ndarray, " n"]):
        self.total = int(counts.sum())
        heavy = counts * _HEAVY >= self.total
        self._inner = None
        self._ids = np.arange(len(counts))
        if heavy.any() and not heavy.all() and counts[~heavy].any():
            light = np.flatnonzero(~heavy)
            self._inner = Interleaving(counts[light], keys[light])
            self._inner_ids = light
            self._ids = np.append(np.flatnonzero(heavy), -1)
            counts = np.append(counts[heavy], counts[light].sum())
            keys = np.append(keys[heavy], splitmix64(np.bitwise_xor.reduce(keys[light], keepdims=True)))
        self._counts, self._keys = counts.astype(np.int64), keys

    def positions(self, start: int, stop: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Task index and use number at the positions `start` to `stop`."""
        task, use = self._ranked(start, stop)
        task = self._ids[task]
        if self._inner is not None and (inner := np.flatnonzero(task < 0)).size:
            first = int(use[inner[0]])
            inner_task, use[inner] = self._inner.positions(first, first + len(inner))
            task[inner] = self._inner_ids[inner_task]
        return task, use

    def _ranked(self, start: int, stop: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """The uses ranked `start` to `stop` by time: all uses in a stretch of time that surely holds them, sorted."""
        slack = 8 + 2 * math.isqrt(len(self._counts))
        while True:
            low = (start - slack) / self.total
            high = (stop + slack) / self.total if stop + slack < self.total else 2.0
            task, use, before = self._uses(low, high)
            time = self._times(task, use)
            rank = before + int((time < low).sum())
            keep = np.flatnonzero((time >= low) & (time < high))
            if rank <= start and rank + len(keep) >= stop:
                break
            slack *= 4
        chosen = keep[_stable_order(time[keep])[start - rank : stop - rank]]
        return task[chosen], use[chosen]

    def _uses(self, low: float, high: float) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], int]:
        """Uses that may have times in [low, high), a little more on either side, and how many come before them."""
        first = np.clip(np.floor(self._counts * low).astype(np.int64) - 1, 0, self._counts)
        last = np.clip(np.ceil(self._counts * high).astype(np.int64) + 1, 0, self._counts)
        number = last - first
        ends = np.cumsum(number)
        task = np.repeat(np.arange(len(number)), number)
        use = np.arange(len(task)) + np.repeat(first - (ends - number), number)
        return task, use, int(first.sum())

    def _times(self, task: Int[np.ndarray, " k"], use: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        jitter = (keyed(self._keys[task], use) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (use + jitter) / self._counts[task]


def _stable_order(values: Float[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Ascending order, ties by index; a stable sort only where there are ties, since it is slower."""
    order = np.argsort(values)
    ranked = values[order]
    return np.argsort(values, kind="stable") if (ranked[1:] == ranked[:-1]).any() else order
