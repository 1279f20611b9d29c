"""Parameters read from a model folder onto devices: by a process alone, or by the processes of a job, each a share.

What the devices of a host keep of a matrix is seldom in one piece in its file: weights are stored [outputs, inputs] and
split along either, or kept by all. So each process of a job reads its share of the rows of every stored matrix,
whatever its devices keep, and the devices pass on what others keep over their own network: nothing is read twice. The
numbers travel as the bits that they are. Vectors, and weights that are packed, are read by every process.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.errors import UserError
from jaxtune.hf.layout import Piece, from_stored

CHUNK_BYTES = 256 * 2**20
"""A stacked parameter goes to its devices in pieces of about this size, which bounds host memory."""
BITS = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


def load(
    path: tuple[str, ...], leaf: Any, pieces: list[Piece], sharding: jax.sharding.Sharding | None, problems: list[str]
) -> jax.Array:
    """One parameter: its pieces read, transposed, cast, stacked and placed.

    In a job what is wrong with a share is added to `problems`, so that all processes go on to where they compare them.
    """
    together = sharding if isinstance(sharding, NamedSharding) and spans_processes(sharding) else None
    if not all(piece.splits for piece in pieces):
        together = None
    lead = len(pieces[0].index)
    layers = leaf.shape[0] if lead else 1
    layer_bytes = math.prod(leaf.shape[1:] if lead else leaf.shape) * leaf.dtype.itemsize
    step = max(1, min(layers, CHUNK_BYTES // layer_bytes))
    chunks = []
    for first in range(0, layers, step):
        last = min(first + step, layers)
        chosen = [piece for piece in pieces if not lead or first <= piece.index[0] < last]
        shape = (last - first, *leaf.shape[1:]) if lead else leaf.shape
        if together is not None:
            chunks.append(_read_share(path, jax.ShapeDtypeStruct(shape, leaf.dtype), chosen, together, problems))
        else:
            chunks.append(_place(_read(path, shape, leaf.dtype, chosen, first), sharding))
    if len(chunks) == 1:
        return chunks[0]
    return jax.jit(lambda *parts: jnp.concatenate(parts), out_shardings=sharding)(*chunks)


def spans_processes(sharding: NamedSharding) -> bool:
    """Whether devices of several processes keep parts of an array."""
    return not sharding.is_fully_addressable


def _read(path: tuple[str, ...], shape: tuple[int, ...], dtype: Any, pieces: list[Piece], first: int) -> np.ndarray:
    """Pieces stacked from layer `first` on, or the single one of a parameter that is not stacked."""
    lead = len(pieces[0].index)
    if not lead:
        return _cast(from_stored(path, pieces[0], shape), dtype)
    buffer = np.empty(shape, dtype)
    for piece in pieces:
        layer, *inner = piece.index
        buffer[(layer - first, *inner)] = _cast(from_stored(path, piece, shape[lead:]), dtype)
    return buffer


def _cast(value: np.ndarray, dtype: Any) -> np.ndarray:
    if value.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # exact, and faster than astype
    return value.astype(dtype, copy=False)


def _place(value: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _read_share(
    path: tuple[str, ...], wanted: jax.ShapeDtypeStruct, pieces: list[Piece], sharding: NamedSharding,
    problems: list[str],
) -> jax.Array:  # fmt: skip
    """Pieces stacked, of which each device is given its share of the rows as they are stored."""
    devices, dtype = sharding.mesh.size, np.dtype(wanted.dtype)
    rows, columns = pieces[0].matrix
    ordered = sorted(pieces, key=lambda piece: piece.index)
    shape = (len(ordered), -(-rows // devices) * devices, columns)

    def share(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "every device has rows"
        begin, end, _ = index[1].indices(shape[1])
        found = np.zeros((shape[0], end - begin, columns), dtype)
        for values, piece in zip(found, ordered, strict=True):
            kept = min(end, rows) - begin
            try:
                if kept > 0:
                    values[:kept] = _cast(piece.read_rows(begin, begin + kept), dtype)
            except UserError as error:
                problems.append(str(error))
        return found.view(BITS[dtype.itemsize])

    by_rows = NamedSharding(sharding.mesh, PartitionSpec(None, sharding.mesh.axis_names))
    stored = jax.make_array_from_callback(shape, by_rows, share)
    turned = path[-1] == "kernel" and pieces[0].place.columns is None
    return _arranged(wanted.shape, dtype, rows, turned, sharding)(stored)


@functools.lru_cache(maxsize=64)
def _arranged(
    shape: tuple[int, ...], dtype: np.dtype, rows: int, turned: bool, sharding: NamedSharding
) -> Callable[[jax.Array], jax.Array]:
    """From bits of stored matrices [pieces, padded rows, columns] to a parameter in its place."""

    def arrange(bits: jax.Array) -> jax.Array:
        matrices = bits[:, :rows].swapaxes(1, 2) if turned else bits[:, :rows]
        return jax.lax.bitcast_convert_type(matrices.reshape(shape), dtype)

    return jax.jit(arrange, out_shardings=sharding)
