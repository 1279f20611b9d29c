"""The table of model families: how the config.json and the tensor names of each `model_type` differ from Llama's."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.cohere import (
    GLM4_NAMES,
    GLM_FUSED,
    read_cohere,
    read_cohere2,
    read_exaone4,
    read_glm,
    read_glm4,
    write_cohere,
    write_cohere2,
    write_exaone4,
    write_glm,
)
from jaxtune.hf.fields import Fields, Sizes, read_biases, read_kinds, write_biases, write_kinds
from jaxtune.hf.gemma import GEMMA_NAMES, read_gemma1, read_gemma2, read_gemma3, write_gemma, write_gemma1
from jaxtune.hf.gpt_oss import GPT_OSS
from jaxtune.hf.granite import read_granite, read_granite_hybrid, write_granite, write_granite_hybrid
from jaxtune.hf.heads import ByHead
from jaxtune.hf.olmo import OLMO_NAMES, read_olmo2, read_olmo3, write_olmo2, write_olmo3
from jaxtune.hf.qwen import (
    read_qwen2,
    read_qwen2_moe,
    read_qwen3,
    read_qwen3_moe,
    write_qwen2_moe,
    write_qwen3,
    write_qwen3_moe,
    write_qwen_window,
)
from jaxtune.hf.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from jaxtune.hf.unsupported import refuse
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import LayerKind, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: the differences of one `model_type` from the plain Transformer."""

    architecture: str
    models: str
    """Published models of the family, for the page of models."""
    read: Callable[[Fields, Sizes], dict[str, Any]]
    """Fields beyond the common ones, and the sizes in common -> arguments of ModelConfig."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The inverse."""
    activation_field: str = "hidden_act"
    """Empty where `read` and `write` see to the activation."""
    activation_default: str = "silu"
    head_dim_default: int | None = None
    """None: hidden_size / num_attention_heads."""
    tie_default: bool = False
    theta_default: float = 10_000.0
    local_theta_default: float | None = None
    """Set where local layers have a rotary base of their own."""
    local_unscaled: bool = False
    """Local layers have the rotary base of the others, without its scaling."""
    partial_default: float | None = None
    """The family reads `partial_rotary_factor`, with this default; elsewhere transformers ignores it."""
    interleaved: bool = False
    """Rotated pairs are neighbouring dimensions (`RopeConfig.interleaved`)."""
    query_growth: bool = False
    """The rope has `llama_4_scaling_beta` (`RopeConfig.query_growth`)."""
    noise: tuple[str, ...] = ()
    """Dropout that published files of the family state; jaxtune trains without."""
    inner_field: str = "intermediate_size"
    """The field that `ModelConfig.d_ff` is read from."""
    eps_default: float = 1e-6
    eps_field: str = "rms_norm_eps"
    kv_heads_default: int | None = None
    """None: as many as query heads."""
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensor names inside a layer that differ from LAYER_TENSORS, by parameter path."""
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Tensor name -> the parameters it holds."""
    stacked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Tensor name -> the parameters of all experts that it holds, in the form `Form.EXPERTS`."""
    experts_joined: bool = False
    """Published files hold the experts of a layer in one tensor [experts, outputs, inputs]; see `experts.apart`."""
    by_head: Callable[[ModelConfig], Mapping[str, ByHead]] = lambda config: {}
    """Tensor name -> the parameters that it holds group of heads by group of heads."""
    unused: tuple[str, ...] = ()
    """Beginnings of names of stored tensors that are no part of the model, and are left where they are."""
    text_positions: bool = False
    """The rope may say how an image's token has three positions (`ropes.one_position`)."""
    rope_default: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The rope of a config.json that states none, where it is not the plain one."""


def family_of(name: Any, origin: str) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        raise refuse(name, list(FAMILIES), origin)
    return FAMILIES[name]


def _read_window(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"sliding_window": left.take("sliding_window", int, None)}


def _read_mistral(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"sliding_window": left.nullable("sliding_window", int, 4096)}


def _read_ministral(left: Fields, sizes: Sizes) -> dict[str, Any]:
    window = left.nullable("sliding_window", int, 4096)
    kinds = read_kinds(left, sizes["num_layers"], lambda layer: window is not None)
    return {"sliding_window": window, "layer_kinds": kinds}


def _write_ministral(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window, "layer_types": write_kinds(config)}


def _write_window(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


def _read_phi(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Published files repeat defaults of the makers' own code, which transformers does not read."""
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        left.require(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        left.require(name, 1)
    return _read_window(left, sizes)


def _read_smollm3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """`no_rope_layers` has a 1 for each layer that is rotated."""
    left.left.pop("max_window_layers", None)  # a leftover of Qwen in published files, which nothing reads
    interval = left.take("no_rope_layer_interval", int, 4)
    if interval < 1:
        raise UserError(f"{left.origin}: no_rope_layer_interval is {interval}; it must be at least 1.")
    layers = range(sizes["num_layers"])
    rotated = left.take("no_rope_layers", list, [int((layer + 1) % interval != 0) for layer in layers])
    if len(rotated) < len(layers) or any(flag not in (0, 1) for flag in rotated):
        raise UserError(f"{left.origin}: no_rope_layers must hold 0 or 1 for each of the {len(layers)} layers.")
    used, window = left.take("use_sliding_window", bool, False), left.take("sliding_window", int, None)
    kinds = read_kinds(left, len(layers), lambda layer: used and window is not None and not rotated[layer])
    local = used and LayerKind.LOCAL in kinds
    return {
        **read_biases(left, sizes),
        "unrotated_layers": tuple(layer for layer in layers if not rotated[layer]),
        **({"sliding_window": window, "layer_kinds": kinds} if local else {}),
    }


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer not in config.unrotated_layers) for layer in range(config.num_layers)]
    window = {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
    return {**write_biases(config), "no_rope_layers": rotated, **window, "layer_types": write_kinds(config)}


def _read_arcee(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {**read_biases(left, sizes), "mlp_gate": False}


def _read_seed_oss(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {
        "qkv_bias": left.take("attention_bias", bool, True),
        "out_bias": left.take("attention_out_bias", bool, False),
        "mlp_bias": left.take("mlp_bias", bool, False),
    }


def _write_seed_oss(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "attention_out_bias": config.out_bias, "mlp_bias": config.mlp_bias}
    return {**biases, "attention_dropout": 0.0, "residual_dropout": 0.0}


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


GLM: dict[str, Any] = {
    "interleaved": True, "partial_default": 0.5, "head_dim_default": 128, "kv_heads_default": 2,
    "eps_default": 1.5625e-07,
}  # fmt: skip
COHERE: dict[str, Any] = {
    "interleaved": True, "tie_default": True, "eps_field": "layer_norm_eps", "eps_default": 1e-5,
}  # fmt: skip

FAMILIES = {
    "llama": Family(
        models="Llama 2, 3, 3.x; SmolLM2", architecture="LlamaForCausalLM", read=read_biases, write=write_biases
    ),
    "mistral": Family(
        models="Mistral 7B; Mistral Small", architecture="MistralForCausalLM", read=_read_mistral, write=_write_window
    ),
    "qwen2": Family(models="Qwen 2, 2.5", architecture="Qwen2ForCausalLM", read=read_qwen2, write=write_qwen_window),
    "qwen3": Family(models="Qwen 3", architecture="Qwen3ForCausalLM", read=read_qwen3, write=write_qwen3),
    "gemma2": Family(
        models="Gemma 2",
        architecture="Gemma2ForCausalLM",
        read=read_gemma2,
        write=write_gemma,
        activation_field="hidden_activation",
        activation_default="gelu_pytorch_tanh",
        tie_default=True,
        names=GEMMA_NAMES,
    ),
    "gemma3_text": Family(
        models="Gemma 3 270M, 1B",
        architecture="Gemma3ForCausalLM",
        read=read_gemma3,
        write=write_gemma,
        activation_field="hidden_activation",
        activation_default="gelu_pytorch_tanh",
        tie_default=True,
        theta_default=1_000_000.0,
        local_theta_default=10_000.0,
        names=GEMMA_NAMES,
    ),
    "phi3": Family(
        models="Phi-3 mini, Phi-4, Phi-4 mini",
        architecture="Phi3ForCausalLM",
        read=_read_phi,
        write=_write_window,
        eps_default=1e-5,
        fused=PHI_FUSED,
        partial_default=1.0,
    ),
    "mixtral": Family(
        models="Mixtral",
        architecture="MixtralForCausalLM",
        read=_read_mixtral,
        write=_write_mixtral,
        theta_default=1_000_000.0,
        eps_default=1e-5,
        names=MIXTRAL_NAMES,
    ),
    "qwen3_moe": Family(
        models="Qwen 3 MoE (30B-A3B)", architecture="Qwen3MoeForCausalLM", read=read_qwen3_moe, write=write_qwen3_moe
    ),
    "qwen2_moe": Family(
        models="Qwen 1.5 MoE, Qwen 2 MoE",
        architecture="Qwen2MoeForCausalLM",
        read=read_qwen2_moe,
        write=write_qwen2_moe,
    ),
    "gemma": Family(
        models="Gemma 1",
        architecture="GemmaForCausalLM",
        read=read_gemma1,
        write=write_gemma1,
        activation_field="",
        tie_default=True,
        head_dim_default=256,
    ),
    "olmo2": Family(
        models="OLMo 2",
        architecture="Olmo2ForCausalLM",
        read=read_olmo2,
        write=write_olmo2,
        eps_default=1e-5,
        names=OLMO_NAMES,
    ),
    "olmo3": Family(
        models="OLMo 3",
        architecture="Olmo3ForCausalLM",
        read=read_olmo3,
        write=write_olmo3,
        eps_default=1e-5,
        names=OLMO_NAMES,
        local_unscaled=True,
    ),
    "smollm3": Family(
        models="SmolLM3",
        architecture="SmolLM3ForCausalLM",
        read=_read_smollm3,
        write=_write_smollm3,
        tie_default=True,
        theta_default=2_000_000.0,
    ),
    "granite": Family(models="Granite 3", architecture="GraniteForCausalLM", read=read_granite, write=write_granite),
    "arcee": Family(
        models="Arcee AFM",
        architecture="ArceeForCausalLM",
        read=_read_arcee,
        write=write_biases,
        activation_default="relu2",
        eps_default=1e-5,
    ),
    "seed_oss": Family(
        models="Seed-OSS",
        architecture="SeedOssForCausalLM",
        read=_read_seed_oss,
        write=_write_seed_oss,
        head_dim_default=128,
        noise=("attention_dropout", "residual_dropout"),
    ),
    "ministral": Family(
        models="Ministral, alternating windows",
        architecture="MinistralForCausalLM",
        read=_read_ministral,
        write=_write_ministral,
    ),
    "ministral3": Family(
        models="Ministral 3",
        architecture="Ministral3ForCausalLM",
        read=_read_window,
        write=_write_window,
        head_dim_default=128,
        kv_heads_default=8,
        theta_default=1_000_000.0,
        eps_default=1e-5,
        query_growth=True,
    ),
    "glm": Family(
        models="GLM-4 9B of 2024", architecture="GlmForCausalLM", read=read_glm, write=write_glm, fused=GLM_FUSED, **GLM
    ),
    "glm4": Family(
        models="GLM-4 0414",
        architecture="Glm4ForCausalLM",
        read=read_glm4,
        write=write_glm,
        names=GLM4_NAMES,
        fused=GLM_FUSED,
        **GLM,
    ),
    "exaone4": Family(
        models="Exaone 4",
        architecture="Exaone4ForCausalLM",
        read=read_exaone4,
        write=write_exaone4,
        eps_default=1e-5,
        names=OLMO_NAMES,
    ),
    "cohere": Family(
        models="Command R", architecture="CohereForCausalLM", read=read_cohere, write=write_cohere, **COHERE
    ),
    "cohere2": Family(
        models="Command R7B, Command A",
        architecture="Cohere2ForCausalLM",
        read=read_cohere2,
        write=write_cohere2,
        **COHERE,
    ),
    "gpt_oss": Family(**GPT_OSS),
    "qwen3_next": Family(**QWEN3_NEXT),
    "qwen3_5_text": Family(**QWEN3_5),
    "qwen3_5_moe_text": Family(**QWEN3_5_MOE),
    "granitemoehybrid": Family(
        models="Granite 4 dense (Micro, 1B, 350M)",
        architecture="GraniteMoeHybridForCausalLM",
        read=read_granite_hybrid,
        write=write_granite_hybrid,
        names={"mlp.down.kernel": "shared_mlp.output_linear.weight"},
        fused={"shared_mlp.input_linear.weight": ("mlp.gate.kernel", "mlp.up.kernel")},
    ),
}
"""By `model_type`."""
