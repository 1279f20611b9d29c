"""Matrix products in the compute dtype with float32 sums, forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."], *, out_dtype=None) -> Float[Array, "..."]:
    """`einsum(spec, left, right)` computed in the dtype of `left`; the result has `out_dtype`, by default that of `left`.

    Every index of an operand must be in the other operand or the result. In bfloat16 the sums are float32, and so is the
    gradient of a float32 `right` (a parameter): it is never rounded to bfloat16. Cotangents are cast to the compute dtype
    first, so that no matmul mixes dtypes (mixed ones run at float32 speed).
    """
    out_dtype = left.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if left.dtype == right.dtype == out_dtype == jnp.float32:
        return jnp.einsum(spec, left, right)
    return _product(spec, out_dtype, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec, out_dtype, left, right):
    summed = jnp.einsum(spec, left, right.astype(left.dtype), preferred_element_type=jnp.float32)
    return summed.astype(out_dtype)


def _forward(spec, out_dtype, left, right):
    return _product(spec, out_dtype, left, right), (left, right)


def _backward(spec, out_dtype, operands, cotangent):
    left, right = operands
    inputs, output = spec.split("->")
    first, second = inputs.split(",")
    cotangent = cotangent.astype(left.dtype)
    to_left = jnp.einsum(
        f"{output},{second}->{first}", cotangent, right.astype(left.dtype), preferred_element_type=jnp.float32
    )
    to_right = jnp.einsum(f"{first},{output}->{second}", left, cotangent, preferred_element_type=jnp.float32)
    return to_left.astype(left.dtype), to_right.astype(right.dtype)


_product.defvjp(_forward, _backward)
