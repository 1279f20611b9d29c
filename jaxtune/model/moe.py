"""Mixture-of-experts feed-forward that drops no token: tokens sorted by expert, one grouped matmul per projection."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.errors import UserError
from jaxtune.model import expert_shards
from jaxtune.model.expert_shards import Gated
from jaxtune.model.grouped import grouped_product
from jaxtune.model.linear import Linear, lookup, product
from jaxtune.parallel.mesh import ROWS, on_one_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClampedGate:
    """Hidden units (up + 1) * gate * sigmoid(alpha * gate), with gate <= limit and -limit <= up <= limit (gpt-oss)."""

    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self):
        for name in ("alpha", "limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"the experts' {name} is {getattr(self, name)}; it must be above 0 and finite.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Sparse feed-forward: a linear router sends each token to its best experts."""

    num_experts: int
    experts_per_token: int
    d_ff: int
    """Hidden size of one expert."""
    normalise: bool = True
    """The weights of the chosen experts are divided by their sum."""
    shared_d_ff: int | None = None
    """Hidden size of one more expert that sees every token, times the sigmoid of a gate of its own; None: there is
    none."""
    bias: bool = False
    """Router and experts have biases (gpt-oss)."""
    clamped: ClampedGate | None = None
    """Hidden units of the experts in place of activation(gate) * up (gpt-oss)."""

    def __post_init__(self):
        if not (1 <= self.num_experts <= 100_000 and 1 <= self.d_ff < 2**31):
            raise UserError(f"{self.num_experts} experts of width {self.d_ff}: not a model; check the config.")
        if self.shared_d_ff is not None and not 1 <= self.shared_d_ff < 2**31:
            raise UserError(f"the shared expert's width is {self.shared_d_ff}: not a model; check the config.")
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"experts_per_token is {self.experts_per_token}; "
                f"it must be between 1 and num_experts ({self.num_experts})."
            )


class Moe(nnx.Module):
    """Router and experts; `activation` gates each expert's hidden units, and `shared` makes the shared expert."""

    def __init__(
        self,
        config: MoeConfig,
        d_model: int,
        activation: Callable[[Float[Array, "..."]], Float[Array, "..."]],
        shared: Callable[[], nnx.Module] | None = None,
        *,
        std_in: float,
        std_out: float,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        e, d, f = config.num_experts, d_model, config.d_ff
        bias = lambda *shape: shape if config.bias else None
        self.router = Linear("td,de->te", (d, e), bias(e), std=std_in, rngs=rngs, dtype=dtype)
        self.gate = Linear("td,edf->tf", (e, d, f), bias(e, f), std=std_in, rngs=rngs, dtype=dtype)
        self.up = Linear("td,edf->tf", (e, d, f), bias(e, f), std=std_in, rngs=rngs, dtype=dtype)
        self.down = Linear("tf,efd->td", (e, f, d), bias(e, d), std=std_out, rngs=rngs, dtype=dtype)
        self.shared = None if shared is None else shared()
        gate = lambda: Linear("bsd,dg->bsg", (d, 1), std=std_in, rngs=rngs, dtype=dtype)
        self.shared_gate = None if shared is None else gate()
        self.config = config
        self.activation = activation

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        tokens = x.reshape(-1, x.shape[-1])
        weights, experts = (part.reshape(*x.shape[:2], -1) for part in route(self.router(tokens), self.config))
        kernels = tuple(linear.kernel[...].astype(x.dtype) for linear in (self.gate, self.up, self.down))
        biases = tuple(linear.bias[...] for linear in (self.gate, self.up) if linear.bias is not None)
        gated = gated_by(self.activation) if self.config.clamped is None else clamped(self.config.clamped)
        mix = functools.partial(_mix_rows, gated=gated)
        if on_one_device():
            mixed = mix(x, weights, experts, *kernels, *biases)
        elif (ways := _expert_ways(self.config)) > 1:
            mixed = _where_experts_are(gated, ways, x, weights, experts, *kernels, *biases)
        else:
            mixed = _on_each_device(mix, x, weights, experts, *kernels, *biases)
        if self.down.bias is not None:
            mixed = mixed + _weighted_rows(self.down.bias[...], weights, experts).astype(x.dtype)
        return mixed if self.shared is None else mixed + self._shared(x)

    def _shared(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        assert self.shared is not None and self.shared_gate is not None
        share = jax.nn.sigmoid(self.shared_gate(x).astype(jnp.float32))
        return (share * self.shared(x)).astype(x.dtype)


def gated_by(activation: Callable[[Float[Array, "..."]], Float[Array, "..."]]) -> Gated:
    """Hidden units activation(gate) * up."""
    return lambda gate, up: activation(gate) * up


def clamped(config: ClampedGate) -> Gated:
    """Hidden units of a `ClampedGate`."""

    def gated(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
        gate, up = jnp.minimum(gate, config.limit), jnp.clip(up, -config.limit, config.limit)
        return (up + 1) * gate * jax.nn.sigmoid(config.alpha * gate)

    return gated


def _weighted_rows(
    rows: Float[Array, "e d"], weights: Float[Array, "b s k"], experts: Int[Array, "b s k"]
) -> Float[Array, "b s d"]:
    """Sum over a token's experts of weight * row of the expert, in float32."""
    chosen = jax.nn.one_hot(experts, len(rows), dtype=jnp.float32)
    return product("bse,ed->bsd", jnp.einsum("bsk,bske->bse", weights, chosen), rows.astype(jnp.float32))


def _mix_rows(x, weights, experts, gate, up, down, *biases, gated):
    flat = lambda part: part.reshape(-1, part.shape[-1])
    return mix_experts(flat(x), flat(weights), flat(experts), gate, up, down, gated, biases).reshape(x.shape)


def _on_each_device(mix, x, weights, experts, gate, up, down, *biases):
    """`mix` inside a mesh: each device sorts its own tokens and computes its share of every expert's hidden units."""
    mesh = jax.sharding.get_abstract_mesh()
    divides = lambda n, *axes: n % math.prod(mesh.shape[axis] for axis in axes) == 0
    rows = ROWS if divides(x.shape[0], *ROWS) else None
    hidden = "tensor" if divides(gate.shape[-1], "tensor") else None
    tokens = jax.P(rows, "sequence" if divides(x.shape[1], "sequence") else None, None)
    into, out_of = jax.P(None, None, hidden), jax.P(None, hidden, None)

    def local(*parts):
        mixed = mix(*parts)
        return mixed if hidden is None else jax.lax.psum(mixed, hidden)

    specs = (tokens, tokens, tokens, into, into, out_of, *(jax.P(None, hidden) for _ in biases))
    given = (x, weights, experts, gate, up, down, *biases)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens, check_vma=False)(*given)


def _expert_ways(config: MoeConfig) -> int:
    """Devices over which the mesh in use splits the experts; 1 where the axis does not divide them."""
    ways = jax.sharding.get_abstract_mesh().shape[expert_shards.AXIS]
    return ways if config.num_experts % ways == 0 else 1


def _where_experts_are(gated, ways, x, weights, experts, gate, up, down, *biases):
    """The mixture inside a mesh that splits experts: each device computes its group's tokens for the experts it has."""
    mesh, axis = jax.sharding.get_abstract_mesh(), expert_shards.AXIS
    divides = lambda n, *axes: n % math.prod(mesh.shape[axis] for axis in axes) == 0
    rows = ROWS if divides(x.shape[0], *ROWS) else None
    hidden = "tensor" if divides(gate.shape[-1], "tensor") else None
    tokens = jax.P(rows, "sequence" if divides(x.shape[1], "sequence") else None, None)
    into, out_of = jax.P(axis, None, hidden), jax.P(axis, hidden, None)
    flat = lambda part: part.reshape(-1, part.shape[-1])

    def local(x, weights, experts, *parts):
        matrices, biases = parts[:3], parts[3:]
        own = [flat(part) for part in (x, weights, experts)]
        sent, shares, chosen = own if rows is None else (jax.lax.all_gather(part, axis, tiled=True) for part in own)
        here = chosen - jax.lax.axis_index(axis) * len(matrices[0])
        mixed = expert_shards.mix_shard(gated, ways, sent, shares, here, matrices, biases)
        sum_up = jax.lax.psum if rows is None else functools.partial(jax.lax.psum_scatter, tiled=True)
        mixed = sum_up(mixed, axis)
        return (mixed if hidden is None else jax.lax.psum(mixed, hidden)).reshape(x.shape)

    specs = (tokens, tokens, tokens, into, into, out_of, *(jax.P(axis, hidden) for _ in biases))
    given = (x, weights, experts, gate, up, down, *biases)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens, check_vma=False)(*given)


def check_expert_axis(config: MoeConfig | None, ways: int) -> None:
    """Raise UserError for a mesh axis `expert` of a size that the model's experts cannot be split by."""
    if ways == 1:
        return
    if config is None:
        raise UserError(
            f"mesh.expert is {ways}, but the model has no mixture of experts; leave it at 1, and split by mesh.fsdp"
        )
    if config.num_experts % ways:
        raise UserError(
            f"mesh.expert is {ways}, which does not divide the model's {config.num_experts} experts; choose a divisor"
        )


def route(router_logits: Float[Array, "t e"], config: MoeConfig) -> tuple[Float[Array, "t k"], Int[Array, "t k"]]:
    """Weights and indices of each token's experts: softmax over all experts in float32, then the k largest."""
    shares = jax.nn.softmax(router_logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(shares, config.experts_per_token)
    return (weights / weights.sum(axis=-1, keepdims=True) if config.normalise else weights), experts


def mix_experts(
    tokens: Float[Array, "t d"],
    weights: Float[Array, "t k"],
    experts: Int[Array, "t k"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    gated: Gated,
    biases: tuple[Float[Array, "e f"], ...] = (),
) -> Float[Array, "t d"]:
    """Sum over a token's experts of weight * down(gated(gate x, up x)); every assignment is computed.

    biases: those of gate and up, or none.
    """
    num_tokens, per_token = experts.shape
    assigned = experts.reshape(-1)
    order = jnp.argsort(assigned, stable=True)
    sizes = jnp.bincount(assigned, length=gate.shape[0]).astype(jnp.int32)
    source = order // per_token
    sent = tokens[source]
    into = [grouped_product(sent, matrices, sizes) for matrices in (gate, up)]
    if biases:
        own = assigned[order]
        shifted = zip(into, biases, strict=True)
        into = [(part + lookup(bias, own).astype(jnp.float32)).astype(part.dtype) for part, bias in shifted]
    returned = grouped_product(gated(*into), down, sizes).astype(jnp.float32)
    weighted = returned * weights.reshape(-1)[order][:, None]
    summed = jnp.zeros((num_tokens, tokens.shape[1]), jnp.float32).at[source].add(weighted)
    return summed.astype(tokens.dtype)
