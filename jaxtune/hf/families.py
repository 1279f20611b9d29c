"""Model families of Hugging Face checkpoints: what config.json says, and which tensor holds which parameter."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import ZERO, Fields, read_ropes, write_rope
from jaxtune.model.moe import MoeConfig
from jaxtune.model.transformer import Activation, LayerKind, ModelConfig

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_seq_len",
}
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu": Activation.GELU,
}
ACTIVATION_NAMES = {Activation.SILU: "silu", Activation.GELU_TANH: "gelu_pytorch_tanh", Activation.GELU: "gelu"}
LAYER_NAMES = {"sliding_attention": LayerKind.LOCAL, "full_attention": LayerKind.GLOBAL}
RUN_OPTIONS = frozenset({"remat", "attention"})
"""Fields of ModelConfig that say how to run the model, not what it is: config.json knows nothing of them."""

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Part:
    """One parameter, or the slice of a stacked one at `index` (layer; or layer and expert)."""

    path: tuple[str, ...]
    index: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint; its parts lie one after the other along its first axis."""

    name: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What sets one `model_type` apart."""

    architecture: str
    read: Callable[[Fields, Sizes], dict[str, Any]]
    """Fields beyond the common ones, and the sizes in common -> arguments of ModelConfig."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The inverse."""
    activation_field: str = "hidden_act"
    activation_default: str = "silu"
    tie_default: bool = False
    theta_default: float = 10_000.0
    local_theta_default: float | None = None
    """Set where local layers have a rotary base of their own."""
    eps_default: float = 1e-6
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensor names inside a layer that differ from LAYER_TENSORS, by parameter path."""
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Tensor name -> the parameters it holds."""


def read_config(fields: Mapping[str, Any], origin: str) -> ModelConfig:
    """The ModelConfig of a config.json; UserError on unknown and unsupported fields names `origin`."""
    family = _family(fields.get("model_type"), origin)
    left = Fields(fields, origin)
    left.require("architectures", [family.architecture])
    for name in ZERO:
        left.require(name, 0)
    sizes = {ours: left.take(theirs, int) for theirs, ours in SIZES.items()}
    arguments = sizes | {
        "family": fields["model_type"],
        "num_kv_heads": left.take("num_key_value_heads", int, sizes["num_heads"]),
        "head_dim": _read_head_dim(left, sizes["d_model"], sizes["num_heads"]),
        "norm_eps": left.number("rms_norm_eps", family.eps_default),
        "tie_embeddings": left.take("tie_word_embeddings", bool, family.tie_default),
        "activation": _read_activation(left, family),
        **read_ropes(
            left,
            sizes["max_seq_len"],
            theta_default=family.theta_default,
            local_theta_default=family.local_theta_default,
        ),
        **family.read(left, sizes),
    }
    left.finish()
    try:
        return ModelConfig(**arguments)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that `read_config` turns back into `config`, run options aside."""
    family = _family(config.family, "the model config")
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family}
    fields |= {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    fields |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        family.activation_field: ACTIVATION_NAMES[config.activation],
        **write_rope(config.rope, config.max_seq_len, phi=config.family == "phi3"),
        **family.write(config),
    }
    _check_round_trip(fields, config)
    return fields


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the family's checkpoint, in the order of the layers."""
    family = _family(config.family, "the model config")
    yield Tensor("model.embed_tokens.weight", (Part(("embed", "embedding"), ()),))
    for layer in range(config.num_layers):
        for name, parts in _layer_tensors(config, family, layer):
            yield Tensor(f"model.layers.{layer}.{name}", parts)
    yield Tensor("model.norm.weight", (Part(("final_norm", "scale"), ()),))
    if not config.tie_embeddings:
        yield Tensor("lm_head.weight", (Part(("head", "kernel"), ()),))


LAYER_TENSORS = {
    "attn_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    **{f"attn.{x}.kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attn.{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"attn.{x}_norm.scale": f"self_attn.{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}.kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"mlp.{x}.bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
    "moe.router.kernel": "mlp.gate.weight",
    **{f"moe.{x}.kernel": f"mlp.experts.{{expert}}.{x}_proj.weight" for x in ("gate", "up", "down")},
}
"""Tensor names inside a layer, by parameter path, as Llama and Qwen have them."""


def _layer_tensors(config: ModelConfig, family: Family, layer: int) -> Iterator[tuple[str, tuple[Part, ...]]]:
    def part(path: str, *index: int) -> Part:
        return Part(("layers", *path.split(".")), (layer, *index))

    for name, paths in family.fused.items():
        yield name, tuple(part(path) for path in paths)
    in_fused = {path for paths in family.fused.values() for path in paths}
    for path in _layer_paths(config):
        name = family.names.get(path) or LAYER_TENSORS[path]
        if "{expert}" in name and config.moe is not None:
            for expert in range(config.moe.num_experts):
                yield name.format(expert=expert), (part(path, expert),)
        elif path not in in_fused:
            yield name, (part(path),)


def _layer_paths(config: ModelConfig) -> Iterator[str]:
    """Paths of the parameters that one layer has."""
    yield from ("attn_norm.scale", "mlp_norm.scale")
    if config.post_norms:
        yield from ("attn_post_norm.scale", "mlp_post_norm.scale")
    yield from (f"attn.{name}.kernel" for name in "qkvo")
    if config.qkv_bias:
        yield from (f"attn.{name}.bias" for name in "qkv")
    if config.out_bias:
        yield "attn.o.bias"
    if config.qk_norm:
        yield from ("attn.q_norm.scale", "attn.k_norm.scale")
    if config.moe is not None:
        yield from (f"moe.{name}.kernel" for name in ("router", "gate", "up", "down"))
        return
    yield from (f"mlp.{name}.kernel" for name in ("gate", "up", "down"))
    if config.mlp_bias:
        yield from (f"mlp.{name}.bias" for name in ("gate", "up", "down"))


def _family(name: Any, origin: str) -> Family:
    if name not in FAMILIES:
        hint = " The text model alone, 'gemma3_text', is supported." if name == "gemma3" else ""
        raise UserError(f"{origin}: model_type {name!r} is not supported; known: {', '.join(FAMILIES)}.{hint}")
    return FAMILIES[name]


def _check_round_trip(fields: Mapping[str, Any], config: ModelConfig):
    """Raise unless config.json says everything that the config holds."""
    back = read_config(fields, "the exported config.json")
    names = [f.name for f in dataclasses.fields(config) if f.name not in RUN_OPTIONS | {"layer_kinds"}] + ["kinds"]
    lost = [
        f"{name} = {getattr(config, name)!r} would come back as {getattr(back, name)!r}"
        for name in names
        if getattr(config, name) != getattr(back, name)
    ]
    if lost:
        raise UserError(f"a config.json of model_type {config.family!r} cannot express this model: {'; '.join(lost)}.")


def _read_head_dim(left: Fields, width: int, heads: int) -> int:
    head_dim = left.take("head_dim", int, None)
    if head_dim is None and (heads < 1 or width % heads):
        raise UserError(
            f"{left.origin}: hidden_size ({width}) is no multiple of num_attention_heads ({heads}); state head_dim."
        )
    return width // heads if head_dim is None else head_dim


def _read_activation(left: Fields, family: Family) -> Activation:
    name = left.take(family.activation_field, str, family.activation_default)
    if name not in ACTIVATIONS:
        raise UserError(
            f"{left.origin}: {family.activation_field} = {name!r} is not supported; known: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _read_kinds(left: Fields, num_layers: int, is_local: Callable[[int], bool]) -> tuple[LayerKind, ...]:
    """`layer_types`; where it is absent, the family's rule by layer index."""
    names = left.take("layer_types", list, None)
    if names is None:
        return tuple(LayerKind.LOCAL if is_local(i) else LayerKind.GLOBAL for i in range(num_layers))
    unknown = sorted({str(name) for name in names} - set(LAYER_NAMES))
    if unknown:
        raise UserError(f"{left.origin}: layer_types has {', '.join(unknown)}; known: {', '.join(LAYER_NAMES)}.")
    return tuple(LAYER_NAMES[name] for name in names)


def _write_kinds(config: ModelConfig) -> list[str]:
    names = {kind: name for name, kind in LAYER_NAMES.items()}
    return [names[kind] for kind in config.kinds]


def _read_llama(left: Fields, sizes: Sizes) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": left.take("mlp_bias", bool, False)}


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _read_window(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"sliding_window": left.take("sliding_window", int, None)}


def _read_mistral(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"sliding_window": left.nullable("sliding_window", int, 4096)}


def _write_window(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


def _read_phi(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Published files repeat defaults of the makers' own code, which transformers does not read."""
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        left.require(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        left.require(name, 1)
    return _read_window(left, sizes)


def _read_qwen_window(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Qwen states a window, whether it is used, and the first layer that uses it."""
    used = left.take("use_sliding_window", bool, False)
    window = left.take("sliding_window", int, 4096)
    first = left.take("max_window_layers", int, 28)
    kinds = _read_kinds(left, sizes["num_layers"], lambda layer: used and layer >= first)
    if not used and LayerKind.LOCAL in kinds:
        raise UserError(f"{left.origin}: layer_types has sliding layers, but use_sliding_window is false.")
    return {"layer_kinds": kinds, "sliding_window": window} if LayerKind.LOCAL in kinds else {}


def _write_qwen_window(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": config.sliding_window, "layer_types": _write_kinds(config)}


def _read_qwen2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.require("use_mrope", False)
    return {"qkv_bias": True, **_read_qwen_window(left, sizes)}


def _read_qwen3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    return {"qk_norm": True, "qkv_bias": bias, "out_bias": bias, **_read_qwen_window(left, sizes)}


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, **_write_qwen_window(config)}


def _read_gemma(left: Fields, sizes: Sizes, *, period: int, soft_caps: tuple[float | None, ...]) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    left.require("use_bidirectional_attention", False)
    left.left.pop("hidden_act", None)  # Gemma reads hidden_activation; older files repeat it under this name
    period = left.take("sliding_window_pattern", int, left.take("_sliding_window_pattern", int, period))
    return {
        "norm_offset": True,
        "post_norms": True,
        "embed_scale": math.sqrt(sizes["d_model"]),
        "qkv_bias": bias,
        "out_bias": bias,
        "attn_scale": left.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "attn_soft_cap": left.nullable("attn_logit_softcapping", float, soft_caps[0]),
        "final_soft_cap": left.nullable("final_logit_softcapping", float, soft_caps[1]),
        "sliding_window": left.take("sliding_window", int, 4096),
        "layer_kinds": _read_kinds(left, sizes["num_layers"], lambda layer: (layer + 1) % period != 0),
    }


def _read_gemma2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return _read_gemma(left, sizes, period=2, soft_caps=(50.0, 30.0))


def _read_gemma3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"qk_norm": True} | _read_gemma(left, sizes, period=6, soft_caps=(None, None))


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.attn_scale is None else config.attn_scale**-2
    fields = {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar)) else scalar,
        "attn_logit_softcapping": config.attn_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        "sliding_window": config.sliding_window,
        "layer_types": _write_kinds(config),
    }
    return fields if config.local_rope is None else fields | {"rope_local_base_freq": config.local_rope.theta}


def _read_mixtral(left: Fields, sizes: Sizes) -> dict[str, Any]:
    moe = MoeConfig(
        num_experts=left.take("num_local_experts", int, 8),
        experts_per_token=left.take("num_experts_per_tok", int, 2),
        d_ff=sizes["d_ff"],
    )
    return {"moe": moe, **_read_window(left, sizes)}


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    return {
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token,
        **_write_window(config),
    }


GEMMA_NAMES = {
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "attn_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}

MIXTRAL_NAMES = {
    "moe.router.kernel": "block_sparse_moe.gate.weight",
    "moe.gate.kernel": "block_sparse_moe.experts.{expert}.w1.weight",
    "moe.up.kernel": "block_sparse_moe.experts.{expert}.w3.weight",
    "moe.down.kernel": "block_sparse_moe.experts.{expert}.w2.weight",
}
PHI_FUSED = {
    "self_attn.qkv_proj.weight": ("attn.q.kernel", "attn.k.kernel", "attn.v.kernel"),
    "mlp.gate_up_proj.weight": ("mlp.gate.kernel", "mlp.up.kernel"),
}


def _read_qwen3_moe(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.require("decoder_sparse_step", 1)
    left.require("mlp_only_layers", [])
    bias = left.take("attention_bias", bool, False)
    used = left.take("use_sliding_window", bool, False)
    window = left.take("sliding_window", int, 4096)
    left.left.pop("max_window_layers", None)  # read by dense Qwen only
    moe = MoeConfig(
        num_experts=left.take("num_experts", int, left.take("num_local_experts", int, 128)),
        experts_per_token=left.take("num_experts_per_tok", int, 8),
        d_ff=left.take("moe_intermediate_size", int, 768),
        normalise=left.take("norm_topk_prob", bool, False),
    )
    return {
        "qk_norm": True, "qkv_bias": bias, "out_bias": bias, "moe": moe, "sliding_window": window if used else None
    }  # fmt: skip


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    window = {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
    return {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": config.sliding_window is not None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token,
        "moe_intermediate_size": config.moe.d_ff,
        "norm_topk_prob": config.moe.normalise,
        **window,
    }


FAMILIES = {
    "llama": Family(architecture="LlamaForCausalLM", read=_read_llama, write=_write_llama),
    "mistral": Family(architecture="MistralForCausalLM", read=_read_mistral, write=_write_window),
    "qwen2": Family(architecture="Qwen2ForCausalLM", read=_read_qwen2, write=_write_qwen_window),
    "qwen3": Family(architecture="Qwen3ForCausalLM", read=_read_qwen3, write=_write_qwen3),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        read=_read_gemma2,
        write=_write_gemma,
        activation_field="hidden_activation",
        activation_default="gelu_pytorch_tanh",
        tie_default=True,
        names=GEMMA_NAMES,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        read=_read_gemma3,
        write=_write_gemma,
        activation_field="hidden_activation",
        activation_default="gelu_pytorch_tanh",
        tie_default=True,
        theta_default=1_000_000.0,
        local_theta_default=10_000.0,
        names=GEMMA_NAMES,
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM", read=_read_phi, write=_write_window, eps_default=1e-5, fused=PHI_FUSED
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        read=_read_mixtral,
        write=_write_mixtral,
        theta_default=1_000_000.0,
        eps_default=1e-5,
        names=MIXTRAL_NAMES,
    ),
    "qwen3_moe": Family(architecture="Qwen3MoeForCausalLM", read=_read_qwen3_moe, write=_write_qwen3_moe),
}
"""By `model_type`."""
