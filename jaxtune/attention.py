"""Attention of one layer over packed rows, or over a cache: the reference in plain XLA operations."""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.linear import product

MASKED = -1e30
"""Score of a forbidden pair: finite, so that a row without any allowed pair could not become NaN."""


def attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "b s h d"]:
    """Causal attention inside each segment of packed rows; `h` is a multiple of `k` (grouped queries).

    softmax(cap(scale * q k^T)) v, with cap(x) = soft_cap * tanh(x / soft_cap); query i sees key j iff both are in the same
    segment and i - window < j <= i. Order is the place inside the row, which inside a segment is the order of positions.
    Padding is segment 0: its queries see themselves, so that no row of scores is empty.
    """
    places = jnp.arange(query.shape[1])
    allowed = _visible(places[None, :], places, window) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return _attend(query, key, value, allowed, scale=scale, soft_cap=soft_cap)


def cached_attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b t k d"],
    value: Float[Array, "b t k d"],
    positions: Int[Array, "b s"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "b s h d"]:
    """Attention of new tokens over a cache that holds the token of position t in slot t.

    Slots beyond a query's position are invisible to it, so what stale or padding tokens left there does not matter.
    """
    allowed = _visible(positions, jnp.arange(key.shape[1]), window)
    return _attend(query, key, value, allowed, scale=scale, soft_cap=soft_cap)


def _visible(
    query_places: Int[Array, "b s"], key_places: Int[Array, " t"], window: int | Int[Array, ""] | None
) -> Bool[Array, "b s t"]:
    behind = query_places[:, :, None] - key_places[None, None, :]
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def _attend(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b t k d"],
    value: Float[Array, "b t k d"],
    allowed: Bool[Array, "#b s t"],
    *,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "b s h d"]:
    """Scores and softmax in float32; products in the dtype of the arguments with float32 sums."""
    batch, length, heads, dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], heads // key.shape[2], dim)
    scores = product("bskgd,btkd->bkgst", grouped, key, out_dtype=jnp.float32) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(allowed[:, None, None, :, :], scores, MASKED)
    shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = product("bkgst,btkd->bskgd", shares, value)
    return mixed.reshape(batch, length, heads, value.shape[-1])
