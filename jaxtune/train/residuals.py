"""Residuals of a step on one device: what its forward pass keeps for the backward pass, read off the program."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import PyTree

from jaxtune.model import lora
from jaxtune.model import transformer as model
from jaxtune.model.lora import LoraConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.parallel.mesh import AXES


@functools.lru_cache(maxsize=64)
def shapes_by(shape: ModelConfig, dtype: str, adapters: LoraConfig | None) -> tuple[PyTree, PyTree, PyTree | None]:
    """Shapes of all parameters, of those that train, and of the frozen base (None without adapters)."""
    params = model.abstract_params(shape, jnp.dtype(dtype))[1]
    if adapters is None:
        return params, params, None
    frozen = jax.eval_shape(lambda p: lora.freeze_base(p, adapters), params)
    return params, jax.eval_shape(lambda p: lora.init_lora(p, adapters, 0), frozen), frozen


def residual_bytes(
    shape: ModelConfig, rows: int, seq_len: int, dtype: str, param_dtype: str, adapters: LoraConfig | None,
    experts_over: int = 1,
) -> int:  # fmt: skip
    """Bytes that the forward pass keeps for the backward pass, parameters left out; linear in the rows.

    experts_over: devices over which experts are split, of which each has so many rows.
    """
    counted = functools.partial(_traced_residual_bytes, shape, seq_len, dtype, param_dtype, adapters, experts_over)
    one, two = (counted(n * experts_over) // experts_over for n in (1, 2))
    return one + (rows - 1) * (two - one)


@functools.lru_cache(maxsize=256)
def _traced_residual_bytes(
    shape: ModelConfig, seq_len: int, dtype: str, param_dtype: str, adapters: LoraConfig | None, experts_over: int,
    rows: int,
) -> int:  # fmt: skip
    """Bytes on all devices of a group over which experts are split, with as many rows in all."""
    graphdef = model.abstract_params(shape)[0]
    _, trained, frozen = shapes_by(shape, param_dtype, adapters)

    def kept(trained: PyTree, frozen: PyTree) -> list[Any]:
        ids = jnp.zeros((rows, seq_len), jnp.int32)

        def forward(trained: PyTree) -> Any:
            params = trained if adapters is None else lora.apply_lora(frozen, trained, adapters)
            return model.apply(graphdef, params, ids, ids, ids, dtype=jnp.dtype(dtype))

        given = jax.tree.leaves((trained, frozen))
        leaves = jax.tree.leaves(jax.vjp(forward, trained)[1])
        return [leaf for leaf in leaves if hasattr(leaf, "shape") and not any(leaf is one for one in given)]

    sizes = tuple(experts_over if axis == "expert" else 1 for axis in AXES)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    with contextlib.nullcontext() if experts_over == 1 else jax.sharding.use_abstract_mesh(mesh):
        leaves = jax.eval_shape(kept, trained, frozen)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
