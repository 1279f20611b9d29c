"""Layers of linear attention by the gated delta rule, in the place of attention (Qwen3-Next, Qwen 3.5).

    (q, k, v) = silu(short causal convolution over tokens(x W_qkv)),  beta = sigmoid(x W_beta)
    g = -exp(log_scale) softplus(x W_decay + step_bias)
    y = (RMSNorm(rule(q, k, v, g, beta)) * silu(x W_gate)) W_o

Neither the convolution nor the memory of the rule sees beyond the borders of a packed example.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from jaxtune.errors import UserError
from jaxtune.model import delta_rule
from jaxtune.model.linear import Linear, RMSNorm, normal
from jaxtune.parallel.sharding import Layout, constrain

MAX_CONV = 64
"""Far beyond any model's convolution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Sizes of linear attention by the gated delta rule."""

    key_heads: int
    value_heads: int
    """A multiple of `key_heads`; consecutive ones share queries and keys."""
    key_dim: int
    value_dim: int
    conv_width: int = 4
    """Tokens that the convolution sees, the newest included."""

    def __post_init__(self):
        for name in ("key_heads", "value_heads", "key_dim", "value_dim"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UserError(f"linear attention has {name} = {getattr(self, name)!r:.20}: not a model.")
        if self.value_heads % self.key_heads:
            raise UserError(
                f"linear attention has {self.value_heads} value heads; their number must be a multiple of its "
                f"{self.key_heads} key heads."
            )
        if not 2 <= self.conv_width <= MAX_CONV:
            raise UserError(f"linear attention's conv_width is {self.conv_width}; it must be in [2, {MAX_CONV}].")

    @property
    def channels(self) -> int:
        """Channels of the convolution: all queries, then all keys, then all values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of heads, and dimensions, as the functions of `delta_rule` take them."""
        return self.key_heads, self.value_heads, self.key_dim, self.value_dim

    def share(self, ways: int) -> "DeltaConfig":
        """The heads of one of `ways` devices; all of them where these do not divide them."""
        if self.key_heads % ways:
            return self
        return dataclasses.replace(self, key_heads=self.key_heads // ways, value_heads=self.value_heads // ways)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """Parts of a layer that are mixed over tokens."""

    channels: Float[Array, "b s c"]
    """Queries, keys and values, before the convolution."""
    taps: Float[Array, "c w"]
    """Weights of the convolution; the last one is the newest token's."""
    decay: Float32[Array, "b s h"]
    """Logarithm of what the memory keeps, at most 0."""
    beta: Float32[Array, "b s h"]
    """Strength with which a token is written, between 0 and 1."""


class Delta(nnx.Module):
    """Projections of linear attention; `activation` follows the convolution."""

    def __init__(
        self, config: DeltaConfig, d_model: int, activation: Callable, *, eps: float, std: tuple[float, float],
        rngs: nnx.Rngs, dtype=jnp.float32,
    ):  # fmt: skip
        """Fresh projections; std: of weights into the layer, and of those out of it."""
        d, h, v = d_model, config.value_heads, config.value_dim
        into = lambda spec, *shape: Linear(spec, (d, *shape), std=std[0], rngs=rngs, dtype=dtype)
        self.qkv = into("bsd,dc->bsc", config.channels)
        self.gate = into("bsd,dhv->bshv", h, v)
        self.beta, self.decay = into("bsd,dh->bsh", h), into("bsd,dh->bsh", h)
        self.conv = Convolution(config, rngs=rngs, dtype=dtype)
        rates = jax.random.uniform(rngs.params(), (h,), jnp.float32, 0.01, 16.0)
        self.log_scale = nnx.Param(jnp.log(rates).astype(dtype))
        self.step_bias = nnx.Param(jnp.ones((h,), dtype))
        self.norm = RMSNorm(v, eps=eps, offset=False, dtype=dtype)
        self.o = Linear("bshv,hvd->bsd", (h, v, d), std=std[1], rngs=rngs, dtype=dtype)
        self.config, self.activation = config, activation

    def project(self, x: Float[Array, "b s d"]) -> Mixed:
        """The parts that are mixed over tokens, by `packed` or `cached`."""
        wide = lambda y: y.astype(jnp.float32)
        bias, scale = (wide(param[...])[None, None, :] for param in (self.step_bias, self.log_scale))
        return Mixed(
            channels=constrain(self.qkv(x), Layout.CHANNELS), taps=self.conv.taps[...],
            decay=-jnp.exp(scale) * jax.nn.softplus(wide(self.decay(x)) + bias),
            beta=jax.nn.sigmoid(wide(self.beta(x))),
        )  # fmt: skip

    def output(self, mixed: Float32[Array, "b s h v"], x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """The layer's result from what was mixed and its input."""
        gate = jax.nn.silu(self.gate(x).astype(jnp.float32))
        return self.o(constrain((self.norm(mixed) * gate).astype(x.dtype), Layout.HEADS))


class Convolution(nnx.Module):
    """Weights of a convolution over tokens, one for each channel and token that it sees."""

    def __init__(self, config: DeltaConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        width = config.conv_width
        self.taps = nnx.Param(normal(rngs, (config.channels, width), width**-0.5, dtype))


def packed(
    config: DeltaConfig, activation: Callable, segment_ids: Int[Array, "b s"], mixed: Mixed
) -> Float32[Array, "b s h v"]:
    """The rule over packed rows, where each segment begins with an empty memory and no tokens before it.

    The backward pass keeps what comes in and computes the rest again.
    """

    def mix(channels, taps, decay, beta, segment_ids):
        ahead = config.conv_width - 1
        before = jnp.pad(segment_ids, ((0, 0), (ahead, 0)), constant_values=-1)
        inside = lambda back: _back(before, back, config.conv_width) == segment_ids
        convolved = _convolve(jnp.pad(channels, ((0, 0), (ahead, 0), (0, 0))), taps, inside)
        heads = _heads(config, activation(convolved).astype(channels.dtype))
        return delta_rule.chunked(*heads, decay, beta, ~inside(1), _empty(config, len(channels)))[0]

    again = jax.checkpoint(mix, prevent_cse=False)
    return again(mixed.channels, mixed.taps, mixed.decay, mixed.beta, segment_ids)


def cached(
    config: DeltaConfig, activation: Callable, present: Int[Array, "b s"], state: tuple[Array, Array], mixed: Mixed
) -> tuple[Float32[Array, "b s h v"], tuple[Array, Array]]:
    """The rule over new tokens that follow those of `state`, and the new state; the present ones come first in a row.

    The state of a row is the window [w - 1, c] of channels that the convolution still sees, and the memory [h, d, v].
    """
    window, memory = state
    past = jnp.concatenate([window.astype(mixed.channels.dtype), mixed.channels], axis=1)
    heads = _heads(config, activation(_convolve(past, mixed.taps)).astype(mixed.channels.dtype))
    here = (present > 0)[:, :, None]
    decay, beta = (jnp.where(here, x, 0.0) for x in (mixed.decay, mixed.beta))
    rule = delta_rule.recurrent if present.shape[1] == 1 else delta_rule.chunked
    out, memory = rule(*heads, decay, beta, jnp.zeros(present.shape, bool), memory)
    last = jnp.sum(present > 0, axis=1)[:, None] + jnp.arange(config.conv_width - 1)[None, :]
    return out, (jnp.take_along_axis(past, last[:, :, None], axis=1).astype(window.dtype), memory)


def _convolve(
    past: Float[Array, "b t c"], taps: Float[Array, "c w"], inside: Callable | None = None
) -> Float32[Array, "b s c"]:
    """Weighted sums over a token and the w - 1 before it; `past` begins with those before the first token.

    inside(n) [b, s]: whether the token n places back is of the same segment; None: all are.
    """
    width = taps.shape[1]
    total = jnp.zeros((), jnp.float32)
    for back in range(width):
        seen = _back(past, back, width).astype(jnp.float32)
        seen = seen if inside is None else jnp.where(inside(back)[:, :, None], seen, 0.0)
        total = total + seen * taps[:, width - 1 - back].astype(jnp.float32)[None, None, :]
    return total


def _back(past: Array, back: int, width: int) -> Array:
    """For each token, what is `back` places before it, where `past` begins width - 1 places before the first."""
    return past[:, width - 1 - back : past.shape[1] - back]


def _heads(config: DeltaConfig, channels: Float[Array, "b s c"]) -> tuple[Array, Array, Array]:
    """Queries, keys and values out of the convolved channels, whole rows on every device."""
    keys = config.key_heads * config.key_dim
    parts = jnp.split(channels, (keys, 2 * keys), axis=-1)
    shapes = [(config.key_heads, config.key_dim)] * 2 + [(config.value_heads, config.value_dim)]
    split = (part.reshape(*part.shape[:2], *shape) for part, shape in zip(parts, shapes, strict=True))
    query, key, value = (constrain(part, Layout.KEYS_VALUES) for part in split)
    return query, key, value


def _empty(config: DeltaConfig, batch: int) -> Float32[Array, "b h d v"]:
    return jnp.zeros((batch, config.value_heads, config.key_dim, config.value_dim), jnp.float32)
