"""One decoder-only Transformer for all families; their differences are typed fields of ModelConfig.

Dimensions: B batch, S sequence, D model, H query heads, K key/value heads, Dh head, F feed-forward, V vocabulary,
L layers, E experts, T cache slots. Parameters (float32 unless asked otherwise), as a nested dict:

    embed.embedding [V, D]
    layers.attn_norm.scale, layers.mlp_norm.scale [L, D]        layers.{attn,mlp}_post_norm.scale [L, D]  (post_norms)
    layers.attn.q.kernel [L, D, H, Dh]    .bias [L, H, Dh]      layers.attn.{q,k}_norm.scale [L, Dh]      (qk_norm)
    layers.attn.{k,v}.kernel [L, D, K, Dh]  .bias [L, K, Dh]    layers.attn.o.kernel [L, H, Dh, D]  .bias [L, D]
    layers.attn.sink_bias [L, H]                                (attn_sinks; with attn_gate, heads of q are q and gate)
    layers.delta.qkv.kernel [L, D, C]       .conv.taps [L, C, W]                     .{beta,decay}.kernel [L, D, Hv]
    layers.delta.gate.kernel [L, D, Hv, Dv] .o.kernel [L, Hv, Dv, D]                 .{log_scale,step_bias} [L, Hv]
    layers.delta.norm.scale [L, Dv]         (C channels, W tokens of the convolution, Hv value heads: see `delta`)
    layers.mlp.{gate,up}.kernel [L, D, F]   .bias [L, F]        layers.mlp.down.kernel [L, F, D]    .bias [L, D]
    layers.moe.router.kernel [L, D, E]      layers.moe.{gate,up}.kernel [L, E, D, F] layers.moe.down.kernel [L, E, F, D]
    layers.moe.router.bias [L, E]           layers.moe.{gate,up}.bias [L, E, F]      layers.moe.down.bias [L, E, D]
    layers.moe.shared.{gate,up}.kernel [L, D, Fs]   .down.kernel [L, Fs, D]   layers.moe.shared_gate.kernel [L, D, 1]
    (of attn, delta, mlp and moe, L is the number of layers that have the part)
    final_norm.scale [D]
    head.kernel [D, V]                                          (absent when the embedding is tied)
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.model import delta
from jaxtune.model.attention.blockwise import RESIDUAL
from jaxtune.model.attention.core import cached_attention
from jaxtune.model.attention.layer import kind_numbers, packed_attention, score_options, window_of
from jaxtune.model.block import ACTIVATIONS, STD, Block, part_of, rms_norm
from jaxtune.model.cache import Cache
from jaxtune.model.embedding import embedded
from jaxtune.model.linear import PRODUCT, Linear, normal, product
from jaxtune.model.rope import RopeConfig, example_lengths, query_factor, tables
from jaxtune.model.settings import LayerKind, ModelConfig, Remat
from jaxtune.model.stack import PARTS, Kind, Repeat, kinds_of, of_layer, place_in_part, repeats, stacked_for
from jaxtune.parallel.sharding import Layout, constrain, gathered, keep_all_but_gathered, weights_are_split


class Embed(nnx.Module):
    """Token embedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        self.embedding = nnx.Param(normal(rngs, (config.vocab_size, config.d_model), STD, dtype))


class Transformer(nnx.Module):
    """Embedding, a scan over stacked layers, final norm, and the head.

    Split it once (`init_params`) and use it through `apply` and `apply_cached`, or merge it inside a traced function.
    Compile time does not grow with the number of layers.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
        def stack(make, splits: int) -> nnx.Module:
            drawn = lambda layer_rngs: make(rngs=layer_rngs, dtype=param_dtype)
            return nnx.split_rngs(splits=splits)(nnx.vmap(in_axes=(0,), out_axes=0)(drawn))(rngs)

        self.config = config
        self.embed = Embed(config, rngs=rngs, dtype=param_dtype)
        kinds = kinds_of(config)
        alike = tuple(name for name in PARTS if all(name in kind for kind in kinds))
        self.layers = stack(functools.partial(Block, config, alike), config.num_layers)
        for name in PARTS:
            count = place_in_part(kinds, len(kinds), name)
            if 0 < count < len(kinds):
                setattr(self.layers, name, stack(functools.partial(part_of, config, name), count))
        self.final_norm = rms_norm(config, config.d_model, param_dtype)
        shape = (config.d_model, config.vocab_size)
        untied = lambda: Linear("bsd,dv->bsv", shape, std=STD, rngs=rngs, dtype=param_dtype)
        self.head = None if config.tie_embeddings else untied()  # assigned once: Flax fixes an attribute's kind

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        positions: Int[Array, "b s"],
        segment_ids: Int[Array, "b s"],
        *,
        dtype=jnp.float32,
        noise: Float[Array, "b s d"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Final-normed hidden states of packed rows, in the compute dtype; `noise` is added to the embeddings."""
        config = self.config

        def attend(state, kind, index, query, key, value, sinks):
            query = _grown(config, positions, query)
            return packed_attention(config, kind, segment_ids, query, key, value, sinks), state

        def recur(state, kind, index, mixed):
            assert config.delta is not None
            return delta.packed(config.delta, ACTIVATIONS[config.activation], segment_ids, mixed), state

        x = self._embed(tokens, dtype)
        rotations = _rotations(config, positions, example_lengths(positions, segment_ids))
        mixers = {"attn": attend, "delta": recur}
        return self._through_layers(x if noise is None else x + noise, rotations, {}, mixers, config.remat)[0]

    def extend(
        self,
        tokens: Int[Array, "b s"],
        positions: Int[Array, "b s"],
        segment_ids: Int[Array, "b s"],
        cache: Cache,
        *,
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "b s d"], Cache]:
        """Hidden states of new tokens that follow those in the cache, and the cache with them added.

        A row is one sequence: segment 1 marks its new tokens, 0 padding, which is not stored. Prompts are aligned left:
        positions 0, 1, ...; then one token at a time at position `cache.lengths`. Where rotations depend on a row's
        length and the new tokens take it beyond the original context, the row's cache is computed again first, so that
        the result is that of the whole row read at once.
        """
        ends = jnp.where(segment_ids > 0, positions + 1, 0).max(axis=1).astype(jnp.int32)
        lengths = jnp.maximum(cache.lengths, ends)
        if (held := cache.tokens) is not None:
            cache = self._read_again(cache, lengths, dtype)  # which leaves the tokens as they are
            places = jnp.where(segment_ids > 0, positions, held.shape[1])
            rows = jnp.arange(tokens.shape[0])[:, None]
            seen = held.at[rows, places].set(tokens.astype(jnp.int32), mode="drop")
            cache = dataclasses.replace(cache, tokens=seen)
        hidden, cache = self._extend(tokens, positions, segment_ids, lengths, cache, dtype)
        return hidden, dataclasses.replace(cache, lengths=lengths)

    def _extend(self, tokens, positions, segment_ids, lengths, cache: Cache, dtype):
        """`extend` with the rotations of rows of `lengths` tokens, whatever the cache holds; its lengths stay."""
        config, slots = self.config, cache.keys.shape[2]
        rows = jnp.arange(tokens.shape[0])[:, None]
        places = jnp.where(segment_ids > 0, positions, slots)  # one past the end: dropped

        def attend(buffers, kind, index, query, key, value, sinks):
            stored = zip(buffers, (key, value), strict=True)
            buffers = tuple(b.at[index, rows, places].set(new.astype(b.dtype), mode="drop") for b, new in stored)
            keys, values = (buffer[index].astype(query.dtype) for buffer in buffers)
            options = {"window": window_of(config, kind), **score_options(config)}
            query = _grown(config, positions, query)
            return cached_attention(query, keys, values, positions, sinks, **options), buffers

        def recur(states, kind, index, mixed):
            assert config.delta is not None
            own = tuple(state[index] for state in states)
            out, new = delta.cached(config.delta, ACTIVATIONS[config.activation], segment_ids, own, mixed)
            return out, tuple(state.at[index].set(value) for state, value in zip(states, new, strict=True))

        rotations = _rotations(config, positions, jnp.broadcast_to(lengths[:, None], positions.shape))
        x = self._embed(tokens, dtype)
        held = {"attn": (cache.keys, cache.values), "delta": (cache.windows, cache.memories)}
        hidden, held = self._through_layers(x, rotations, held, {"attn": attend, "delta": recur}, None)
        (keys, values), (windows, memories) = held["attn"], held["delta"]
        return hidden, dataclasses.replace(cache, keys=keys, values=values, windows=windows, memories=memories)

    def _read_again(self, cache: Cache, lengths: Int[Array, " b"], dtype) -> Cache:
        """The cache with keys and values of rows that pass the original context computed for rows of `lengths`."""
        held, original = cache.tokens, self.config.rope.original_max_len
        assert held is not None and original is not None
        batch, slots = held.shape
        passing = (cache.lengths > 0) & (cache.lengths <= original) & (lengths > original)
        chunk = math.gcd(slots, 512)

        def read(number, again: Cache) -> Cache:
            tokens = jax.lax.dynamic_slice_in_dim(held, number * chunk, chunk, axis=1)
            positions = jnp.broadcast_to(number * chunk + jnp.arange(chunk), (batch, chunk))
            present = (passing[:, None] & (positions < cache.lengths[:, None])).astype(jnp.int32)
            return self._extend(tokens, positions, present, lengths, again, dtype)[1]

        chunks = -(-jnp.max(jnp.where(passing, cache.lengths, 0)) // chunk)
        return jax.lax.fori_loop(0, chunks, read, cache)

    def _through_layers(self, x, rotations, held, mixers, remat: Remat | None):
        """Final-normed hidden states and new state, by one scan over each repeated block of layers.

        `mixers[part](held.get(part), reach, index, *projected)` mixes over tokens, for attention and linear attention;
        it returns the result and what is held next. `remat` is None where nothing is differentiated.
        """
        config = self.config
        kinds = kinds_of(config)
        graphdef, stacked = _split(self.layers)
        graphdefs = {kind: graphdef if len(set(kinds)) == 1 else _block_graph(config, kind) for kind in set(kinds)}

        def layer(kind, carry, scanned):
            x, held = carry
            weights, reach, rope, index = scanned
            block = nnx.merge(graphdefs[kind], gathered(weights, "layers"))
            cos, sin = _of_layer(rotations, rope)
            x, new = block(x, cos, sin, functools.partial(mixers[kind[0]], held.get(kind[0]), reach, index))
            return x, held if new is None else {**held, kind[0]: new}

        steps = {kind: functools.partial(layer, kind) for kind in graphdefs}
        if remat is not None:
            steps = {kind: _rematerialised(step, remat) for kind, step in steps.items()}
        numbers = (kind_numbers(config), _rope_numbers(config), _places(kinds))
        for repeat in repeats(kinds):
            (x, held), _ = _scan(steps, repeat, (x, held), stacked_for(stacked, kinds, repeat), numbers)
        hidden = self.final_norm(x)
        return (hidden if config.logit_scale == 1.0 else hidden * jnp.asarray(config.logit_scale, x.dtype)), held

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Float32 next-token logits, soft cap included. (`jaxtune.step.losses` never holds them all.)"""
        if self.head is None:
            logits = product("bsd,vd->bsv", hidden, self.embed.embedding[...], out_dtype=jnp.float32)
        else:
            logits = product("bsd,dv->bsv", hidden, self.head.kernel[...], out_dtype=jnp.float32)
        cap = self.config.final_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _embed(self, tokens: Int[Array, "b s"], dtype) -> Float[Array, "b s d"]:
        x = constrain(embedded(self.embed.embedding[...], tokens, dtype), Layout.HIDDEN)
        return x if self.config.embed_scale is None else x * jnp.asarray(self.config.embed_scale, dtype)


def init_params(config: ModelConfig, seed: int | Int[Array, ""], dtype=jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """Graph definition and freshly drawn parameters, a nested dict of arrays. Pure, so it may be jitted."""
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(jax.random.key(seed)), param_dtype=dtype), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def abstract_params(config: ModelConfig, dtype=jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """Parameters as `init_params` makes them, with shapes in place of arrays; nothing is computed."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), param_dtype=dtype))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def apply(
    graphdef: nnx.GraphDef,
    params,
    tokens: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    segment_ids: Int[Array, "b s"],
    *,
    dtype=jnp.float32,
    noise: Float[Array, "b s d"] | None = None,
) -> Float[Array, "b s d"]:
    """Hidden states of packed rows; see Transformer.__call__."""
    return nnx.merge(graphdef, params)(tokens, positions, segment_ids, dtype=dtype, noise=noise)


def apply_cached(
    graphdef: nnx.GraphDef,
    params,
    tokens: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    segment_ids: Int[Array, "b s"],
    cache: Cache,
    *,
    dtype=jnp.float32,
) -> tuple[Float[Array, "b s d"], Cache]:
    """Hidden states of new tokens and the longer cache; see Transformer.extend."""
    return nnx.merge(graphdef, params).extend(tokens, positions, segment_ids, cache, dtype=dtype)


def apply_logits(graphdef: nnx.GraphDef, params, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
    """Next-token logits of hidden states; see Transformer.logits."""
    return nnx.merge(graphdef, params).logits(hidden)


def _split(layers: nnx.Module):
    """Graph definition of one layer, and the stacked weights as a nested dict."""
    graphdef, stacked = nnx.split(layers)
    return graphdef, nnx.to_pure_dict(stacked)


def _block_graph(config: ModelConfig, kind: Kind) -> nnx.GraphDef:
    """Graph definition of one layer of a stack of unlike layers."""
    block = nnx.eval_shape(lambda: Block(config, kind, rngs=nnx.Rngs(0), dtype=jnp.float32))
    return nnx.split(block)[0]


def _places(kinds: Sequence[Kind]) -> Int[Array, " l"]:
    """Place of each layer among those that mix over tokens in its way, as the cache stacks them."""
    if len({mixer for mixer, _ in kinds}) == 1:
        return jnp.arange(len(kinds))
    return jnp.asarray([place_in_part(kinds, layer, kind[0]) for layer, kind in enumerate(kinds)])


def _scan(steps, repeat: Repeat, carry, stacked, numbers):
    """One scan over a block of layers that repeats: `steps[kind](carry, (weights, *numbers))` for each of them."""
    block, length = repeat.block, len(repeat.block)
    own = [number[repeat.first : repeat.end] for number in numbers]
    if length == 1:
        return jax.lax.scan(lambda carry, one: (steps[block[0]](carry, one), None), carry, (stacked, *own))

    def body(carry, scanned):
        weights, *numbers = scanned
        for place, kind in enumerate(block):
            one = (of_layer(weights, block, place), *(number[place] for number in numbers))
            carry = steps[kind](carry, one)
        return carry, None

    return jax.lax.scan(body, carry, (stacked, *(number.reshape(-1, length) for number in own)))


def _rotations(config: ModelConfig, positions: Int[Array, "b s"], lengths: Int[Array, "b s"]):
    """Cosines and sines, with a leading axis over the layers' choices (see `_rope_numbers`) where there are several."""
    pairs = [tables(rope, config.head_dim, positions, lengths) for rope in _ropes(config)]
    if config.unrotated_layers:
        cos, sin = pairs[0]
        pairs.append((jnp.ones_like(cos), jnp.zeros_like(sin)))
    return pairs[0] if len(pairs) == 1 else tuple(jnp.stack(part) for part in zip(*pairs, strict=True))


def _grown(
    config: ModelConfig, positions: Int[Array, "b s"], query: Float[Array, "b s h d"]
) -> Float[Array, "b s h d"]:
    """Queries times the factor of their positions, where the rope has one."""
    factor = query_factor(config.rope, positions)
    return query if factor is None else query * factor[:, :, None, None].astype(query.dtype)


def _ropes(config: ModelConfig) -> list[RopeConfig]:
    return [config.rope] if config.local_rope is None else [config.rope, config.local_rope]


def _rope_numbers(config: ModelConfig) -> Int[Array, " l"]:
    """Which of `_rotations` each layer takes: those of `rope`, of `local_rope`, or last, none."""
    own = config.local_rope is not None
    numbers = [int(own and kind is LayerKind.LOCAL) for kind in config.kinds]
    for layer in config.unrotated_layers:
        numbers[layer] = len(_ropes(config))
    return jnp.asarray(numbers, jnp.int32)


def _of_layer(rotations, number: Int[Array, ""]):
    return tuple(table[number] if table.ndim == 4 else table for table in rotations)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy for `jax.checkpoint`: keep what JAX's cuDNN attention computes, which it gives no name."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _rematerialised(layer, remat: Remat):
    policies = jax.checkpoint_policies
    match remat:
        case Remat.NONE if weights_are_split():
            policy = keep_all_but_gathered
        case Remat.NONE:
            return layer
        case Remat.FULL:
            policy = policies.nothing_saveable
        case Remat.DOTS:
            named = policies.save_only_these_names(PRODUCT, RESIDUAL)
            policy = policies.save_from_both_policies(named, _is_cudnn_attention)
        case Remat.OFFLOAD:
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[], names_which_can_be_offloaded=[PRODUCT],
                offload_src="device", offload_dst="pinned_host",
            )  # fmt: skip
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
