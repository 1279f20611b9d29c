"""The product of rows with one of several matrices each: what a mixture of experts computes.

`jax.lax.ragged_dot` is a kernel on TPUs. Elsewhere JAX multiplies every row by every matrix and keeps one product of
each, at `groups` times the cost in time and memory. Here the rows of a group are taken in blocks, one matrix product a
block.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LEAST_BLOCK, MOST_BLOCK = 16, 256
"""Rows of a block: few enough that the last one of a group is not mostly empty, enough to keep a matrix unit busy."""


def grouped_product(
    rows: Float[Array, "n a"], matrices: Float[Array, "g a b"], sizes: Int[Array, " g"]
) -> Float[Array, "n b"]:
    """Rows times the matrix of their group: the first `sizes[0]` rows are group 0's, the next `sizes[1]` group 1's.

    Sums are float32; the result has the dtype of the rows. Rows behind the last group's may come back as anything, and
    so may their gradients; those of the matrices leave them out.
    """
    return _product(rows, matrices, sizes)


@jax.custom_vjp
def _product(rows, matrices, sizes):
    return jax.lax.platform_dependent(rows, matrices, sizes, tpu=jax.lax.ragged_dot, default=_by_blocks)


def _forward(rows, matrices, sizes):
    return _product(rows, matrices, sizes), (rows, matrices, sizes)


def _backward(kept, gradient):
    def by_kernel(rows, matrices, sizes, gradient):
        return jax.vjp(lambda r, m: jax.lax.ragged_dot(r, m, sizes), rows, matrices)[1](gradient)

    def by_blocks(rows, matrices, sizes, gradient):
        into = _outer_by_blocks(rows, gradient, sizes).astype(matrices.dtype)
        return _by_blocks(gradient, matrices, sizes, transposed=True), into

    return *jax.lax.platform_dependent(*kept, gradient, tpu=by_kernel, default=by_blocks), None


_product.defvjp(_forward, _backward)


def block_size(rows: int, groups: int) -> int:
    """Rows of a block: about half of an average group."""
    return min(MOST_BLOCK, max(LEAST_BLOCK, 1 << math.ceil(math.log2(max(1, rows / (2 * groups))))))


def _by_blocks(
    rows: Float[Array, "n c"], matrices: Float[Array, "g a b"], sizes: Int[Array, " g"], *, transposed: bool = False
) -> Float[Array, "n d"]:
    size = block_size(len(rows), len(matrices))
    padded = jnp.pad(rows, ((0, size), (0, 0)))

    def one(group: Array, start: Array, _: Array, out: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(padded, start, size)
        matrix = matrices[group].T if transposed else matrices[group]  # a transposed copy of all would be kept
        product = jnp.dot(block, matrix, preferred_element_type=jnp.float32).astype(rows.dtype)
        # What the block holds of the next groups is written again by their own blocks, which come later.
        return jax.lax.dynamic_update_slice_in_dim(out, product, start, 0)

    out = jnp.zeros((len(padded), matrices.shape[1 if transposed else 2]), rows.dtype)
    return _over_blocks(one, sizes, size, len(rows), out)[: len(rows)]


def _outer_by_blocks(
    rows: Float[Array, "n a"], gradient: Float[Array, "n b"], sizes: Int[Array, " g"]
) -> Float[Array, "g a b"]:
    size = block_size(len(rows), len(sizes))
    left, right = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, gradient))

    def one(group: Array, start: Array, end: Array, sums: Array) -> Array:
        mine = (start + jnp.arange(size) < end)[:, None]
        block = jnp.where(mine, jax.lax.dynamic_slice_in_dim(left, start, size), 0)
        ahead = jax.lax.dynamic_slice_in_dim(right, start, size)
        return sums.at[group].add(jnp.dot(block.T, ahead, preferred_element_type=jnp.float32))

    sums = jnp.zeros((len(sizes), rows.shape[-1], gradient.shape[-1]), jnp.float32)
    return _over_blocks(one, sizes, size, len(rows), sums)


def _over_blocks(
    one: Callable[[Array, Array, Array, Array], Array], sizes: Int[Array, " g"], size: int, rows: int, value: Array
) -> Array:
    """`value = one(group, first row, end of the group, value)` for the blocks of all groups, in the rows' order."""
    ends = jnp.cumsum(sizes)
    blocks = jnp.cumsum(-(-sizes // size))  # of this group and those before it
    numbers = jnp.arange(rows // size + len(sizes) + 1)  # as many as there can be
    group = jnp.clip(jnp.searchsorted(blocks, numbers, side="right"), 0, len(sizes) - 1)
    before = jnp.where(group > 0, blocks[group - 1], 0)
    start = (ends - sizes)[group] + (numbers - before) * size
    body = lambda i, value: one(group[i], start[i], ends[group[i]], value)
    return jax.lax.fori_loop(0, blocks[-1], body, value)
