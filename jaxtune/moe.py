"""Mixture-of-experts feed-forward that drops no token: tokens sorted by expert, one grouped matmul per projection."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.errors import UserError
from jaxtune.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Sparse feed-forward: a linear router sends each token to its best experts."""

    num_experts: int
    experts_per_token: int
    d_ff: int
    """Hidden size of one expert."""
    normalise: bool = True
    """The weights of the chosen experts are divided by their sum."""

    def __post_init__(self):
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"experts_per_token is {self.experts_per_token}; "
                f"it must be between 1 and num_experts ({self.num_experts})."
            )


class Moe(nnx.Module):
    """Router and experts; `activation` gates each expert's hidden units."""

    def __init__(
        self,
        config: MoeConfig,
        d_model: int,
        activation: Callable[[Float[Array, "..."]], Float[Array, "..."]],
        *,
        std_in: float,
        std_out: float,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        e, d, f = config.num_experts, d_model, config.d_ff
        self.router = Linear("td,de->te", (d, e), std=std_in, rngs=rngs, dtype=dtype)
        self.gate = Linear("td,edf->tf", (e, d, f), std=std_in, rngs=rngs, dtype=dtype)
        self.up = Linear("td,edf->tf", (e, d, f), std=std_in, rngs=rngs, dtype=dtype)
        self.down = Linear("tf,efd->td", (e, f, d), std=std_out, rngs=rngs, dtype=dtype)
        self.config = config
        self.activation = activation

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        tokens = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(tokens), self.config)
        kernels = (linear.kernel[...].astype(x.dtype) for linear in (self.gate, self.up, self.down))
        return mix_experts(tokens, weights, experts, *kernels, activation=self.activation).reshape(x.shape)


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
    activation: Callable[[Float[Array, "..."]], Float[Array, "..."]],
) -> Float[Array, "t d"]:
    """Sum over a token's experts of weight * down(activation(gate x) * up x); every assignment is computed."""
    num_tokens, per_token = experts.shape
    assigned = experts.reshape(-1)
    order = jnp.argsort(assigned, stable=True)
    sizes = jnp.bincount(assigned, length=gate.shape[0]).astype(jnp.int32)
    source = order // per_token
    sent = tokens[source]
    hidden = activation(jax.lax.ragged_dot(sent, gate, sizes)) * jax.lax.ragged_dot(sent, up, sizes)
    returned = jax.lax.ragged_dot(hidden, down, sizes).astype(jnp.float32)
    weighted = returned * weights.reshape(-1)[order][:, None]
    summed = jnp.zeros((num_tokens, tokens.shape[1]), jnp.float32).at[source].add(weighted)
    return summed.astype(tokens.dtype)
