"""The state that a model keeps between calls while it generates: keys and values, and memories of linear attention."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from jaxtune.model.rope import depends_on_length
from jaxtune.model.settings import LayerKind, ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Tokens seen so far, as layers need them: in keys and values, slot t of a row holds the token of position t."""

    keys: Float[Array, "l b t k d"]
    values: Float[Array, "l b t k d"]
    """Of the layers with attention."""
    lengths: Int[Array, " b"]
    """Tokens held by each row, which is the position of its next token."""
    tokens: Int[Array, "b t"] | None = None
    """The tokens themselves, where keys and values must be computed again as a row grows (`rope.depends_on_length`)."""
    windows: Float[Array, "n b w c"] | None = None
    """The last channels that the convolutions of layers with linear attention see; None where there are none."""
    memories: Float32[Array, "n b h e v"] | None = None
    """Memories of those layers."""


def init_cache(config: ModelConfig, batch_size: int, slots: int, dtype=jnp.float32) -> Cache:
    """An empty cache for `batch_size` rows of at most `slots` tokens, prompt included."""
    linear = sum(kind is LayerKind.LINEAR for kind in config.kinds)
    shape = (config.num_layers - linear, batch_size, slots, config.num_kv_heads, config.head_dim)
    again = depends_on_length(config.rope)
    cache = Cache(
        keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype), lengths=jnp.zeros((batch_size,), jnp.int32),
        tokens=jnp.zeros((batch_size, slots), jnp.int32) if again else None,
    )  # fmt: skip
    if not linear or (delta := config.delta) is None:
        return cache
    return dataclasses.replace(
        cache,
        windows=jnp.zeros((linear, batch_size, delta.conv_width - 1, delta.channels), dtype),
        memories=jnp.zeros((linear, batch_size, delta.value_heads, delta.key_dim, delta.value_dim), jnp.float32),
    )
