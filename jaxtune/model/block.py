"""One layer of the Transformer: attention and feed-forward, each with a residual sum."""

import functools
import math

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.model.linear import Linear, RMSNorm
from jaxtune.model.moe import Moe, MoeConfig
from jaxtune.model.rope import rotate
from jaxtune.model.settings import Activation, ModelConfig
from jaxtune.parallel.sharding import Layout, constrain


class Attention(nnx.Module):
    """Projections of grouped-query attention, with rotary embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, h, k, dh = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        out_bias = (d,) if config.out_bias else None

        def project(heads: int) -> Linear:
            bias = (heads, dh) if config.qkv_bias else None
            return Linear("bsd,dhe->bshe", (d, heads, dh), bias, std=STD, rngs=rngs, dtype=dtype)

        self.q, self.k, self.v = project(h), project(k), project(k)
        self.o = Linear("bshe,hed->bsd", (h, dh, d), out_bias, std=std_out(config), rngs=rngs, dtype=dtype)
        self.q_norm = rms_norm(config, dh, dtype) if config.qk_norm else None
        self.k_norm = rms_norm(config, dh, dtype) if config.qk_norm else None

    def project(self, x: Float[Array, "b s d"], cos, sin):
        """Rotated queries and keys, and values."""
        query = constrain(self.q(x), Layout.HEADS)
        key, value = (constrain(project(x), Layout.KEYS_VALUES) for project in (self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return rotate(query, cos, sin), rotate(key, cos, sin), value


class Mlp(nnx.Module):
    """down(activation(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, f = config.d_model, config.d_ff
        wide, narrow = ((f,), (d,)) if config.mlp_bias else (None, None)
        self.gate = Linear("bsd,df->bsf", (d, f), wide, std=STD, rngs=rngs, dtype=dtype)
        self.up = Linear("bsd,df->bsf", (d, f), wide, std=STD, rngs=rngs, dtype=dtype)
        self.down = Linear("bsf,fd->bsd", (f, d), narrow, std=std_out(config), rngs=rngs, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        gate, up = (constrain(project(x), Layout.FEED_FORWARD) for project in (self.gate, self.up))
        activate = ACTIVATIONS[self.activation]
        # The backward pass keeps gate and up only: activating them again is cheaper than storing what that takes.
        return jax.checkpoint(lambda gate, up: self.down(activate(gate) * up), prevent_cse=False)(gate, up)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a residual sum."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        self.attn_norm = rms_norm(config, config.d_model, dtype)
        self.attn = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = rms_norm(config, config.d_model, dtype)
        self.mlp = Mlp(config, rngs=rngs, dtype=dtype) if config.moe is None else None
        self.moe = None if config.moe is None else _moe(config, config.moe, rngs=rngs, dtype=dtype)
        self.attn_post_norm = rms_norm(config, config.d_model, dtype) if config.post_norms else None
        self.mlp_post_norm = rms_norm(config, config.d_model, dtype) if config.post_norms else None

    def __call__(self, x: Float[Array, "b s d"], cos, sin, attend) -> Float[Array, "b s d"]:
        """`attend(query, key, value)` does the mixing over tokens."""
        x = constrain(x, Layout.HIDDEN)
        mixed = self.attn.o(constrain(attend(*self.attn.project(self.attn_norm(x), cos, sin)), Layout.HEADS))
        x = x + (mixed if self.attn_post_norm is None else self.attn_post_norm(mixed))
        feed_forward = self.mlp if self.moe is None else self.moe
        assert feed_forward is not None
        y = feed_forward(self.mlp_norm(x))
        return x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))


ACTIVATIONS = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU_TANH: functools.partial(jax.nn.gelu, approximate=True),
    Activation.GELU: functools.partial(jax.nn.gelu, approximate=False),
}
STD = 0.02
"""Standard deviation of initial weights."""


def std_out(config: ModelConfig) -> float:
    """Outputs into the residual stream start smaller by sqrt(2 L), so that depth does not raise its variance."""
    return STD / math.sqrt(2 * config.num_layers)


def rms_norm(config: ModelConfig, dim: int, dtype) -> RMSNorm:
    return RMSNorm(dim, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)


def _moe(config: ModelConfig, moe: MoeConfig, *, rngs: nnx.Rngs, dtype) -> Moe:
    activation = ACTIVATIONS[config.activation]
    return Moe(moe, config.d_model, activation, std_in=STD, std_out=std_out(config), rngs=rngs, dtype=dtype)
