"""One layer of the Transformer: attention and feed-forward, each with a residual sum."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.model.delta import Delta
from jaxtune.model.linear import Linear, RMSNorm, normal
from jaxtune.model.moe import Moe
from jaxtune.model.rope import rotate
from jaxtune.model.settings import Activation, ModelConfig
from jaxtune.model.stack import Kind
from jaxtune.parallel.mesh import sequence_shards
from jaxtune.parallel.sharding import Layout, constrain


class Attention(nnx.Module):
    """Projections of grouped-query attention, with rotary embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, h, k, dh = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        out_bias = (d,) if config.out_bias else None

        def project(heads: int, dim: int) -> Linear:
            bias = (heads, dim) if config.qkv_bias else None
            return Linear("bsd,dhe->bshe", (d, heads, dim), bias, std=STD, rngs=rngs, dtype=dtype)

        self.q, self.k, self.v = project(h, 2 * dh if config.attn_gate else dh), project(k, dh), project(k, dh)
        self.o = Linear("bshe,hed->bsd", (h, dh, d), out_bias, std=std_out(config), rngs=rngs, dtype=dtype)
        wide = lambda heads: heads * dh if config.qk_norm_whole else dh
        self.q_norm = rms_norm(config, wide(h), dtype) if config.qk_norm else None
        self.k_norm = rms_norm(config, wide(k), dtype) if config.qk_norm else None
        self.sink_bias = nnx.Param(normal(rngs, (h,), STD, dtype)) if config.attn_sinks else None
        self.norm_whole = config.qk_norm_whole
        self.interleaved = config.rope.interleaved
        self.gated = config.attn_gate

    def __call__(self, x: Float[Array, "b s d"], cos, sin, attend) -> tuple[Float[Array, "b s d"], Any]:
        """Result of the layer's attention, and the state of `attend(query, key, value, sinks) -> (mixed, state)`."""
        query, key, value, gate = self._project(x, cos, sin)
        mixed, state = attend(query, key, value, None if self.sink_bias is None else self.sink_bias[...])
        if gate is not None:
            mixed = mixed * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(mixed.dtype)
        return self.o(constrain(mixed, Layout.HEADS)), state

    def _project(self, x: Float[Array, "b s d"], cos, sin):
        """Rotated queries and keys, values, and the gates where there are any."""
        query = constrain(self.q(x), Layout.HEADS)
        query, gate = jnp.split(query, 2, axis=-1) if self.gated else (query, None)
        parts = Layout.HEADS if sequence_shards() > 1 else Layout.KEYS_VALUES  # attention brings the others' tokens
        key, value = (constrain(project(x), parts) for project in (self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self._normed(self.q_norm, query), self._normed(self.k_norm, key)
        turn = functools.partial(rotate, interleaved=self.interleaved)
        return turn(query, cos, sin), turn(key, cos, sin), value, gate

    def _normed(self, norm: RMSNorm, heads: Float[Array, "b s h e"]) -> Float[Array, "b s h e"]:
        if not self.norm_whole:
            return norm(heads)
        return norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)


class Mlp(nnx.Module):
    """Feed-forward down(activation(gate x) * up x) (arXiv 2002.05202); without a gate, down(activation(up x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, f = config.d_model, config.d_ff
        wide, narrow = ((f,), (d,)) if config.mlp_bias else (None, None)
        into = lambda: Linear("bsd,df->bsf", (d, f), wide, std=STD, rngs=rngs, dtype=dtype)
        self.gate = into() if config.mlp_gate else None
        self.up = into()
        self.down = Linear("bsf,fd->bsd", (f, d), narrow, std=std_out(config), rngs=rngs, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            up = constrain(self.up(x), Layout.FEED_FORWARD)
            return jax.checkpoint(lambda up: self.down(activate(up)), prevent_cse=False)(up)
        gate, up = (constrain(project(x), Layout.FEED_FORWARD) for project in (self.gate, self.up))
        # The backward pass keeps gate and up only: activating them again is cheaper than storing what that takes.
        return jax.checkpoint(lambda gate, up: self.down(activate(gate) * up), prevent_cse=False)(gate, up)


class Block(nnx.Module):
    """One layer: attention, or linear attention, and feed-forward, each with a residual sum.

    Without some of its parts it is what all layers of a stack have, to which stacks of the other parts are added.
    """

    attn: Attention | None = None
    delta: Delta | None = None
    mlp: Mlp | None = None
    moe: Moe | None = None

    def __init__(self, config: ModelConfig, parts: Kind, *, rngs: nnx.Rngs, dtype):
        def add(*names: str) -> None:
            for name in names:
                if name in parts:
                    setattr(self, name, part_of(config, name, rngs=rngs, dtype=dtype))

        norm = lambda there: rms_norm(config, config.d_model, dtype) if there else None
        self.attn_norm = norm(config.pre_norms)
        add("attn", "delta")
        self.mlp_norm = norm(config.pre_norms and not config.parallel_block)
        add("mlp", "moe")
        self.attn_post_norm = norm(config.post_norms)
        self.mlp_post_norm = norm(config.post_norms)
        self.residual_scale = config.residual_scale
        self.parallel = config.parallel_block

    def __call__(self, x: Float[Array, "b s d"], cos, sin, mix) -> tuple[Float[Array, "b s d"], Any]:
        """Hidden states after the layer, and the state of `mix`.

        mix: what `Attention` calls with queries, keys, values and sinks; or, with what `Delta.project` gives, the rule.
        """
        x = constrain(x, Layout.HIDDEN)
        read = _through(self.attn_norm, x)
        if self.delta is not None:
            mixed, state = mix(self.delta.project(read))
            y = self.delta.output(mixed, read)
        else:
            assert self.attn is not None
            y, state = self.attn(read, cos, sin, mix)
        x = x + self._scaled(_through(self.attn_post_norm, y))
        part = self.mlp if self.moe is None else self.moe
        assert part is not None
        y = part(read if self.parallel else _through(self.mlp_norm, x))
        return x + self._scaled(_through(self.mlp_post_norm, y)), state

    def _scaled(self, y: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return y if self.residual_scale == 1.0 else y * jnp.asarray(self.residual_scale, y.dtype)


def _through(norm: RMSNorm | None, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    return x if norm is None else norm(x)


ACTIVATIONS = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU_TANH: functools.partial(jax.nn.gelu, approximate=True),
    Activation.GELU: functools.partial(jax.nn.gelu, approximate=False),
    Activation.RELU2: lambda x: jnp.square(jax.nn.relu(x)),
}
STD = 0.02
"""Standard deviation of initial weights."""


def std_out(config: ModelConfig) -> float:
    """Outputs into the residual stream start smaller by sqrt(2 L), so that depth does not raise its variance."""
    return STD / math.sqrt(2 * config.num_layers)


def rms_norm(config: ModelConfig, dim: int, dtype) -> RMSNorm:
    return RMSNorm(dim, eps=config.norm_eps, offset=config.norm_offset, center=config.norm_center, dtype=dtype)


def part_of(config: ModelConfig, name: str, *, rngs: nnx.Rngs, dtype) -> Attention | Delta | Mlp | Moe:
    """One layer's part, by its name among `stack.PARTS`."""
    match name:
        case "attn":
            return Attention(config, rngs=rngs, dtype=dtype)
        case "delta":
            assert config.delta is not None
            std, activation = (STD, std_out(config)), ACTIVATIONS[config.activation]
            return Delta(
                config.delta, config.d_model, activation, eps=config.norm_eps, std=std, rngs=rngs, dtype=dtype
            )  # fmt: skip
        case "mlp":
            return Mlp(config, rngs=rngs, dtype=dtype)
        case _:
            return _experts(config, rngs=rngs, dtype=dtype)


def _experts(config: ModelConfig, *, rngs: nnx.Rngs, dtype) -> Moe:
    moe = config.moe
    assert moe is not None
    activation = ACTIVATIONS[config.activation]
    wide = None if moe.shared_d_ff is None else dataclasses.replace(config, d_ff=moe.shared_d_ff)
    shared = None if wide is None else lambda: Mlp(wide, rngs=rngs, dtype=dtype)
    return Moe(
        moe, config.d_model, activation, shared, std_in=STD, std_out=std_out(config), rngs=rngs, dtype=dtype
    )  # fmt: skip
