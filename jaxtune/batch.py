"""Examples, and batches of rows that hold them: the contract that tokenising, the pipeline and the step share."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int


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


def assemble(rows: Sequence[Sequence[tuple[Example, int]]], seq_len: int, *, num_rows: int | None = None) -> Batch:
    """Batch of the rows' (example, task id) pairs laid end to end; rows beyond those given are padding.

    A row of 10 slots with an example of 4 tokens (a to d, of task 0) and one of 3 (x to z, of task 2); a and b, and x,
    are the prompts:

        tokens         a  b  c  d  x  y  z  0  0  0
        loss_weights   0  0  1  1  0  1  1  0  0  0      weight of predicting the token above it
        segment_ids    1  1  1  1  2  2  2  0  0  0      a token sees its own segment only; 0 is padding
        positions      0  1  2  3  0  1  2  0  0  0      restart at 0, as if the example were alone
        task_ids       0  0  0  0  2  2  2  0  0  0

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


def on_prompts(batch: Batch) -> Batch:
    """The host batch with weight 1 on every target that had none, and 0 on the others."""
    target = (np.asarray(batch.segment_ids) > 0) & (np.asarray(batch.positions) > 0)
    weights = (target & (np.asarray(batch.loss_weights) == 0)).astype(np.float32)
    return dataclasses.replace(batch, loss_weights=weights)


def count_batch(
    batch: Batch, num_tasks: int, prompt_loss_weight: float = 0.0
) -> dict[str, Int[np.ndarray, " num_tasks"]]:
    """Examples, tokens, loss tokens and response tokens of a host batch by task id, read from its arrays alone.

    Responses are the tokens that weigh other than prompts do.
    """
    task, real = np.asarray(batch.task_ids), np.asarray(batch.segment_ids) > 0
    weights = np.asarray(batch.loss_weights)
    first = real & (np.asarray(batch.positions) == 0)
    later = real & ~first
    counted = {
        "examples": first,
        "tokens": real,
        "loss_tokens": later & (weights > 0),
        "response_tokens": later & (weights != np.float32(prompt_loss_weight)),
    }
    return {name: np.bincount(task[chosen], minlength=num_tasks) for name, chosen in counted.items()}
