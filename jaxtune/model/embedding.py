"""Embedding lookup in a table that is split over devices, of which none ever holds the whole table or its gradient.

A device has the columns of its place along the mesh axis `fsdp` and the vocabulary of its place along `tensor`. It
looks up the tokens of all devices along `fsdp` in its columns; an all-to-all gives each its rows with all columns. A
token outside a device's vocabulary is 0 there, and one sum along `tensor` adds the device that has it: both are exact.
The gradient takes the same way back, and each device adds it up into its own part of the table.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxtune.model.linear import lookup
from jaxtune.parallel.mesh import ROWS, on_one_device

COLUMNS, VOCABULARY = "fsdp", "tensor"
"""Mesh axes that split the two dimensions of a table."""


def embedded(table: Float[Array, "v d"], tokens: Int[Array, "b s"], dtype: Any) -> Float[Array, "b s d"]:
    """Rows of a table in `dtype`. The table's gradient is summed in float32 and rounded once to the table's dtype.

    Inside `jax.set_mesh(mesh)` the table is taken as `sharding.RULES` split it, and the rows of tokens as a batch's;
    an axis that does not divide its dimension leaves it whole.
    """
    if on_one_device():
        return lookup(table, tokens).astype(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    divides = lambda n, *axes: n % math.prod(mesh.shape[axis] for axis in axes) == 0
    split = lambda n, axis: axis if mesh.shape[axis] > 1 and divides(n, axis) else None
    vocabulary, columns = split(table.shape[0], VOCABULARY), split(table.shape[1], COLUMNS)
    if vocabulary is None and columns is None:
        return lookup(table, tokens).astype(dtype)
    size = lambda axis: 1 if axis is None else mesh.shape[axis]
    places = _Places(
        rows=ROWS if divides(tokens.shape[0], *ROWS) else (), sequence=split(tokens.shape[1], "sequence"),
        vocabulary=vocabulary, columns=columns, dtype=jnp.dtype(dtype).name, table_dtype=table.dtype.name,
        part=(table.shape[0] // size(vocabulary), table.shape[1] // size(columns)),
    )  # fmt: skip
    return _embedded(places, table, tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Places:
    """Mesh axes of the rows, of their tokens, of the vocabulary and of the columns (empty where whole), and dtypes."""

    rows: tuple[str, ...]
    sequence: str | None
    vocabulary: str | None
    columns: str | None
    dtype: str
    """Of what is looked up."""
    table_dtype: str
    part: tuple[int, ...]
    """Shape of a device's part of the table."""

    @property
    def tokens(self) -> jax.P:
        return jax.P(self.rows or None, self.sequence)

    @property
    def table(self) -> jax.P:
        return jax.P(self.vocabulary, self.columns)

    @property
    def activations(self) -> jax.P:
        return jax.P(self.rows or None, self.sequence, None)

    def own(self, tokens: Array) -> tuple[Array, Array]:
        """Of the tokens that this device looks up: their rows in its part, and whether they are there."""
        if self.columns is not None and self.rows:
            tokens = lax.all_gather(tokens, self.columns, tiled=True)
        first = 0 if self.vocabulary is None else lax.axis_index(self.vocabulary) * self.part[0]
        here = (tokens >= first) & (tokens < first + self.part[0])
        return jnp.where(here, tokens - first, 0), here[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _embedded(places, table, tokens):
    def local(table: Array, tokens: Array) -> Array:
        row, here = places.own(tokens)
        found = jnp.where(here, table[row], 0).astype(places.dtype)
        if places.vocabulary is not None:
            found = lax.psum(found, places.vocabulary)
        if places.columns is None:
            return found
        if not places.rows:
            return lax.all_gather(found, places.columns, axis=2, tiled=True)
        return lax.all_to_all(found, places.columns, split_axis=0, concat_axis=2, tiled=True)

    specs = places.table, places.tokens
    return jax.shard_map(local, in_specs=specs, out_specs=places.activations, check_vma=False)(table, tokens)


def _forward(places, table, tokens):
    return _embedded(places, table, tokens), tokens


def _backward(places, tokens, cotangent):
    def local(tokens: Array, cotangent: Array) -> Array:
        row, here = places.own(tokens)
        if places.columns is not None and places.rows:
            cotangent = lax.all_to_all(cotangent, places.columns, split_axis=2, concat_axis=0, tiled=True)
        elif places.columns is not None:
            start = lax.axis_index(places.columns) * places.part[1]
            cotangent = lax.dynamic_slice_in_dim(cotangent, start, places.part[1], axis=2)
        wide = jnp.where(here, cotangent.astype(jnp.float32), 0)
        summed = jnp.zeros(places.part, jnp.float32).at[row].add(wide)
        others = tuple(axis for axis in (*places.rows, places.sequence) if axis not in (None, places.columns))
        return lax.psum(summed, others).astype(places.table_dtype)

    specs = places.tokens, places.activations
    return jax.shard_map(local, in_specs=specs, out_specs=places.table, check_vma=False)(tokens, cotangent), None


_embedded.defvjp(_forward, _backward)
