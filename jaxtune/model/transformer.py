"""One decoder-only Transformer for all families; their differences are typed fields of ModelConfig.

Dimensions: B batch, S sequence, D model, H query heads, K key/value heads, Dh head, F feed-forward, V vocabulary,
L layers, E experts, T cache slots. Parameters (float32 unless asked otherwise), as a nested dict:

    embed.embedding [V, D]
    layers.attn_norm.scale, layers.mlp_norm.scale [L, D]        layers.{attn,mlp}_post_norm.scale [L, D]  (post_norms)
    layers.attn.q.kernel [L, D, H, Dh]    .bias [L, H, Dh]      layers.attn.{q,k}_norm.scale [L, Dh]      (qk_norm)
    layers.attn.{k,v}.kernel [L, D, K, Dh]  .bias [L, K, Dh]    layers.attn.o.kernel [L, H, Dh, D]  .bias [L, D]
    layers.attn.sink_bias [L, H]                                (attn_sinks)
    layers.mlp.{gate,up}.kernel [L, D, F]   .bias [L, F]        layers.mlp.down.kernel [L, F, D]    .bias [L, D]
    layers.moe.router.kernel [L, D, E]      layers.moe.{gate,up}.kernel [L, E, D, F] layers.moe.down.kernel [L, E, F, D]
    layers.moe.router.bias [L, E]           layers.moe.{gate,up}.bias [L, E, F]      layers.moe.down.bias [L, E, D]
    layers.moe.shared.{gate,up}.kernel [L, D, Fs]   .down.kernel [L, Fs, D]   layers.moe.shared_gate.kernel [L, D, 1]
    (where some layers are dense and the others have experts, L is the number of those that have the part)
    final_norm.scale [D]
    head.kernel [D, V]                                          (absent when the embedding is tied)
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.model.attention.blockwise import RESIDUAL
from jaxtune.model.attention.core import cached_attention
from jaxtune.model.attention.layer import kind_numbers, packed_attention, score_options, window_of
from jaxtune.model.block import STD, Block, feed_forward, rms_norm
from jaxtune.model.linear import PRODUCT, Linear, lookup, normal, product
from jaxtune.model.rope import RopeConfig, depends_on_length, example_lengths, query_factor, tables
from jaxtune.model.settings import FeedForward, LayerKind, ModelConfig, Remat
from jaxtune.model.stack import PARTS, Repeat, of_layer, repeats, stacked_for
from jaxtune.parallel.sharding import Layout, constrain, gathered, keep_all_but_gathered, weights_are_split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the tokens seen so far: slot t of a row holds the token of position t."""

    keys: Float[Array, "l b t k d"]
    values: Float[Array, "l b t k d"]
    lengths: Int[Array, " b"]
    """Tokens held by each row, which is the position of its next token."""
    tokens: Int[Array, "b t"] | None = None
    """The tokens themselves, where keys and values must be computed again as a row grows (`rope.depends_on_length`)."""


def init_cache(config: ModelConfig, batch_size: int, slots: int, dtype=jnp.float32) -> Cache:
    """An empty cache for `batch_size` rows of at most `slots` tokens, prompt included."""
    shape = (config.num_layers, batch_size, slots, config.num_kv_heads, config.head_dim)
    again = depends_on_length(config.rope)
    return Cache(
        keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype), lengths=jnp.zeros((batch_size,), jnp.int32),
        tokens=jnp.zeros((batch_size, slots), jnp.int32) if again else None,
    )  # fmt: skip


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
        kinds = [layer.feed_forward for layer in config.layers]
        alike = kinds[0] if len(set(kinds)) == 1 else None
        self.layers = stack(functools.partial(Block, config, alike), config.num_layers)
        for kind in PARTS if alike is None else ():
            own = stack(functools.partial(feed_forward, config, kind), kinds.count(kind))
            setattr(self.layers, PARTS[kind], own)
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

        x = self._embed(tokens, dtype)
        rotations = _rotations(config, positions, example_lengths(positions, segment_ids))
        return self._through_layers(x if noise is None else x + noise, rotations, (), attend, config.remat)[0]

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

        rotations = _rotations(config, positions, jnp.broadcast_to(lengths[:, None], positions.shape))
        x = self._embed(tokens, dtype)
        hidden, (keys, values) = self._through_layers(x, rotations, (cache.keys, cache.values), attend, None)
        return hidden, dataclasses.replace(cache, keys=keys, values=values)

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

    def _through_layers(self, x, rotations, state, attend, remat: Remat | None):
        """Final-normed hidden states and new state, by one scan over each repeated block of layers.

        `attend(state, kind, index, query, key, value, sinks)` mixes over tokens; it returns the result and the new
        state.
        `remat` is None where nothing is differentiated.
        """
        config = self.config
        kinds = [layer.feed_forward for layer in config.layers]
        graphdef, stacked = _split(self.layers)
        graphdefs = {kind: graphdef if len(set(kinds)) == 1 else _block_graph(config, kind) for kind in set(kinds)}

        def layer(kind, carry, scanned):
            x, state = carry
            weights, reach, rope, index = scanned
            block = nnx.merge(graphdefs[kind], gathered(weights, "layers"))
            cos, sin = _of_layer(rotations, rope)
            return block(x, cos, sin, functools.partial(attend, state, reach, index))

        steps = {kind: functools.partial(layer, kind) for kind in graphdefs}
        if remat is not None:
            steps = {kind: _rematerialised(step, remat) for kind, step in steps.items()}
        numbers = (kind_numbers(config), _rope_numbers(config), jnp.arange(config.num_layers))
        for repeat in repeats(kinds):
            (x, state), _ = _scan(steps, repeat, (x, state), stacked_for(stacked, kinds, repeat), numbers)
        hidden = self.final_norm(x)
        return (hidden if config.logit_scale == 1.0 else hidden * jnp.asarray(config.logit_scale, x.dtype)), state

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Float32 next-token logits, soft cap included. (`jaxtune.step.losses` never holds them all.)"""
        if self.head is None:
            logits = product("bsd,vd->bsv", hidden, self.embed.embedding[...], out_dtype=jnp.float32)
        else:
            logits = product("bsd,dv->bsv", hidden, self.head.kernel[...], out_dtype=jnp.float32)
        cap = self.config.final_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _embed(self, tokens: Int[Array, "b s"], dtype) -> Float[Array, "b s d"]:
        table = gathered(self.embed.embedding[...], "embed.embedding")
        x = constrain(lookup(table, tokens).astype(dtype), Layout.HIDDEN)
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


def _block_graph(config: ModelConfig, kind: FeedForward) -> nnx.GraphDef:
    """Graph definition of one layer of a stack of unlike layers."""
    block = nnx.eval_shape(lambda: Block(config, kind, rngs=nnx.Rngs(0), dtype=jnp.float32))
    return nnx.split(block)[0]


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
