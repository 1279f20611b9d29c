"""Attention of one layer among layers of several kinds, on one device or on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxtune.errors import UserError
from jaxtune.model.attention.blockwise import Scoring
from jaxtune.model.attention.core import Backend, attention, choose_plain
from jaxtune.model.attention.exchange import copies, exchanged
from jaxtune.model.attention.ring import ring_attention
from jaxtune.model.settings import LayerKind, ModelConfig
from jaxtune.parallel.mesh import ROWS, on_one_device, sequence_shards
from jaxtune.parallel.sharding import Layout, constrain


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

    The reference is left to the compiler, which can also split the tokens of a row: then every device gets all keys.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone, parts = on_one_device(), sequence_shards()

    def run(query, key, value, segment_ids, sinks):
        rows = None if alone or query.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS) else ROWS
        split_heads = not alone and config.num_kv_heads % mesh.shape["tensor"] == 0
        chosen = config.attention
        if parts > 1:
            chosen = _of_parts(config, query.shape[1], parts, mesh.shape["tensor"])
        elif chosen is Backend.AUTO:
            chosen = choose_plain(query.shape[1], scoring, sinks)
        if alone or chosen is Backend.REFERENCE:
            key, value = (constrain(x, Layout.KEYS_VALUES) if parts > 1 else x for x in (key, value))
            return attention(query, key, value, segment_ids, sinks, scoring=scoring, backend=chosen)
        local = functools.partial(attention, scoring=scoring, backend=chosen)
        if chosen is Backend.RING:
            local = functools.partial(ring_attention, scoring=scoring, axis="sequence", size=parts)
        elif parts > 1:
            local = functools.partial(exchanged, local, axis="sequence", size=parts)
        tokens = "sequence" if parts > 1 else None
        heads = "tensor" if split_heads else None
        spec = jax.P(rows, tokens, heads, None)
        specs = (spec, spec, spec, jax.P(rows, tokens), *(() if sinks is None else (jax.P(heads),)))
        given = (query, key, value, segment_ids, *(() if sinks is None else (sinks,)))
        return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(*given)

    return run


def _of_parts(config: ModelConfig, length: int, parts: int, tensor_shards: int) -> Backend:
    """The config's backend for rows whose tokens are split into `parts`; unresolved, the plain path for these."""
    backend = config.attention
    if length % parts and backend is not Backend.REFERENCE:
        raise UserError(f"rows of {length} tokens do not divide over sequence={parts}; choose a multiple of it")
    if backend is Backend.AUTO:
        return plain_in_parts(config, parts, tensor_shards)
    if reason := obstacle_of_parts(backend, config, parts, tensor_shards):
        raise UserError(f"attention by {backend.value} cannot run here: {reason}. Choose auto or ring.")
    return backend


def plain_in_parts(config: ModelConfig, parts: int, tensor_shards: int, platform: str | None = None) -> Backend:
    """Attention without a kernel of its own for rows whose tokens are split into `parts`: memory linear in the row.

    Blocks of whole rows where heads divide over the parts and the platform is a CPU, as `plain` says; else the ring.
    """
    exchange = obstacle_of_parts(Backend.BLOCKWISE, config, parts, tensor_shards) is None
    return Backend.BLOCKWISE if exchange and (platform or jax.default_backend()) == "cpu" else Backend.RING


def obstacle_of_parts(backend: Backend, config: ModelConfig, parts: int, tensor_shards: int) -> str | None:
    """Why a backend cannot run on rows whose tokens are split into `parts`, or on whole ones with `parts` = 1.

    The ring and the reference split rows of themselves; all others get whole rows of some heads (see `exchange`).
    """
    if backend is Backend.RING:
        return None if parts > 1 else "it needs rows whose tokens are split (sequence > 1), and here they are whole"
    if parts == 1 or backend is Backend.REFERENCE:
        return None
    ways = tensor_shards if config.num_kv_heads % tensor_shards == 0 else 1
    heads, kv_heads = config.num_heads // ways, config.num_kv_heads // ways
    if copies(heads, kv_heads, parts) is not None:
        return None
    return (
        f"it needs whole rows, so the mesh must split heads in place of tokens, and {heads} heads of queries and "
        f"{kv_heads} of keys do not divide over sequence={parts}"
    )


def window_of(config: ModelConfig, kind: Int[Array, ""]) -> Int[Array, ""] | None:
    """Window of a layer; a global layer's is longer than any context."""
    if config.sliding_window is None:
        return None
    return jnp.where(kind == 1, config.sliding_window, jnp.iinfo(jnp.int32).max)


def kind_numbers(config: ModelConfig) -> Int[Array, " l"]:
    return jnp.asarray([int(kind is LayerKind.LOCAL) for kind in config.kinds], jnp.int32)
