"""Attention of one layer, over packed rows or a cache: one function, several backends, all equal to the reference."""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.model.attention import kernels
from jaxtune.model.attention.blockwise import MASKED, Scoring, blockwise
from jaxtune.model.linear import product


class Backend(enum.Enum):
    """Attention backends; `jaxtune.model.attention.choice` says which run where, and picks one."""

    AUTO = "auto"  # resolved before training; unresolved, the plain path of the default device
    REFERENCE = "reference"  # all scores of a row at once, in plain XLA operations
    BLOCKWISE = "blockwise"  # plain XLA, block by block: memory linear in the row's length, segments skipped
    DOT_PRODUCT = "dot_product"  # jax.nn.dot_product_attention, XLA implementation
    CUDNN = "cudnn"  # jax.nn.dot_product_attention, cuDNN flash attention (NVIDIA)
    SPLASH = "splash"  # Pallas kernel for TPU
    RING = "ring"  # tokens of a row over devices (sequence > 1), keys and values handed round: see `ring`


def attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    scoring: Scoring,
    backend: Backend = Backend.AUTO,
) -> Float[Array, "b s h d"]:
    """Causal attention inside each segment of packed rows; `h` is a multiple of `k` (grouped queries).

    softmax(cap(scale * q k^T)) v, with cap(x) = soft_cap * tanh(x / soft_cap); query i sees key j iff both are in the
    same segment and i - window < j <= i. Order is the place in the row, which inside a segment is that of positions.
    Padding is segment 0: its queries see padding up to themselves, so that no row of scores is empty. `sinks`: a score
    of each head that every query sees beside those of its keys, with a value of zero (gpt-oss; arXiv 2309.17453).
    """
    inputs = (query, key, value, segment_ids)
    backend = choose_plain(query.shape[1], scoring, sinks) if backend is Backend.AUTO else backend
    if sinks is not None and backend in WITHOUT_SINKS:
        raise ValueError(f"the backend {backend.value} has no attention sinks")
    if backend is Backend.RING:
        raise ValueError("ring attention is of rows whose tokens are split over devices (sequence > 1)")
    match backend:
        case Backend.REFERENCE:
            return _reference(*inputs, sinks, scoring)
        case Backend.BLOCKWISE:
            return blockwise(*inputs, sinks, scoring=scoring)
        case Backend.DOT_PRODUCT:
            return kernels.dot_product(*inputs, implementation="xla", scoring=scoring)
        case Backend.CUDNN:
            return kernels.dot_product(*inputs, implementation="cudnn", scoring=scoring)
        case Backend.SPLASH:
            return kernels.splash(*inputs, sinks, scoring=scoring)
    raise AssertionError(backend)


WITHOUT_SINKS = (Backend.DOT_PRODUCT, Backend.CUDNN)
"""Backends that cannot compute attention with sinks."""


def cached_attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b t k d"],
    value: Float[Array, "b t k d"],
    positions: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "b s h d"]:
    """Attention of new tokens over a cache that holds the token of position t in slot t.

    Slots beyond a query's position are invisible to it, so what stale or padding tokens left there does not matter.
    """
    allowed = _visible(positions, jnp.arange(key.shape[1]), window)
    return _attend(query, key, value, allowed, sinks, scale=scale, soft_cap=soft_cap)


def choose_plain(length: int, scoring: Scoring, sinks: Float[Array, " h"] | None) -> Backend:
    """`plain` on the default device, for what a layer computes."""
    return plain(length, soft_cap=scoring.soft_cap, sinks=sinks is not None)


def plain(length: int, *, platform: str | None = None, soft_cap: float | None = None, sinks: bool = False) -> Backend:
    """The faster of the backends without a kernel of their own, for rows of `length` tokens on a platform.

    Blocks are loops whose bounds the data decide: a CPU skips work by them, a GPU or TPU would wait at every turn, so
    these get whole rows at once. `platform` is by default that of the first device.
    """
    if (platform or jax.default_backend()) != "cpu":
        return Backend.DOT_PRODUCT if soft_cap is None and not sinks else Backend.REFERENCE
    return Backend.REFERENCE if length <= 128 else Backend.BLOCKWISE


def _reference(query, key, value, segment_ids, sinks, scoring: Scoring):
    places = jnp.arange(query.shape[1])
    allowed = _visible(places[None, :], places, scoring.window) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return _attend(query, key, value, allowed, sinks, scale=scoring.scale, soft_cap=scoring.soft_cap)


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
    sinks: Float[Array, " h"] | None,
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
    if sinks is not None:
        by_head = sinks.astype(jnp.float32).reshape(1, key.shape[2], -1, 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(by_head, (*scores.shape[:-1], 1))], axis=-1)
    shares = jax.nn.softmax(scores, axis=-1)
    shares = shares if sinks is None else shares[..., :-1]
    mixed = product("bkgst,btkd->bskgd", shares.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads, value.shape[-1])
