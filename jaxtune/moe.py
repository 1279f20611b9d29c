"""Mixture-of-experts feed-forward without dropped tokens: tokens sorted by expert, one grouped matmul per projection."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune.errors import UserError


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
                f"experts_per_token is {self.experts_per_token}; it must be between 1 and num_experts ({self.num_experts})."
            )


def route(router_logits: Float[Array, "t e"], config: MoeConfig) -> tuple[Float[Array, "t k"], Int[Array, "t k"]]:
    """Weights and indices of each token's experts: softmax over all experts in float32, then the k largest."""
    shares = jax.nn.softmax(router_logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(shares, config.experts_per_token)
    return (weights / weights.sum(axis=-1, keepdims=True) if config.normalise else weights), experts


def experts_mlp(
    tokens: Float[Array, "t d"],
    weights: Float[Array, "t k"],
    experts: Int[Array, "t k"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    activation,
) -> Float[Array, "t d"]:
    """Sum over a token's experts of weight * down(activation(gate x) * up x); every assignment is computed (dropless)."""
    num_tokens, per_token = experts.shape
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=gate.shape[0]).astype(jnp.int32)
    source = order // per_token
    sent = tokens[source]
    hidden = activation(jax.lax.ragged_dot(sent, gate, sizes)) * jax.lax.ragged_dot(sent, up, sizes)
    returned = jax.lax.ragged_dot(hidden, down, sizes)
    weighted = returned.astype(jnp.float32) * weights.reshape(-1)[order][:, None]
    summed = jnp.zeros((num_tokens, tokens.shape[1]), jnp.float32).at[source].add(weighted)
    return summed.astype(tokens.dtype)
