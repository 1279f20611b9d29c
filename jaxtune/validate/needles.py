"""Search of large blocks of text for many strings at once."""

from collections.abc import Iterable

import numpy as np


class Needles:
    """Strings to look for in large blocks: only where the first two bytes of one stand is it compared in full."""

    def __init__(self, strings: Iterable[str]):
        self._by_start: dict[bytes, list[str]] = {}
        for string in sorted(filter(None, strings)):
            self._by_start.setdefault(string.encode()[:2], []).append(string)
        self._second = {start[0]: np.zeros(256, bool) for start in self._by_start}
        for start in self._by_start:
            self._second[start[0]][start[1] if len(start) > 1 else slice(None)] = True

    def found_in(self, block: bytes) -> list[str]:
        """Needles that the block holds."""
        data = np.frombuffer(block + b"\0", np.uint8)
        found: dict[str, None] = {}
        for first, second in self._second.items():
            places = np.flatnonzero(data[:-1] == first)
            for place in places[second[data[places + 1]]].tolist():
                for start in (block[place : place + 2], block[place : place + 1]):
                    maybe = self._by_start.get(start, ())
                    found |= {string: None for string in maybe if block.startswith(string.encode(), place)}
        return list(found)
