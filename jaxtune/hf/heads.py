"""Tensors that hold several projections group of heads by group of heads."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByHead:
    """Rows of a stored matrix: `groups` times the same sections, each with rows of one of `parts`.

    A part's rows are those of its first section in all groups, then those of its second, and so on.
    """

    parts: tuple[str, ...]
    """Paths of the parameters in a layer."""
    groups: int
    sections: tuple[tuple[int, int], ...]
    """Number of the part, and rows of it in one group."""

    def rows(self) -> Sequence[np.ndarray]:
        """The rows of each part, in its own order."""
        widths = [width for _, width in self.sections]
        numbers = np.arange(self.groups * sum(widths)).reshape(self.groups, -1)
        found: list[list[np.ndarray]] = [[] for _ in self.parts]
        for (part, _), rows in zip(self.sections, np.split(numbers, np.cumsum(widths)[:-1], axis=1), strict=True):
            found[part].append(rows.reshape(-1))
        return [np.concatenate(rows) for rows in found]
