"""Attention of one layer, over packed rows or over a cache: one function, several backends, all equal to the reference."""

import enum
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune import kernels
from jaxtune.linear import product

MASKED = -1e30
"""Score of a forbidden pair: finite, so that a row without any allowed pair could not become NaN."""

QUERY_BLOCK = 512
"""Most queries whose scores BLOCKWISE holds at once."""
GROUPS = 8
"""BLOCKWISE cuts a row into this many spans of queries; each span sees the keys up to its end, so 9/16 of all scores."""


class Backend(enum.Enum):
    """How attention is computed; `jaxtune.backends` says which run where, and picks one."""

    AUTO = "auto"  # resolved before training; unresolved, the faster of the two plain paths
    REFERENCE = "reference"  # all scores of a row at once, in plain XLA operations
    BLOCKWISE = "blockwise"  # plain XLA, blocks of queries: memory grows with the row's length, not its square
    DOT_PRODUCT = "dot_product"  # jax.nn.dot_product_attention, XLA implementation
    CUDNN = "cudnn"  # jax.nn.dot_product_attention, cuDNN flash attention (NVIDIA)
    SPLASH = "splash"  # Pallas kernel for TPU


def attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    backend: Backend = Backend.AUTO,
) -> Float[Array, "b s h d"]:
    """Causal attention inside each segment of packed rows; `h` is a multiple of `k` (grouped queries).

    softmax(cap(scale * q k^T)) v, with cap(x) = soft_cap * tanh(x / soft_cap); query i sees key j iff both are in the
    same segment and i - window < j <= i. Order is the place in the row, which inside a segment is that of positions.
    Padding is segment 0: its queries see padding up to themselves, so that no row of scores is empty.
    """
    options = {"scale": scale, "window": window, "soft_cap": soft_cap}
    match plain(query.shape[1]) if backend is Backend.AUTO else backend:
        case Backend.REFERENCE:
            return _reference(query, key, value, segment_ids, **options)
        case Backend.BLOCKWISE:
            return _blockwise(query, key, value, segment_ids, **options)
        case Backend.DOT_PRODUCT:
            return kernels.dot_product(query, key, value, segment_ids, implementation="xla", **options)
        case Backend.CUDNN:
            return kernels.dot_product(query, key, value, segment_ids, implementation="cudnn", **options)
        case Backend.SPLASH:
            return kernels.splash(query, key, value, segment_ids, **options)
    raise AssertionError(backend)


def cached_attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b t k d"],
    value: Float[Array, "b t k d"],
    positions: Int[Array, "b s"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "b s h d"]:
    """Attention of new tokens over a cache that holds the token of position t in slot t.

    Slots beyond a query's position are invisible to it, so what stale or padding tokens left there does not matter.
    """
    allowed = _visible(positions, jnp.arange(key.shape[1]), window)
    return _attend(query, key, value, allowed, scale=scale, soft_cap=soft_cap)


def plain(length: int) -> Backend:
    """The faster of the backends that run everywhere, for rows of `length` tokens."""
    return Backend.REFERENCE if length <= 256 else Backend.BLOCKWISE


def _reference(query, key, value, segment_ids, *, scale, window, soft_cap):
    places = jnp.arange(query.shape[1])
    allowed = _visible(places[None, :], places, window) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return _attend(query, key, value, allowed, scale=scale, soft_cap=soft_cap)


def _blockwise(query, key, value, segment_ids, *, scale, window, soft_cap):
    """Spans of queries with the keys that can be visible to them; inside a span, blocks one after the other.

    The backward pass computes a block's scores again, so neither pass holds more than one block's.
    """
    length = query.shape[1]
    span = -(-length // GROUPS)
    blocks = -(-span // QUERY_BLOCK)
    block = -(-span // blocks)
    mixed = []
    for start in range(0, length, block * blocks):
        stop = min(start + block * blocks, length)
        first = 0 if window is None else max(0, start - window + 1)
        attend = functools.partial(
            _attend_block, keys=slice(first, stop), scale=scale, window=window, soft_cap=soft_cap
        )
        attend = jax.checkpoint(functools.partial(attend, key, value, segment_ids))
        if stop - start <= block:
            mixed.append(attend(query[:, start:stop], jnp.asarray(start)))
            continue
        starts = jnp.arange(start, stop, block)
        padded = jnp.pad(query[:, start:stop], ((0, 0), (0, len(starts) * block - (stop - start)), (0, 0), (0, 0)))
        pieces = jnp.moveaxis(padded.reshape(query.shape[0], len(starts), block, *query.shape[2:]), 1, 0)
        done = jax.lax.map(lambda piece, attend=attend: attend(*piece), (pieces, starts))
        mixed.append(jnp.moveaxis(done, 0, 1).reshape(padded.shape)[:, : stop - start])
    return jnp.concatenate(mixed, axis=1)


def _attend_block(key, value, segment_ids, query, start, *, keys, scale, window, soft_cap):
    """Queries `start`, start + 1, ... of a row over its keys in the static range `keys`."""
    length = query.shape[1]
    padded = jnp.pad(segment_ids, ((0, 0), (0, length)))
    own = jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)
    places = start + jnp.arange(length)
    allowed = _visible(places[None, :], jnp.arange(keys.start, keys.stop), window)
    allowed = allowed & (own[:, :, None] == segment_ids[:, None, keys])
    return _attend(query, key[:, keys], value[:, keys], allowed, scale=scale, soft_cap=soft_cap)


def _visible(query_places: Int[Array, "b s"], key_places: Int[Array, " t"], window: int | None) -> Bool[Array, "b s t"]:
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
