"""Rows laid end to end: one strip of tokens per device, without the padding.

Linear layers then pay for tokens only, and attention that walks along a row in blocks passes over everything that is
not the token's own example. Batches of one example a row gain most: often more than half of their slots are padding.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """Places of the tokens of rows [rows, seq] in strips [shards, held]."""

    places: Int[Array, "shards held"]
    """Slot of each token among those of its shard; one past the last where there is none."""
    segment_ids: Int[Array, "shards held"]
    """1, 2, ... along the strip, so that no two examples share one; 0 is padding, which is at the end."""
    left_out: Int[Array, ""]
    """How many tokens did not fit: the caller must raise unless 0."""

    def take(self, values: Shaped[Array, "rows seq"]) -> Shaped[Array, "shards held"]:
        """The tokens' values, and 0 at the end."""
        flat = values.reshape(self.places.shape[0], -1)
        return jax.vmap(lambda row, places: row.at[places].get(mode="fill", fill_value=0))(flat, self.places)


def lay(segment_ids: Int[Array, "rows seq"], *, tokens: int, shards: int) -> Strip:
    """Strips of the tokens (segment not 0) of each of `shards` contiguous groups of rows, in order, `tokens` at most.

        rows    [1, 1, 1, 1, 1]    strip, 9 tokens, one shard
                [1, 1, 2, 0, 0]    segment_ids  [1, 1, 1, 1, 1, 2, 2, 3, 0]
                                   places       [0, 1, 2, 3, 4, 5, 6, 7, 10]

    A row starts a segment of its own, also where the row before is filled to its last slot. No token leaves its group,
    so none changes devices when rows are sharded that way.
    """
    rows, seq = segment_ids.shape
    if rows % shards:
        raise ValueError(f"{rows} rows cannot be split over {shards} shards")
    slots = rows // shards * seq
    held = min(tokens, slots)
    flat = segment_ids.reshape(shards, slots)
    row_starts = jnp.arange(slots)[None] % seq == 0
    starts = (flat != jnp.pad(flat[:, :-1], ((0, 0), (1, 0)))) | row_starts
    strip = Strip(
        places=jax.vmap(lambda row: jnp.nonzero(row != 0, size=held, fill_value=slots)[0])(flat),
        segment_ids=jnp.zeros((shards, held), segment_ids.dtype),
        left_out=jnp.sum(jnp.maximum(jnp.sum(flat != 0, axis=1) - held, 0)).astype(jnp.int32),
    )
    numbers = jnp.cumsum(starts & (flat != 0), axis=1).astype(segment_ids.dtype)
    return dataclasses.replace(strip, segment_ids=strip.take(numbers))
