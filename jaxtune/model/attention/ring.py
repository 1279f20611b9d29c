"""Ring attention (arXiv 2310.01889): tokens of a row split over devices, keys and values handed from one to the next.

Each device holds the queries, keys and values of its part of the row. In as many turns as there are devices, every part
of the keys comes by once; a running maximum and sum for each query take it in, in blocks (arXiv 2112.05682). The
backward pass computes the scores of a block again from the stored log-sum-exp; there the gradients of keys and values
travel with them, and are home after a full circle. No array is longer than a device's part of the row in more than one
of its dimensions. Parts are neighbours in the row, so that under the causal mask the last device has most to do.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxtune.model.attention.blockwise import (
    BLOCK,
    MASKED,
    RESIDUAL,
    Scoring,
    before_keys,
    cut,
    einsum32,
    join,
    sink_slopes,
    slopes_of_block,
    with_block,
)

WIDE_BLOCK = 512
"""Queries and keys in a block on accelerators, whose matrix units want long sides."""
NOWHERE = -1
"""Segment of the places that fill a block up: no token is of it."""


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices that keys and values go round."""

    axis: str
    """Mesh axis."""
    size: int
    block: int
    """Queries and keys in a block."""

    def onward(self, held):
        """Arrays of each device, handed to the next one."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), held)


def ring_attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    scoring: Scoring,
    axis: str,
    size: int,
) -> Float[Array, "b s h d"]:
    """Attention of one device's queries to the keys of the whole row, equal to the reference; inside `jax.shard_map`.

    Device i of `size` along the mesh axis `axis` holds the i-th part of each row, all parts alike in length.
    """
    block = BLOCK if jax.default_backend() == "cpu" else WIDE_BLOCK
    ring = Ring(axis, size, min(block, query.shape[1]))
    return _attend((ring, scoring), query, key, value, segment_ids, sinks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, query, key, value, segment_ids, sinks):
    return _forward(plan, query, key, value, segment_ids, sinks)[0]


def _forward(plan, query, key, value, segment_ids, sinks):
    ring, scoring = plan
    kv_heads = key.shape[2]
    queries, *held = _blocks(ring, query, key, value, segment_ids)
    segments, places = held[2], _places(ring, jax.lax.axis_index(ring.axis), query.shape[1])

    def take_in(state, turn, held):
        keys, values, key_segments = held
        across, key_places = values.swapaxes(-1, -2), _held_places(ring, turn, query.shape[1])

        def query_block(block):
            own, segment, place, *carry = block

            def key_block(j, carry):
                scores = _scores(scoring, keys[j], own, (key_segments[j], segment), (key_places[j], place))
                return with_block(carry, scores, across[j], value.dtype)

            bounds = _bounds(segment, place, key_segments, key_places, scoring.window)
            return jax.lax.fori_loop(*bounds, key_block, tuple(carry))

        return jax.lax.map(query_block, (queries, segments, places, *state))

    def turn(carry, number):
        state, held = carry
        coming = ring.onward(held)  # needs nothing that is computed meanwhile
        return (take_in(state, number, held), coming), None

    count, batch, kv_heads, group, length, dim = queries.shape
    highest, total = before_keys(sinks, (batch, kv_heads, group, length))
    nothing = jnp.zeros((batch, kv_heads, dim, group, length))
    state = tuple(jnp.broadcast_to(x[None], (count, *x.shape)) for x in (nothing, highest, total))
    (state, last), _ = jax.lax.scan(turn, (state, tuple(held)), jnp.arange(ring.size - 1))
    summed, highest, total = take_in(state, ring.size - 1, last)
    mixed = (summed / total[:, :, :, None]).transpose(0, 1, 2, 4, 5, 3).astype(query.dtype)
    mixed = checkpoint_name(join(mixed, query.shape), RESIDUAL)
    log_total = checkpoint_name(highest + jnp.log(total), RESIDUAL)
    return mixed, (query, key, value, segment_ids, sinks, mixed, log_total)


def _backward(plan, residuals, cotangent):
    ring, scoring = plan
    query, key, value, segment_ids, sinks, mixed, log_total = residuals
    kv_heads = key.shape[2]
    queries, *held = _blocks(ring, query, key, value, segment_ids)
    segments, places = held[2], _places(ring, jax.lax.axis_index(ring.axis), query.shape[1])
    above = cut(cotangent.astype(query.dtype), kv_heads, ring.block)
    means = cut(einsum32("bshd,bshd->bsh", cotangent, mixed), kv_heads, ring.block)

    def give_back(to_queries, slopes_of_held, turn, held):
        keys, values, key_segments = held
        across, key_places = keys.swapaxes(-1, -2), _held_places(ring, turn, query.shape[1])

        def query_block(to_keys_values, block):
            own, segment, place, above, log_sum, mean, to_own = block

            def key_block(j, carry):
                to_own, to_keys, to_values = carry
                scores = _scores(scoring, keys[j], own, (key_segments[j], segment), (key_places[j], place))
                shares, slopes = slopes_of_block(scoring, scores, values[j], above, log_sum, mean)
                return (
                    to_own + einsum32("bkdt,bktgs->bkdgs", across[j], slopes),
                    to_keys.at[j].add(einsum32("bktgs,bkgsd->bktd", slopes, own)),
                    to_values.at[j].add(einsum32("bktgs,bkgsd->bktd", shares.astype(value.dtype), above)),
                )

            bounds = _bounds(segment, place, key_segments, key_places, scoring.window)
            to_own, *to_keys_values = jax.lax.fori_loop(*bounds, key_block, (to_own, *to_keys_values))
            return tuple(to_keys_values), to_own

        blocks = (queries, segments, places, above, log_total, means, to_queries)
        slopes_of_held, to_queries = jax.lax.scan(query_block, slopes_of_held, blocks)
        return to_queries, ring.onward(slopes_of_held)

    def turn(carry, number):
        to_queries, slopes_of_held, held = carry
        coming = ring.onward(held)
        return (*give_back(to_queries, slopes_of_held, number, held), coming), None

    none = jnp.zeros(held[0].shape, jnp.float32)
    count, batch, kv_heads, group, length, dim = queries.shape
    to_queries = jnp.zeros((count, batch, kv_heads, dim, group, length), jnp.float32)
    start = (to_queries, (none, none), tuple(held))
    (to_queries, slopes_of_held, last), _ = jax.lax.scan(turn, start, jnp.arange(ring.size - 1))
    to_queries, slopes_of_held = give_back(to_queries, slopes_of_held, ring.size - 1, last)
    to_query = join(to_queries.transpose(0, 1, 2, 4, 5, 3), query.shape).astype(query.dtype)
    to_key, to_value = (join(x[:, :, :, None], key.shape).astype(key.dtype) for x in slopes_of_held)
    return to_query, to_key, to_value, None, None if sinks is None else sink_slopes(sinks, log_total, means)


_attend.defvjp(_forward, _backward)


def _blocks(ring: Ring, query, key, value, segment_ids):
    """Blocks of queries [n b k g block d], keys and values [n b k block d], and segments [n b block]."""
    kv_heads, (batch, length) = key.shape[2], segment_ids.shape
    keys, values = (cut(x, kv_heads, ring.block)[:, :, :, 0] for x in (key, value))
    filled = jnp.pad(segment_ids, ((0, 0), (0, -length % ring.block)), constant_values=NOWHERE)
    segments = filled.reshape(batch, -1, ring.block).transpose(1, 0, 2)
    return cut(query, kv_heads, ring.block), keys, values, segments


def _places(ring: Ring, part: Int[Array, ""], length: int) -> Int[Array, "n block"]:
    """Places in the row of the tokens of a device's part, in blocks."""
    count = -(-length // ring.block)
    return part * length + jnp.arange(count * ring.block).reshape(count, ring.block)


def _held_places(ring: Ring, turn: int | Int[Array, ""], length: int) -> Int[Array, "n block"]:
    """Places of the keys that a device holds in a turn: those of the device so many places before it."""
    return _places(ring, (jax.lax.axis_index(ring.axis) - turn) % ring.size, length)


def _bounds(
    segment: Int[Array, "b s"],
    place: Int[Array, " s"],
    key_segments: Int[Array, "n b t"],
    key_places: Int[Array, "n t"],
    window: int | None,
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """First block of keys that a block of queries may see, and the one after the last; both 0 where there is none.

    By the ranges of places and of segment numbers: a block between the two may hold no visible key, none outside does.
    """
    reached = key_places[:, 0] <= place[-1]
    if window is not None:
        reached &= key_places[:, -1] > place[0] - window
    low, high = segment.min(axis=1)[None], segment.max(axis=1)[None]
    shared = (key_segments.min(axis=2) <= high) & (key_segments.max(axis=2) >= low)
    seen = reached & shared.any(axis=1)
    numbers = jnp.arange(len(seen))
    stop = jnp.where(seen, numbers + 1, 0).max()
    return jnp.minimum(jnp.where(seen, numbers, len(seen)).min(), stop), stop


def _visible(segments, places, window: int | None) -> Bool[Array, "b t s"]:
    """Which pairs of key and query are in the same segment, in causal order and inside the window."""
    (key_segment, segment), (key_place, place) = segments, places
    behind = place[None, :] - key_place[:, None]
    allowed = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return allowed[None] & (key_segment[:, :, None] == segment[:, None, :])


def _scores(scoring: Scoring, keys, queries, segments, places) -> Float[Array, "b k t g s"]:
    """Scores of a block of keys for a block of queries."""
    scores = einsum32("bktd,bkgsd->bktgs", keys, queries) * scoring.scale
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * jnp.tanh(scores / scoring.soft_cap)
    return jnp.where(_visible(segments, places, scoring.window)[:, None, :, None], scores, MASKED)
