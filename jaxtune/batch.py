"""Variable-length examples into fixed rows; the batch contract that the plan, the pipeline and the step share."""

import dataclasses
import enum
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxtune.errors import UserError


class PackPolicy(enum.Enum):
    """How examples share rows."""

    BEST_FIT = "best_fit"
    """Best fit, longest first, within windows of consecutive examples."""
    PADDED = "padded"
    """One example a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids of one conversation; `loss_weights[i]` is the weight of predicting `tokens[i]` (before the shift)."""

    tokens: Int[np.ndarray, " length"]
    loss_weights: Float[np.ndarray, " length"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of packed examples; leading axes [rows] or [micro_batches, rows]. Host batches hold NumPy arrays."""

    tokens: Int[jax.Array | np.ndarray, "*rows seq"]
    """Token ids; the value under padding is irrelevant."""
    loss_weights: Float[jax.Array | np.ndarray, "*rows seq"]
    """Weight of predicting this token, aligned with the token; 0 at padding and at the first token of a segment."""
    segment_ids: Int[jax.Array | np.ndarray, "*rows seq"]
    """1, 2, ... for the examples of a row; 0 is padding."""
    positions: Int[jax.Array | np.ndarray, "*rows seq"]
    """Position inside the segment, restarting at 0."""
    task_ids: Int[jax.Array | np.ndarray, "*rows seq"]
    """Index of the token's task; 0 under padding."""


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


def assemble(rows: Sequence[Sequence[tuple[Example, int]]], seq_len: int, *, num_rows: int | None = None) -> Batch:
    """Batch of the rows' (example, task id) pairs laid end to end; rows beyond those given are padding.

    Raises ValueError where a row overflows: the plan and the examples disagree.
    """
    shape = (len(rows) if num_rows is None else num_rows, seq_len)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        task_ids=np.zeros(shape, np.int32),
    )
    ramp = np.arange(seq_len, dtype=np.int32)
    for r, row in enumerate(rows):
        start = 0
        for segment, (example, task_id) in enumerate(row, start=1):
            stop = start + len(example.tokens)
            if stop > seq_len:
                raise ValueError(f"row {r} holds {stop} tokens or more, but rows are {seq_len} long")
            batch.tokens[r, start:stop] = example.tokens
            batch.loss_weights[r, start + 1 : stop] = example.loss_weights[1:]
            batch.segment_ids[r, start:stop] = segment
            batch.positions[r, start:stop] = ramp[: stop - start]
            batch.task_ids[r, start:stop] = task_id
            start = stop
    return batch


def utilisation(batch: Batch) -> float:
    """Share of the slots that hold tokens."""
    return float((np.asarray(batch.segment_ids) > 0).mean())
