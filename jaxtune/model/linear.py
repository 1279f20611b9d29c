"""Matrix products in the compute dtype with float32 sums, forward and backward; linear layers and RMSNorm."""

import abc
import functools
import os
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxtune.parallel.mesh import on_one_device

REDUCED = jax.make_user_context("float32")
"""Dtype in which devices add up their parts of a gradient, for programs traced inside `with REDUCED(name)`."""

PRODUCT = "product"
"""Name of a linear layer's matmul result, for rematerialisation policies."""


class Kernel(abc.ABC):
    """A weight that is more than one array (quantised, adapted), in the place of the array in a parameter tree."""

    @abc.abstractmethod
    def product(self, spec: str, left: Float[Array, "..."], out_dtype: Any) -> Float[Array, "..."]:
        """Product of activations with this weight, for the function `product`."""

    @abc.abstractmethod
    def dense(self) -> Float[Array, "..."]:
        """The weight as one float32 array."""

    def astype(self, dtype: Any) -> Float[Array, "..."]:
        """The weight as one array of `dtype`."""
        return self.dense().astype(dtype)

    def __getitem__(self, index: EllipsisType) -> "Kernel":
        return self


def product(
    spec: str, left: Float[Array, "..."], right: Float[Array, "..."] | Kernel, *, out_dtype=None
) -> Float[Array, "..."]:
    """`einsum(spec, left, right)` in the dtype of `left`; the result has `out_dtype`, by default that of `left`.

    Every index of an operand must be in the other operand or the result. In bfloat16 the sums are float32, and so is
    the gradient of a float32 `right` (a parameter): it is not rounded to bfloat16, but where devices add up their
    parts of it in bfloat16 (`REDUCED`). Cotangents are cast to the compute dtype first, so that no matmul mixes dtypes
    (mixed ones run at float32 speed). The gradients are written out because those that JAX derives come transposed,
    which a CPU pays for: half again the time of a feed-forward layer.
    """
    out_dtype = left.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if isinstance(right, Kernel):
        return right.product(spec, left, out_dtype)
    narrow = REDUCED.value == left.dtype.name and not on_one_device()
    return _product(spec, out_dtype, left.dtype if narrow else jnp.dtype("float32"), left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(spec, out_dtype, reduced, left, right):
    summed = jnp.einsum(spec, left, right.astype(left.dtype), preferred_element_type=jnp.float32)
    return summed.astype(out_dtype)


def _forward(spec, out_dtype, reduced, left, right):
    return _product(spec, out_dtype, reduced, left, right), (left, right)


def _backward(spec, out_dtype, reduced, operands, cotangent):
    left, right = operands
    inputs, output = spec.split("->")
    first, second = inputs.split(",")
    cotangent = cotangent.astype(left.dtype)
    to_left = jnp.einsum(
        f"{output},{second}->{first}", cotangent, right.astype(left.dtype), preferred_element_type=jnp.float32
    )
    kept = len(os.path.commonprefix((first, output)))
    if kept > 1 and left.dtype == jnp.float32 and on_one_device():
        # Summed over one axis, neither operand is transposed; over two, XLA copies the first with its axes exchanged.
        # On a mesh, two axes that are split cannot be joined without moving the operand.
        first, output = first[kept - 1 :], output[kept - 1 :]
        left, cotangent = (x.reshape(-1, *x.shape[kept:]) for x in (left, cotangent))
    to_right = jnp.einsum(f"{first},{output}->{second}", left, cotangent, preferred_element_type=reduced)
    return to_left.astype(left.dtype), to_right.astype(right.dtype)


_product.defvjp(_forward, _backward)


@jax.custom_vjp
def lookup(table: Float[Array, "v d"], tokens: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """Rows of an embedding table. Its gradient is summed in float32 and rounded once to the dtype of the table."""
    return table[tokens]


def _lookup_forward(table, tokens):
    return table[tokens], (jnp.zeros((0,), table.dtype), table.shape, tokens)


def _lookup_backward(residuals, cotangent):
    like, shape, tokens = residuals
    summed = jnp.zeros(shape, jnp.float32).at[tokens].add(cotangent.astype(jnp.float32))
    return summed.astype(like.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


class Linear(nnx.Module):
    """einsum(spec, x, kernel) + bias, in the dtype of x."""

    def __init__(
        self,
        spec: str,
        shape: tuple[int, ...],
        bias: tuple[int, ...] | None = None,
        *,
        std: float,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        self.kernel = nnx.Param(normal(rngs, shape, std, dtype))
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias, dtype))
        self.spec = spec

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = checkpoint_name(product(self.spec, x, self.kernel[...]), PRODUCT)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(jnp.float32)  # so that its gradient, a sum over all tokens, is float32 too
        return (y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)).astype(y.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467), in float32; with `offset`, times 1 + scale.

    With `center`, the mean of x is subtracted first: LayerNorm (arXiv 1607.06450) without a bias.
    """

    def __init__(self, dim: int, *, eps: float, offset: bool, center: bool = False, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.zeros((dim,), dtype) if offset else jnp.ones((dim,), dtype))
        self.eps = eps
        self.offset = offset
        self.center = center

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        if self.center:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32) + (1.0 if self.offset else 0.0)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype) -> Float[Array, "..."]:
    """Draws from a normal distribution around zero, drawn in float32 whatever the dtype."""
    return (std * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)
