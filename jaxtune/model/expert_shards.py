"""Mixture of experts whose experts are split over devices: tokens go to all devices of a group, results come back.

Every device of a group (mesh axis `expert`) gathers the tokens of the group, computes its own experts' part of each,
and the parts are summed and split again (all-gather and reduce-scatter). No token can be dropped, however uneven the
routing: a device takes its tokens in turns of fixed size, as many as they need. A turn costs what it computes, so
that each assignment of a token to an expert is computed once in a group; its arrays are as large as those of one
device's even share, and the backward pass computes them again. What grows with the group are the gathered tokens.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune.model.grouped import grouped_product
from jaxtune.model.linear import lookup

AXIS = "expert"
"""Mesh axis over which experts are split."""
ROOM = 1.25
"""Assignments of a turn, over a device's even share: slightly uneven routing needs no second turn."""

Gated = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
"""Products of a token with an expert's gate and up matrices -> hidden units."""


def mix_shard(
    gated: Gated,
    ways: int,
    tokens: Float[Array, "t d"],
    weights: Float[Array, "t k"],
    experts: Int[Array, "t k"],
    matrices: tuple[Float[Array, "e _ _"], ...],
    biases: tuple[Float[Array, "e f"], ...] = (),
) -> Float[Array, "t d"]:
    """One device's part of a mixture: sum over a token's experts that are here of weight * down(gated(gate x, up x)).

    experts: numbers counted from this device's first expert; those below 0, or beyond the last, are elsewhere.
    matrices: gate, up [e, d, f] and down [e, f, d] of the experts here. biases: those of gate and up, or none.
    ways: devices of the group, which sets the size of a turn. Sums are float32, rounded once to the tokens' dtype.
    """
    turn = min(experts.size, math.ceil(ROOM * experts.size / ways))
    return _mix(gated, turn, tokens, weights, experts, matrices, biases)


def sorted_here(
    experts: Int[Array, "t k"], count: int
) -> tuple[Int[Array, " t*k"], Int[Array, " t*k"], Int[Array, " count"]]:
    """Assignments in the order of their experts, those of no expert in 0..count-1 last: places, experts, and counts."""
    assigned = experts.reshape(-1)
    keys = jnp.where((assigned >= 0) & (assigned < count), assigned, count)
    order = jnp.argsort(keys, stable=True)
    return order, keys[order], jnp.bincount(keys, length=count + 1)[:count].astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(gated, turn, tokens, weights, experts, matrices, biases):
    turns = _Turns(turn, experts, len(matrices[0]))

    def add(number: Array, summed: Array) -> Array:
        places, own, sizes = turns.at(number)
        source = places // experts.shape[1]
        share = weights.reshape(-1)[places]
        return summed.at[source].add(_turn(gated, own, sizes, tokens[source], share, matrices, biases))

    summed = jax.lax.fori_loop(0, turns.needed, add, jnp.zeros(tokens.shape, jnp.float32))
    return summed.astype(tokens.dtype)


def _forward(gated, turn, tokens, weights, experts, matrices, biases):
    return _mix(gated, turn, tokens, weights, experts, matrices, biases), (tokens, weights, experts, matrices, biases)


def _backward(gated, turn, kept, cotangent):
    tokens, weights, experts, matrices, biases = kept
    turns = _Turns(turn, experts, len(matrices[0]))
    wide = lambda tree: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tree)

    def add(number: Array, sums: tuple) -> tuple:
        places, own, sizes = turns.at(number)
        source = places // experts.shape[1]
        given = (tokens[source], weights.reshape(-1)[places], matrices, biases)
        back = jax.vjp(lambda *parts: _turn(gated, own, sizes, *parts), *given)[1]
        to_sent, to_share, *to_experts = back(cotangent[source].astype(jnp.float32))
        to_tokens, to_weights, *others = sums
        return (
            to_tokens.at[source].add(to_sent.astype(jnp.float32)),
            to_weights.at[places].add(to_share),
            *jax.tree.map(lambda total, part: total + part.astype(jnp.float32), tuple(others), tuple(to_experts)),
        )

    start = (*wide((tokens, weights.reshape(-1))), *wide((matrices, biases)))
    to_tokens, to_weights, *others = jax.lax.fori_loop(0, turns.needed, add, start)
    to_matrices, to_biases = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), tuple(others), kept[3:])
    return to_tokens.astype(tokens.dtype), to_weights.reshape(weights.shape), None, to_matrices, to_biases


_mix.defvjp(_forward, _backward)


class _Turns:
    """The assignments that are computed here, in turns of `turn`; the last one may be filled with others."""

    def __init__(self, turn: int, experts: Int[Array, "t k"], count: int):
        self.order, self.keys, self.counts = sorted_here(experts, count)
        self.turn, self.ends = turn, jnp.cumsum(self.counts)
        self.needed = -(-self.ends[-1] // turn)

    def at(self, number: Array) -> tuple[Array, Array, Array]:
        """Of one turn: places among all assignments, expert of each (the number of experts for none), and counts."""
        # A slice that would pass the end begins earlier: what was computed before is then marked as nobody's.
        first, last = number * self.turn, self.order.size - self.turn
        start = jnp.minimum(first, last)
        cut = lambda array: jax.lax.dynamic_slice_in_dim(array, start, self.turn)
        seen = start + jnp.arange(self.turn) < first
        shift = lambda array: jnp.roll(array, start - first)  # what is left to compute comes first
        own = shift(jnp.where(seen, len(self.counts), cut(self.keys)))
        within = lambda ends: jnp.clip(ends, first, first + self.turn)
        sizes = within(self.ends) - within(self.ends - self.counts)
        return shift(cut(self.order)), own, sizes.astype(jnp.int32)


def _turn(
    gated: Gated,
    own: Int[Array, " n"],
    sizes: Int[Array, " e"],
    sent: Float[Array, "n d"],
    share: Float[Array, " n"],
    matrices: tuple[Float[Array, "e _ _"], ...],
    biases: tuple[Float[Array, "e f"], ...],
) -> Float[Array, "n d"]:
    """Weighted results of one turn, in float32; 0 where no expert here is meant.

    Products leave what they please in rows behind those of the last group, so these are masked after each.
    """
    gate, up, down = matrices
    here = (own < len(gate))[:, None]
    masked = lambda array: jnp.where(here, array, 0)
    sent = masked(sent)
    into = [masked(grouped_product(sent, matrix, sizes)) for matrix in (gate, up)]
    if biases:
        row = jnp.minimum(own, len(gate) - 1)
        shifted = zip(into, biases, strict=True)
        into = [(part + masked(lookup(bias, row).astype(jnp.float32))).astype(part.dtype) for part, bias in shifted]
    returned = masked(grouped_product(masked(gated(*into)), down, sizes)).astype(jnp.float32)
    return returned * jnp.where(here[:, 0], share, 0)[:, None]
