"""Weights kept as 8-bit or 4-bit integers with a scale per group, for a base model that is frozen.

Absolute-maximum quantisation of groups of inputs: value = round(weight / scale), scale = max |weight| / 127 (or / 7).
Products are taken with weights that are widened a layer at a time, forward and again backward, so that whole weights
never exist.
"""

import dataclasses
import enum
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtune.model.linear import Kernel, product

GROUP = 64
"""Inputs that share a scale, or their largest divisor that fits the axis."""


class Bits(enum.Enum):
    """Width of a stored weight."""

    INT8 = "int8"
    INT4 = "int4"  # two to a byte


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized(Kernel):
    """A kernel [*lead, *inputs, *outputs] as integers; groups lie along the last input axis."""

    value: Any
    """int8 in the kernel's shape, or uint8 with half the last input axis: even places low, odd places high."""
    scales: Any
    """float32 in the kernel's shape, with groups in place of the last input axis."""
    bits: Bits = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    """The last input axis, counted from the end."""

    def dense(self) -> Float[Array, "..."]:
        """The weights in float32."""
        value = self.value if self.bits is Bits.INT8 else _unpack(self.value, self.axis)
        groups = self.scales.shape[self.axis]
        split = value.ndim + self.axis
        shape = (*value.shape[:split], groups, value.shape[split] // groups, *value.shape[split + 1 :])
        wide = value.reshape(shape).astype(jnp.float32) * jnp.expand_dims(self.scales, split + 1)
        return wide.reshape(value.shape)

    def product(self, spec: str, left: Float[Array, "..."], out_dtype: Any) -> Float[Array, "..."]:
        """Product as `linear.product` defines it; the backward pass widens the weights again and keeps none."""
        widened = lambda kernel, left: product(spec, left, kernel.dense(), out_dtype=out_dtype)
        return jax.checkpoint(widened, prevent_cse=False)(self, left)


def quantize(kernel: Float[Array, "..."], bits: Bits, axis: int) -> Quantized:
    """Quantise a kernel whose last input axis is `axis`, counted from the end.

    The error of a weight is at most half its group's scale. Raises ValueError if 4-bit values cannot be paired.
    """
    size, split = kernel.shape[axis], kernel.ndim + axis
    if bits is Bits.INT4 and size % 2:
        raise ValueError(f"4-bit weights are stored in pairs, and axis {axis} of {kernel.shape} is odd")
    group = next(width for width in range(min(GROUP, size), 0, -1) if size % width == 0)
    shape = (*kernel.shape[:split], size // group, group, *kernel.shape[split + 1 :])
    grouped = kernel.astype(jnp.float32).reshape(shape)
    largest = jnp.max(jnp.abs(grouped), axis=split + 1, keepdims=True)
    scales = largest / (127 if bits is Bits.INT8 else 7)
    value = jnp.round(grouped / jnp.where(scales > 0, scales, 1)).astype(jnp.int8).reshape(kernel.shape)
    packed = value if bits is Bits.INT8 else _pack(value, axis)
    return Quantized(value=packed, scales=jnp.squeeze(scales, split + 1), bits=bits, axis=axis)


def _pack(value: Array, axis: int) -> Array:
    even, odd = (jax.lax.slice_in_dim(value + 8, start, None, 2, axis=value.ndim + axis) for start in (0, 1))
    return even.astype(jnp.uint8) | (odd.astype(jnp.uint8) << 4)


def _unpack(packed: Array, axis: int) -> Array:
    split = packed.ndim + axis
    pairs = jnp.stack([packed & 15, packed >> 4], axis=split + 1).astype(jnp.int8) - 8
    return pairs.reshape(*packed.shape[:split], -1, *packed.shape[split + 1 :])


LAST_INPUT_AXIS = {
    r"layers\.(attn\.[qkv]|delta\.gate)\.kernel": -3,
    r"layers\.(attn\.o|delta\.(qkv|o)|mlp\.\w+|moe\.(shared\.)?(gate|up|down))\.kernel": -2,
}
"""Kernels that `quantize_params` stores as integers -> their last input axis."""


def quantize_params(params: PyTree, bits: Bits) -> PyTree:
    """The parameters with the kernels of attention and feed-forward quantised, and the rest as it is."""

    def store(path: tuple[Any, ...], leaf: Array) -> Array | Quantized:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        axes = (axis for pattern, axis in LAST_INPUT_AXIS.items() if re.fullmatch(pattern, name))
        axis = next(axes, None)
        return leaf if axis is None else quantize(leaf, bits, axis)

    return jax.tree_util.tree_map_with_path(store, params)
