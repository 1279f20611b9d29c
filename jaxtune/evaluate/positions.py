"""Losses token by token, where sums by task would hide which document they come from; and the distance of two models.

Both are computed from last hidden states, which one program gives for any parameters: so equal parameters give equal
numbers, bit for bit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.step.losses import HeadSpec

POSITIONS = 512
"""Positions whose logits are held at a time."""


def logits_of(
    hidden: Float[Array, " model"], head: Float[Array, "vocab_or_model model_or_vocab"], spec: HeadSpec
) -> Float[Array, " vocab"]:
    """Float32 logits of one position."""
    product = head.astype(hidden.dtype)
    axes = (((0,), (1 - spec.vocab_axis,)), ((), ()))
    logits = jax.lax.dot_general(hidden, product, axes, preferred_element_type=jnp.float32)
    return logits if spec.soft_cap is None else spec.soft_cap * jnp.tanh(logits / spec.soft_cap)


def target_losses(
    hidden: Float[Array, "rows seq model"],
    head: Float[Array, "vocab_or_model model_or_vocab"],
    targets: Int[Array, "rows seq"],
    spec: HeadSpec,
) -> tuple[Float[Array, "rows seq"], Bool[Array, "rows seq"]]:
    """-log p(target) in nats, and whether the target has the highest logit, at every position."""

    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = logits_of(given[0], head, spec)
        at_target = logits[given[1]]
        return jax.nn.logsumexp(logits) - at_target, at_target >= jnp.max(logits)

    flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    nll, hit = jax.lax.map(one, flat, batch_size=min(POSITIONS, targets.size))
    return nll.reshape(targets.shape), hit.reshape(targets.shape)


def divergence(
    base: tuple[Float[Array, "rows seq model"], Float[Array, "a b"]],
    tuned: tuple[Float[Array, "rows seq model"], Float[Array, "a b"]],
    spec: HeadSpec,
) -> Float[Array, "rows seq"]:
    """KL(p_base || p_tuned) of the next token in nats at every position, from hidden states and heads."""

    def one(given: tuple[Array, Array]) -> Array:
        log_p, log_q = (
            jax.nn.log_softmax(logits_of(hidden, head, spec))
            for hidden, head in zip(given, (base[1], tuned[1]), strict=True)
        )
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    flat = tuple(hidden.reshape(-1, hidden.shape[-1]) for hidden in (base[0], tuned[0]))
    found = jax.lax.map(one, flat, batch_size=min(POSITIONS, len(flat[0])))
    return found.reshape(base[0].shape[:2])
