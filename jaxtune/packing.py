"""Variable-length examples into fixed rows; the batch contract that the plan, the pipeline and the step share."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids of one conversation; `loss_weights[i]` is the weight of predicting `tokens[i]` (aligned before the shift)."""

    tokens: Int[np.ndarray, " length"]
    loss_weights: Float[np.ndarray, " length"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of packed examples. Leading axes may be [rows] or [micro_batches, rows]; host batches hold NumPy arrays."""

    tokens: Int[jax.Array | np.ndarray, "*rows seq"]
    """Token ids; the value under padding is irrelevant."""
    loss_weights: Float[jax.Array | np.ndarray, "*rows seq"]
    """Weight of predicting this token, aligned with the token itself. 0 at padding and at the first token of a segment."""
    segment_ids: Int[jax.Array | np.ndarray, "*rows seq"]
    """1, 2, ... for the examples of a row; 0 is padding."""
    positions: Int[jax.Array | np.ndarray, "*rows seq"]
    """Position inside the segment, restarting at 0."""
    task_ids: Int[jax.Array | np.ndarray, "*rows seq"]
    """Index of the token's task; 0 under padding."""
