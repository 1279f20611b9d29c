"""Rows of a plan: how long they are, how many make a step, and which examples share one."""

import dataclasses
import enum

import numpy as np
from jaxtyping import Int

from jaxtune.errors import UserError

WINDOW = 4096
"""Consecutive examples that are packed together."""


class PackPolicy(enum.Enum):
    """Policy by which examples share rows."""

    BEST_FIT = "best_fit"
    """Best fit, longest first, within windows of consecutive examples."""
    PADDED = "padded"
    """One example a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Rows of a plan: their length, how many make a step, and how examples share them."""

    seq_len: int
    """Tokens a row holds."""
    rows_per_step: int
    """Rows of one optimizer step, or of one evaluation batch."""
    packing: PackPolicy = PackPolicy.BEST_FIT
    window: int = WINDOW
    """Consecutive examples that are packed together; none shares a row with one of another window."""


def best_fit(lengths: Int[np.ndarray, " n"], seq_len: int) -> Int[np.ndarray, " n"]:
    """Row of each example under best-fit-decreasing: longest first, each into the fullest row that holds it.

    Works on the histogram of lengths: examples of one length, and rows with one amount of room, are handled together,
    so the cost grows with the number of distinct lengths. Rows are numbered in the order in which they were opened.
    Raises UserError for an example longer than the row.
    """
    if len(lengths) and int(lengths.max()) > seq_len:
        raise UserError(
            f"an example of {int(lengths.max())} tokens does not fit rows of {seq_len}; "
            "raise seq_len, or choose a length policy that drops or truncates"
        )
    rows: list[int] = []
    room: dict[int, list[int]] = {}  # rows by the room left in them
    rooms = 0  # bit r is set where room[r] is not empty
    opened = 0
    values, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            if fitting := rooms >> length:
                left = length + (fitting & -fitting).bit_length() - 1
                candidates = room[left]
                each = left // length
                taken = min(-(-count // each), len(candidates))
                chosen = candidates[-taken:]
                del candidates[-taken:]
                if not candidates:
                    rooms ^= 1 << left
            else:
                left = seq_len
                each = left // length
                taken = -(-count // each)
                chosen = list(range(opened, opened + taken))
                opened += taken
            last = min(each, count - each * (taken - 1))  # examples in the last of the chosen rows
            rows += [row for row in chosen[:-1] for _ in range(each)] if each > 1 else chosen[:-1]
            rows += chosen[-1:] * last
            count -= each * (taken - 1) + last
            for group, after in ((chosen[:-1], left - each * length), (chosen[-1:], left - last * length)):
                if group and after:
                    room.setdefault(after, []).extend(group)
                    rooms |= 1 << after
    out = np.empty(len(lengths), np.int64)
    out[np.argsort(-lengths, kind="stable")] = rows
    return out
