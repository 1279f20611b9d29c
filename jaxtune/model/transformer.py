"""One decoder-only Transformer for all families; their differences are typed fields of ModelConfig.

Dimensions: B batch, S sequence, D model, H query heads, K key/value heads, Dh head, F feed-forward, V vocabulary,
L layers, E experts, T cache slots. Parameters (float32 unless asked otherwise), as a nested dict:

    embed.embedding [V, D]
    layers.attn_norm.scale, layers.mlp_norm.scale [L, D]        layers.{attn,mlp}_post_norm.scale [L, D]  (post_norms)
    layers.attn.q.kernel [L, D, H, Dh]    .bias [L, H, Dh]      layers.attn.{q,k}_norm.scale [L, Dh]      (qk_norm)
    layers.attn.{k,v}.kernel [L, D, K, Dh]  .bias [L, K, Dh]    layers.attn.o.kernel [L, H, Dh, D]  .bias [L, D]
    layers.mlp.{gate,up}.kernel [L, D, F]   .bias [L, F]        layers.mlp.down.kernel [L, F, D]    .bias [L, D]
    layers.moe.router.kernel [L, D, E]      layers.moe.{gate,up}.kernel [L, E, D, F] layers.moe.down.kernel [L, E, F, D]
    final_norm.scale [D]
    head.kernel [D, V]                                          (absent when the embedding is tied)
"""

import dataclasses
import enum
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.errors import UserError
from jaxtune.model.attention.blockwise import RESIDUAL
from jaxtune.model.attention.core import Backend, attention, cached_attention, plain
from jaxtune.model.linear import PRODUCT, Linear, RMSNorm, normal, product
from jaxtune.model.moe import Moe, MoeConfig
from jaxtune.model.rope import RopeConfig, rotary_dim, rotate, tables
from jaxtune.parallel.compilation import on_one_device
from jaxtune.parallel.sharding import ROWS, Layout, constrain, gathered, keep_all_but_gathered, weights_are_split


class Activation(enum.Enum):
    """Gate of the feed-forward layer."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"


class LayerKind(enum.Enum):
    """What a layer attends to: the whole segment, or its last `sliding_window` tokens."""

    GLOBAL = "global"
    LOCAL = "local"


class Remat(enum.Enum):
    """What the backward pass computes again instead of keeping it in memory."""

    NONE = "none"  # nothing
    DOTS = "dots"  # all but the results of matmuls with weights, and of attention
    FULL = "full"  # everything inside a layer; only the layers' inputs are kept
    OFFLOAD = "offload"  # as DOTS, with the matmul results kept in host memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and family of a Transformer. All but `remat` and `attention` says what it computes; these two say how."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    """Longest context; longer rows are an error."""
    family: str = "llama"
    """Hugging Face `model_type`: names the tensor layout for import and export."""
    activation: Activation = Activation.SILU
    norm_eps: float = 1e-5
    norm_offset: bool = False
    """RMSNorm multiplies by 1 + scale, with scale starting at zero (Gemma)."""
    post_norms: bool = False
    """A second norm after attention and feed-forward, before the residual sum (Gemma 2, 3)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation (Qwen 3, Gemma 3)."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = True
    embed_scale: float | None = None
    """Factor on embeddings, rounded to the compute dtype (Gemma: sqrt(D))."""
    attn_scale: float | None = None
    """Factor on query-key products; None is Dh ** -0.5."""
    attn_soft_cap: float | None = None
    final_soft_cap: float | None = None
    """Logits become cap * tanh(logits / cap); the loss must apply it too."""
    sliding_window: int | None = None
    layer_kinds: tuple[LayerKind, ...] | None = None
    """One per layer; None: all LOCAL with a sliding window, else all GLOBAL."""
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    """Rotary embedding of LOCAL layers where it differs (Gemma 3)."""
    moe: MoeConfig | None = None
    """Mixture of experts in place of the dense feed-forward; `d_ff` is then unused."""
    remat: Remat = Remat.NONE
    attention: Backend = Backend.AUTO

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"model {name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"sliding_window is {self.sliding_window}; it must be at least 1, or None.")
        if len(self.kinds) != self.num_layers:
            raise UserError(f"layer_kinds has {len(self.kinds)} entries; the model has {self.num_layers} layers.")
        if LayerKind.LOCAL in self.kinds and self.sliding_window is None:
            raise UserError("layer_kinds has local layers; set sliding_window.")
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                rotary_dim(rope, self.head_dim)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kind of every layer, with the default filled in."""
        if self.layer_kinds is not None:
            return self.layer_kinds
        return (LayerKind.GLOBAL if self.sliding_window is None else LayerKind.LOCAL,) * self.num_layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the tokens seen so far: slot t of a row holds the token of position t."""

    keys: Float[Array, "l b t k d"]
    values: Float[Array, "l b t k d"]
    lengths: Int[Array, " b"]
    """Tokens held by each row, which is the position of its next token."""


def init_cache(config: ModelConfig, batch_size: int, slots: int, dtype=jnp.float32) -> Cache:
    """An empty cache for `batch_size` rows of at most `slots` tokens, prompt included."""
    shape = (config.num_layers, batch_size, slots, config.num_kv_heads, config.head_dim)
    return Cache(
        keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype), lengths=jnp.zeros((batch_size,), jnp.int32)
    )


class Attention(nnx.Module):
    """Projections of grouped-query attention, with rotary embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, h, k, dh = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        out_bias = (d,) if config.out_bias else None

        def project(heads: int) -> Linear:
            bias = (heads, dh) if config.qkv_bias else None
            return Linear("bsd,dhe->bshe", (d, heads, dh), bias, std=STD, rngs=rngs, dtype=dtype)

        self.q, self.k, self.v = project(h), project(k), project(k)
        self.o = Linear("bshe,hed->bsd", (h, dh, d), out_bias, std=_std_out(config), rngs=rngs, dtype=dtype)
        self.q_norm = _norm(config, dh, dtype) if config.qk_norm else None
        self.k_norm = _norm(config, dh, dtype) if config.qk_norm else None

    def project(self, x: Float[Array, "b s d"], cos, sin):
        """Rotated queries and keys, and values."""
        query = constrain(self.q(x), Layout.HEADS)
        key, value = (constrain(project(x), Layout.KEYS_VALUES) for project in (self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return rotate(query, cos, sin), rotate(key, cos, sin), value


class Mlp(nnx.Module):
    """down(activation(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        d, f = config.d_model, config.d_ff
        wide, narrow = ((f,), (d,)) if config.mlp_bias else (None, None)
        self.gate = Linear("bsd,df->bsf", (d, f), wide, std=STD, rngs=rngs, dtype=dtype)
        self.up = Linear("bsd,df->bsf", (d, f), wide, std=STD, rngs=rngs, dtype=dtype)
        self.down = Linear("bsf,fd->bsd", (f, d), narrow, std=_std_out(config), rngs=rngs, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        gate, up = (constrain(project(x), Layout.FEED_FORWARD) for project in (self.gate, self.up))
        activate = ACTIVATIONS[self.activation]
        # The backward pass keeps gate and up only: activating them again is cheaper than storing what that takes.
        return jax.checkpoint(lambda gate, up: self.down(activate(gate) * up), prevent_cse=False)(gate, up)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a residual sum."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        self.attn_norm = _norm(config, config.d_model, dtype)
        self.attn = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = _norm(config, config.d_model, dtype)
        self.mlp = Mlp(config, rngs=rngs, dtype=dtype) if config.moe is None else None
        self.moe = None if config.moe is None else _moe(config, config.moe, rngs=rngs, dtype=dtype)
        self.attn_post_norm = _norm(config, config.d_model, dtype) if config.post_norms else None
        self.mlp_post_norm = _norm(config, config.d_model, dtype) if config.post_norms else None

    def __call__(self, x: Float[Array, "b s d"], cos, sin, attend) -> Float[Array, "b s d"]:
        """`attend(query, key, value)` does the mixing over tokens."""
        x = constrain(x, Layout.HIDDEN)
        mixed = self.attn.o(constrain(attend(*self.attn.project(self.attn_norm(x), cos, sin)), Layout.HEADS))
        x = x + (mixed if self.attn_post_norm is None else self.attn_post_norm(mixed))
        feed_forward = self.mlp if self.moe is None else self.moe
        assert feed_forward is not None
        y = feed_forward(self.mlp_norm(x))
        return x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))


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
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(layer_rngs):
            return Block(config, rngs=layer_rngs, dtype=param_dtype)

        self.config = config
        self.embed = Embed(config, rngs=rngs, dtype=param_dtype)
        self.layers = stack(rngs)
        self.final_norm = _norm(config, config.d_model, param_dtype)
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
        graphdef, stacked = _split(self.layers)
        rotations = _rotations(config, positions)

        def layer(x, scanned):
            weights, kind = scanned
            attend = functools.partial(_attend, config, kind, segment_ids)
            block = nnx.merge(graphdef, gathered(weights, "layers"))
            cos, sin = _of_kind(rotations, kind)
            return block(x, cos, sin, attend), None

        layer = _rematerialised(layer, config.remat)
        x = self._embed(tokens, dtype)
        x, _ = jax.lax.scan(layer, x if noise is None else x + noise, (stacked, _kinds(config)))
        return self.final_norm(x)

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
        positions 0, 1, ...; then one token at a time at position `cache.lengths`.
        """
        config = self.config
        graphdef, stacked = _split(self.layers)
        rotations = _rotations(config, positions)
        slots = cache.keys.shape[2]
        rows = jnp.arange(tokens.shape[0])[:, None]
        places = jnp.where(segment_ids > 0, positions, slots)  # one past the end: dropped

        def layer(carry, scanned):
            x, *buffers = carry
            weights, kind, index = scanned

            def attend(query, key, value):
                for i, new in enumerate((key, value)):
                    stored = new.astype(buffers[i].dtype)
                    buffers[i] = buffers[i].at[index, rows, places].set(stored, mode="drop")
                keys, values = (buffer[index].astype(query.dtype) for buffer in buffers)
                return cached_attention(query, keys, values, positions, window=_window(config, kind), **_scores(config))

            block = nnx.merge(graphdef, gathered(weights, "layers"))
            cos, sin = _of_kind(rotations, kind)
            x = block(x, cos, sin, attend)
            return (x, *buffers), None

        scanned = (stacked, _kinds(config), jnp.arange(config.num_layers))
        (x, keys, values), _ = jax.lax.scan(layer, (self._embed(tokens, dtype), cache.keys, cache.values), scanned)
        ends = jnp.where(segment_ids > 0, positions + 1, 0).max(axis=1).astype(jnp.int32)
        return self.final_norm(x), Cache(keys=keys, values=values, lengths=jnp.maximum(cache.lengths, ends))

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Float32 next-token logits, soft cap included. Losses use `jaxtune.losses`, which never holds them all."""
        if self.head is None:
            logits = product("bsd,vd->bsv", hidden, self.embed.embedding[...], out_dtype=jnp.float32)
        else:
            logits = product("bsd,dv->bsv", hidden, self.head.kernel[...], out_dtype=jnp.float32)
        cap = self.config.final_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _embed(self, tokens: Int[Array, "b s"], dtype) -> Float[Array, "b s d"]:
        table = gathered(self.embed.embedding[...], "embed.embedding")
        x = constrain(table[tokens].astype(dtype), Layout.HIDDEN)
        return x if self.config.embed_scale is None else x * jnp.asarray(self.config.embed_scale, dtype)


def init_params(config: ModelConfig, seed: int | Int[Array, ""], dtype=jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """Graph definition and freshly drawn parameters, a nested dict of arrays. Pure, so it may be jitted."""
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(jax.random.key(seed)), param_dtype=dtype), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def abstract_params(config: ModelConfig, dtype=jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """As `init_params`, with shapes in place of arrays; nothing is computed."""
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


ACTIVATIONS = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU_TANH: functools.partial(jax.nn.gelu, approximate=True),
    Activation.GELU: functools.partial(jax.nn.gelu, approximate=False),
}
STD = 0.02
"""Standard deviation of initial weights."""


def _std_out(config: ModelConfig) -> float:
    """Outputs into the residual stream start smaller by sqrt(2 L), so that depth does not raise its variance."""
    return STD / math.sqrt(2 * config.num_layers)


def _norm(config: ModelConfig, dim: int, dtype) -> RMSNorm:
    return RMSNorm(dim, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)


def _moe(config: ModelConfig, moe: MoeConfig, *, rngs: nnx.Rngs, dtype) -> Moe:
    activation = ACTIVATIONS[config.activation]
    return Moe(moe, config.d_model, activation, std_in=STD, std_out=_std_out(config), rngs=rngs, dtype=dtype)


def _split(layers: nnx.Module):
    """Graph definition of one layer, and the stacked weights as a nested dict."""
    graphdef, stacked = nnx.split(layers)
    return graphdef, nnx.to_pure_dict(stacked)


def _rotations(config: ModelConfig, positions: Int[Array, "b s"]):
    """Cosines and sines, each with a leading axis over kinds of layers where these differ."""
    if config.local_rope is None:
        return tables(config.rope, config.head_dim, positions)
    pairs = [tables(rope, config.head_dim, positions) for rope in (config.rope, config.local_rope)]
    return tuple(jnp.stack(part) for part in zip(*pairs, strict=True))


def _of_kind(rotations, kind: Int[Array, ""]):
    return tuple(table[kind] if table.ndim == 4 else table for table in rotations)


def _scores(config: ModelConfig) -> dict:
    scale = config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
    return {"scale": scale, "soft_cap": config.attn_soft_cap}


def _attend(config: ModelConfig, kind, segment_ids, query, key, value):
    """Attention of a layer whose kind is traced, with windows that are static, as kernels need them."""
    windows = [None, config.sliding_window]  # by kind: global, local
    used = sorted({int(kind is LayerKind.LOCAL) for kind in config.kinds})
    branches = [
        _on_each_device(functools.partial(attention, window=windows[i], **_scores(config)), config) for i in used
    ]
    if len(branches) == 1:
        return branches[0](query, key, value, segment_ids)
    return jax.lax.switch(kind, branches, query, key, value, segment_ids)


def _on_each_device(attend, config: ModelConfig):
    """`attend` with the config's backend; inside a mesh, each device computes its own rows and heads.

    The reference is left to the compiler, which can also split the tokens of a row.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = on_one_device()
    backend = Backend.REFERENCE if not alone and mesh.shape["sequence"] > 1 else config.attention

    def run(query, key, value, segment_ids):
        chosen = plain(query.shape[1]) if backend is Backend.AUTO else backend
        local = functools.partial(attend, backend=chosen)
        if alone or chosen is Backend.REFERENCE:
            return local(query, key, value, segment_ids)
        rows = ROWS if query.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS) == 0 else None
        heads = "tensor" if config.num_kv_heads % mesh.shape["tensor"] == 0 else None
        spec = jax.P(rows, None, heads, None)
        specs = (spec, spec, spec, jax.P(rows, None))
        return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(query, key, value, segment_ids)

    return run


def _window(config: ModelConfig, kind: Int[Array, ""]) -> Int[Array, ""] | None:
    """Window of a layer; a global layer's is longer than any context."""
    if config.sliding_window is None:
        return None
    return jnp.where(kind == 1, config.sliding_window, jnp.iinfo(jnp.int32).max)


def _kinds(config: ModelConfig) -> Int[Array, " l"]:
    return jnp.asarray([int(kind is LayerKind.LOCAL) for kind in config.kinds], jnp.int32)


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
            policy = policies.save_only_these_names(PRODUCT, RESIDUAL)
        case Remat.OFFLOAD:
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[], names_which_can_be_offloaded=[PRODUCT],
                offload_src="device", offload_dst="pinned_host",
            )  # fmt: skip
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
