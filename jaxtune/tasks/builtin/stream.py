"""Random streams with an address: the same draws on every platform, in every version of Python and NumPy."""

from collections.abc import MutableSequence, Sequence
from typing import TypeVar

from jaxtune.storage.fingerprints import hash64

Item = TypeVar("Item")

_MASK = (1 << 64) - 1


class Stream:
    """Draws of splitmix64 (Steele, Lea and Flood 2014), seeded by an address such as ("qa", "train", 17).

    Streams of different addresses are independent, and no draw depends on what another stream has drawn.
    """

    def __init__(self, *address: str | int):
        self._state = hash64("/".join(str(part) for part in address).encode())

    def draw(self) -> int:
        """The next 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer of [0, n)."""
        return (self.draw() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer of [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items, in random order."""
        pool = list(items)
        for i in range(count):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffle(self, items: MutableSequence[Item]) -> None:
        """Brings the items into random order, in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
