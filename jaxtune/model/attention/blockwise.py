"""Attention over packed rows in blocks, in plain XLA operations: memory linear in the row's length, no needless work.

The forward pass keeps a running maximum and sum for each query (arXiv 2112.05682, 2205.14135); the backward pass
computes the scores of a block again from the stored log-sum-exp. For each block of queries only the blocks of keys
between the start of its oldest segment and the diagonal are visited, so rows packed with short examples cost far less
than S^2.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30
"""Score of a forbidden pair: finite, so that a block without an allowed pair gives no NaN; a later block wipes it."""
BLOCK = 64
"""Queries and keys in a block. 64 to 128 was fastest on a CPU for rows of 256 to 2048 tokens, 64 for short examples."""
RESIDUAL = "attention"
"""Name of what the backward pass needs, for rematerialisation policies."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Scores of pairs of query and key: cap(scale * q k), for the pairs that a window allows."""

    scale: float
    window: int | None = None
    """Tokens that a query sees, itself included; None: all before it."""
    soft_cap: float | None = None
    """Scores become cap * tanh(score / cap)."""


def blockwise(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    scoring: Scoring,
) -> Float[Array, "b s h d"]:
    """Causal attention inside segments, equal to the reference. A segment's tokens must be adjacent in the row."""
    return _attend(scoring, query, key, value, segment_ids, sinks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options, query, key, value, segment_ids, sinks):
    return _forward(options, query, key, value, segment_ids, sinks)[0]


def _forward(options, query, key, value, segment_ids, sinks):
    kv_heads = key.shape[2]
    queries, (keys, values) = cut(query, kv_heads), (cut(x, kv_heads)[:, :, :, 0] for x in (key, value))
    segments = cut_ids(segment_ids)
    first = _first_visible(segments, options.window)
    across = values.swapaxes(-1, -2)

    def query_block(block):
        own, segment, i, start = block

        def key_block(j, carry):
            scores = _scores(options, keys[j], own, segments[j], segment, i, j)
            return with_block(carry, scores, across[j], value.dtype)

        batch, kv_heads, group, length, dim = own.shape
        rows = (batch, kv_heads, group, length)
        nothing = jnp.zeros((batch, kv_heads, dim, group, length))
        empty = nothing, *before_keys(sinks, rows)
        summed, highest, total = jax.lax.fori_loop(start, i + 1, key_block, empty)
        mixed = (summed / total[:, :, None]).transpose(0, 1, 3, 4, 2)
        return mixed, highest + jnp.log(total)

    mixed, log_total = jax.lax.map(query_block, (queries, segments, jnp.arange(len(queries)), first))
    # Narrowed here: a CPU that writes blocks of bfloat16 into their stack converts the whole stack each time.
    mixed = checkpoint_name(join(mixed.astype(query.dtype), query.shape), RESIDUAL)
    log_total = checkpoint_name(log_total, RESIDUAL)
    return mixed, (query, key, value, segment_ids, sinks, mixed, log_total)


def with_block(carry: tuple[Array, Array, Array], scores: Array, across: Array, dtype: Any) -> tuple[Array, ...]:
    """Weighted sums of values, running maximum and sum of a block of queries, with one more block of keys.

    scores: [b k t g s]; across: values of the keys [b k d t]; dtype: that in which shares are multiplied with them.
    """
    summed, highest, total = carry
    higher = jnp.maximum(highest, scores.max(axis=2))
    shares = jnp.exp(scores - higher[:, :, None])
    shrink = jnp.exp(highest - higher)
    mixed = einsum32("bkdt,bktgs->bkdgs", across, shares.astype(dtype))
    return summed * shrink[:, :, None] + mixed, higher, total * shrink + shares.sum(axis=2)


def slopes_of_block(
    scoring: Scoring, scores: Array, values: Array, above: Array, log_sum: Array, mean: Array
) -> tuple[Array, Array]:
    """Shares of a block of keys in a block of queries, and the gradient of its scaled scores, both [b k t g s].

    above: gradient of the result; mean: its product with the result; log_sum: of the exponentials of all scores.
    """
    shares = jnp.exp(scores - log_sum[:, :, None])
    slopes = shares * (einsum32("bktd,bkgsd->bktgs", values, above) - mean[:, :, None]) * scoring.scale
    if scoring.soft_cap is not None:
        slopes = slopes * (1 - jnp.where(scores > MASKED, scores / scoring.soft_cap, 0.0) ** 2)
    return shares, slopes.astype(above.dtype)


def before_keys(sinks: Float[Array, " h"] | None, rows: tuple[int, ...]) -> tuple[Array, Array]:
    """Running maximum and sum of a block of queries before its first key: of nothing, or of the sinks alone."""
    if sinks is None:
        return jnp.full(rows, MASKED), jnp.zeros(rows)
    by_head = sinks.astype(jnp.float32).reshape(1, *rows[1:3], 1)
    return jnp.broadcast_to(by_head, rows), jnp.ones(rows)


def _backward(options, residuals, cotangent):
    query, key, value, segment_ids, sinks, mixed, log_total = residuals
    kv_heads = key.shape[2]
    queries, (keys, values) = cut(query, kv_heads), (cut(x, kv_heads)[:, :, :, 0] for x in (key, value))
    segments = cut_ids(segment_ids)
    across = keys.swapaxes(-1, -2)
    cotangents = cut(cotangent.astype(query.dtype), kv_heads)
    # A product, because a sum over so short an axis takes a CPU longer than all the exponentials.
    means = cut(einsum32("bshd,bshd->bsh", cotangent, mixed), kv_heads)

    def query_block(to_keys_values, block):
        own, segment, above, log_sum, mean, i, start = block

        def key_block(j, carry):
            to_own, to_keys, to_values = carry
            scores = _scores(options, keys[j], own, segments[j], segment, i, j)
            shares, slopes = slopes_of_block(options, scores, values[j], above, log_sum, mean)
            return (
                to_own + einsum32("bkdt,bktgs->bkdgs", across[j], slopes),
                to_keys.at[j].add(einsum32("bktgs,bkgsd->bktd", slopes, own)),
                to_values.at[j].add(einsum32("bktgs,bkgsd->bktd", shares.astype(value.dtype), above)),
            )

        batch, kv_heads, group, length, dim = own.shape
        empty = jnp.zeros((batch, kv_heads, dim, group, length), jnp.float32)
        to_own, *to_keys_values = jax.lax.fori_loop(start, i + 1, key_block, (empty, *to_keys_values))
        return tuple(to_keys_values), to_own.transpose(0, 1, 3, 4, 2)

    none = jnp.zeros(keys.shape, jnp.float32)
    first = _first_visible(segments, options.window)
    blocks = (queries, segments, cotangents, log_total, means, jnp.arange(len(queries)), first)
    (to_keys, to_values), to_queries = jax.lax.scan(query_block, (none, none), blocks)
    to_key, to_value = (join(x[:, :, :, None], key.shape).astype(key.dtype) for x in (to_keys, to_values))
    to_sinks = None if sinks is None else sink_slopes(sinks, log_total, means)
    return join(to_queries, query.shape).astype(query.dtype), to_key, to_value, None, to_sinks


def sink_slopes(
    sinks: Float[Array, " h"], log_total: Float[Array, "n b k g s"], means: Float[Array, "n b k g s"]
) -> Float[Array, " h"]:
    """Gradient of the sinks: a sink takes its share of each query's weight, and gives nothing for it."""
    by_head = sinks.astype(jnp.float32).reshape(1, 1, *log_total.shape[2:4], 1)
    return -(jnp.exp(by_head - log_total) * means).sum(axis=(0, 1, 4)).reshape(sinks.shape).astype(sinks.dtype)


_attend.defvjp(_forward, _backward)


def cut(x: Float[Array, "b s h *d"], kv_heads: int, block: int = BLOCK) -> Float[Array, "n b k g block *d"]:
    """Rows padded to whole blocks, heads in groups."""
    batch, length, heads, *dim = x.shape
    count = -(-length // block)
    x = jnp.pad(x, ((0, 0), (0, count * block - length), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(batch, count, block, kv_heads, heads // kv_heads, *dim)
    return x.transpose(1, 0, 3, 4, 2, *range(5, x.ndim))


def cut_ids(segment_ids: Int[Array, "b s"]) -> Int[Array, "n b block"]:
    """Segments of whole blocks; those of tokens beyond the row's end are 0."""
    batch, length = segment_ids.shape
    count = -(-length // BLOCK)
    return jnp.pad(segment_ids, ((0, 0), (0, count * BLOCK - length))).reshape(batch, count, BLOCK).transpose(1, 0, 2)


def join(blocks: Float[Array, "n b k g block d"], shape: tuple[int, ...]) -> Float[Array, "b s h d"]:
    """Rows of `shape` from their blocks."""
    batch, length, heads, dim = shape
    return blocks.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, dim)[:, :length]


def _first_visible(segments: Int[Array, "n b block"], window: int | None) -> Int[Array, " n"]:
    """For each block of queries, the first block of keys that any row's first query can see."""
    count, batch, block = segments.shape
    flat = segments.transpose(1, 0, 2).reshape(batch, count * block)
    starts = jnp.concatenate([jnp.ones((batch, 1), bool), flat[:, 1:] != flat[:, :-1]], axis=1)
    places = jnp.arange(count * block)[None, :]
    first = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)[:, ::block]
    if window is not None:
        first = jnp.maximum(first, places[:, ::block] - window + 1)
    return first.min(axis=0) // block


def _visible(own, other, i, j, window: int | None) -> Bool[Array, "b s t"]:
    """Which pairs of query block i and key block j are in the same segment, in causal order and inside the window."""
    block = own.shape[1]
    behind = (i * block + jnp.arange(block))[:, None] - (j * block + jnp.arange(block))[None, :]
    allowed = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return allowed[None] & (own[:, :, None] == other[:, None, :])


def _scores(options: Scoring, keys, queries, key_segments, query_segments, i, j) -> Float[Array, "b k t g s"]:
    """Scores of key block j for query block i.

    Keys come before queries: sums over keys then run along contiguous queries, and the one product that needs a
    transposed operand transposes the smaller.
    """
    scores = einsum32("bktd,bkgsd->bktgs", keys, queries) * options.scale
    if options.soft_cap is not None:
        scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
    visible = _visible(query_segments, key_segments, i, j, options.window).swapaxes(1, 2)
    return jnp.where(visible[:, None, :, None], scores, MASKED)


def einsum32(spec, left, right):
    """Product whose sums, and result, are in float32."""
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
