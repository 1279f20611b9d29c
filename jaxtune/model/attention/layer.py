"""Attention of one layer among layers of several kinds, on one device or on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxtune.model.attention.blockwise import Scoring
from jaxtune.model.attention.core import Backend, attention, choose_plain
from jaxtune.model.settings import LayerKind, ModelConfig
from jaxtune.parallel.mesh import ROWS, on_one_device


def score_options(config: ModelConfig) -> dict:
    scale = config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
    return {"scale": scale, "soft_cap": config.attn_soft_cap}


def packed_attention(config: ModelConfig, kind, segment_ids, query, key, value, sinks=None):
    """Attention of a layer whose kind is traced, with windows that are static, as kernels need them."""
    windows = [None, config.sliding_window]  # by kind: global, local
    used = sorted({int(kind is LayerKind.LOCAL) for kind in config.kinds if kind is not LayerKind.LINEAR})
    branches = [_on_each_device(Scoring(window=windows[i], **score_options(config)), config) for i in used]
    if len(branches) == 1:
        return branches[0](query, key, value, segment_ids, sinks)
    return jax.lax.switch(kind, branches, query, key, value, segment_ids, sinks)


def _on_each_device(scoring: Scoring, config: ModelConfig):
    """Attention by the config's backend; inside a mesh, each device computes its own rows and heads.

    The reference is left to the compiler, which can also split the tokens of a row.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = on_one_device()
    backend = Backend.REFERENCE if not alone and mesh.shape["sequence"] > 1 else config.attention

    def run(query, key, value, segment_ids, sinks):
        chosen = choose_plain(query.shape[1], scoring, sinks) if backend is Backend.AUTO else backend
        local = functools.partial(attention, scoring=scoring, backend=chosen)
        if alone or chosen is Backend.REFERENCE:
            return local(query, key, value, segment_ids, sinks)
        rows = ROWS if query.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else None
        heads = "tensor" if config.num_kv_heads % mesh.shape["tensor"] == 0 else None
        spec = jax.P(rows, None, heads, None)
        specs = (spec, spec, spec, jax.P(rows, None), *(() if sinks is None else (jax.P(heads),)))
        given = (query, key, value, segment_ids, *(() if sinks is None else (sinks,)))
        return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(*given)

    return run


def window_of(config: ModelConfig, kind: Int[Array, ""]) -> Int[Array, ""] | None:
    """Window of a layer; a global layer's is longer than any context."""
    if config.sliding_window is None:
        return None
    return jnp.where(kind == 1, config.sliding_window, jnp.iinfo(jnp.int32).max)


def kind_numbers(config: ModelConfig) -> Int[Array, " l"]:
    return jnp.asarray([int(kind is LayerKind.LOCAL) for kind in config.kinds], jnp.int32)
