"""Tokens exchanged for heads (DeepSpeed-Ulysses, arXiv 2309.14509): whole rows, and a share of the heads, on a device.

Outside attention each device has a part of every row. All-to-all collectives give it whole rows of some heads, on which
any attention of whole rows runs, and its part of the row of all heads back.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def copies(heads: int, kv_heads: int, size: int) -> int | None:
    """Copies of each key/value head that `size` devices need to have heads alike; None where these do not divide."""
    many = math.lcm(kv_heads, size) // kv_heads
    return many if heads % (kv_heads * many) == 0 else None


def exchanged(
    attend: Callable[..., Float[Array, "b r g d"]],
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    axis: str,
    size: int,
) -> Float[Array, "b s h d"]:
    """`attend(query, key, value, segment_ids, sinks)` of whole rows, from and to parts of them; in `jax.shard_map`.

    Device i of `size` along the mesh axis `axis` holds the i-th part of each row. Raises ValueError where the heads do
    not divide over the devices (see `copies`).
    """
    heads, kv_heads = query.shape[2], key.shape[2]
    many = copies(heads, kv_heads, size)
    if many is None:
        raise ValueError(f"{heads} heads of queries and {kv_heads} of keys do not divide over {axis}={size}")
    key, value = (x if many == 1 else jnp.repeat(x, many, axis=2) for x in (key, value))
    whole = [jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True) for x in (query, key, value)]
    segments = jax.lax.all_gather(segment_ids, axis, axis=1, tiled=True)
    own = None
    if sinks is not None:
        share = heads // size
        own = jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(axis) * share, share)
    mixed = attend(*whole, segments, own)
    return jax.lax.all_to_all(mixed, axis, split_axis=1, concat_axis=2, tiled=True)
