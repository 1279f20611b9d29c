"""Qwen3-Next and Qwen 3.5: what their config.json says beyond the common fields, and how they store their tensors."""

from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes
from jaxtune.hf.heads import ByHead
from jaxtune.hf.qwen import read_dense_layers, write_experts
from jaxtune.model.delta import DeltaConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import LayerKind, ModelConfig

KINDS = {"linear_attention": LayerKind.LINEAR, "full_attention": LayerKind.GLOBAL}
SIZES = {
    "linear_num_key_heads": ("key_heads", 16),
    "linear_num_value_heads": ("value_heads", 32),
    "linear_key_head_dim": ("key_dim", 128),
    "linear_value_head_dim": ("value_dim", 128),
    "linear_conv_kernel_dim": ("conv_width", 4),
}
"""Field of config.json -> field of DeltaConfig, and its default."""
OF_DRAFTS = ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
"""Fields about the layer that drafts tokens ahead (multi-token prediction), which is no part of the model tuned."""
DRAFTS = ("mtp.",)
"""Beginning of its tensors' names."""


def read_qwen3_5(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.require("attn_output_gate", True)
    left.require("output_gate_type", "swish")  # of linear attention
    left.require("mamba_ssm_dtype", "float32")
    for name in OF_DRAFTS:
        left.left.pop(name, None)
    bias = left.take("attention_bias", bool, False)
    delta = DeltaConfig(**{ours: left.take(theirs, int, default) for theirs, (ours, default) in SIZES.items()})
    return {
        "norm_offset": True, "qk_norm": True, "attn_gate": True, "qkv_bias": bias, "out_bias": bias, "delta": delta,
        "layer_kinds": _read_kinds(left, sizes["num_layers"]),
    }  # fmt: skip


def _read_kinds(left: Fields, num_layers: int) -> tuple[LayerKind, ...]:
    """`layer_types`; where it is absent, attention in every fourth layer, or every `full_attention_interval`-th."""
    interval = left.take("full_attention_interval", int, 4)
    if interval < 1:
        raise UserError(f"{left.origin}: full_attention_interval is {interval}; it must be at least 1.")
    every = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(num_layers)]
    names = left.take("layer_types", list, every)
    unknown = sorted({str(name) for name in names} - set(KINDS))
    if unknown:
        raise UserError(f"{left.origin}: layer_types has {', '.join(unknown)[:80]}; known: {', '.join(KINDS)}.")
    return tuple(KINDS[name] for name in names)


def write_qwen3_5(config: ModelConfig) -> dict[str, Any]:
    if config.delta is None:
        raise UserError(f"a {config.family} model has sizes of linear attention; set delta.")
    names = {kind: name for name, kind in KINDS.items()}
    unknown = sorted({kind.value for kind in config.kinds if kind not in names})
    if unknown:
        raise UserError(f"a {config.family} model has layers of kind linear and global, not {', '.join(unknown)}.")
    sizes = {theirs: getattr(config.delta, ours) for theirs, (ours, _) in SIZES.items()}
    return {"attention_bias": config.qkv_bias, "layer_types": [names[kind] for kind in config.kinds], **sizes}


def read_qwen3_next(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Qwen3-Next: experts and a shared one in all layers but those listed."""
    left.require("use_sliding_window", False)
    moe = MoeConfig(
        num_experts=left.take("num_experts", int, 512),
        experts_per_token=left.take("num_experts_per_tok", int, 10),
        d_ff=left.take("moe_intermediate_size", int, 512),
        normalise=left.take("norm_topk_prob", bool, True),
        shared_d_ff=left.take("shared_expert_intermediate_size", int, 512),
    )
    return {**read_qwen3_5(left, sizes), "moe": moe, "dense_layers": read_dense_layers(left, sizes)}


def write_qwen3_next(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    shared = {"shared_expert_intermediate_size": config.moe.shared_d_ff}
    return {**write_qwen3_5(config), **write_experts(config), **shared}


def read_qwen3_5_moe(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Qwen 3.5 with experts: they and a shared one in all layers, their weights always normalised."""
    left.require("norm_topk_prob", True)
    left.left.pop(
        "intermediate_size", None
    )  # of dense feed-forwards, which no layer has; transformers reads it nowhere
    moe = MoeConfig(
        num_experts=left.take("num_experts", int, 256),
        experts_per_token=left.take("num_experts_per_tok", int, 8),
        d_ff=sizes["d_ff"],
        shared_d_ff=left.take("shared_expert_intermediate_size", int, 512),
    )
    return {**read_qwen3_5(left, sizes), "moe": moe}


def write_qwen3_5_moe(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    return {
        **write_qwen3_5(config), "num_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token, "moe_intermediate_size": config.moe.d_ff,
        "shared_expert_intermediate_size": config.moe.shared_d_ff,
    }  # fmt: skip


def by_key_head(config: ModelConfig) -> dict[str, ByHead]:
    """Qwen3-Next's inputs of linear attention: what belongs to a key head lies together."""
    delta = config.delta
    assert delta is not None
    shared = delta.value_heads // delta.key_heads
    values = shared * delta.value_dim
    return {
        "linear_attn.in_proj_qkvz.weight": ByHead(
            parts=("delta.qkv.kernel", "delta.gate.kernel"), groups=delta.key_heads,
            sections=((0, delta.key_dim), (0, delta.key_dim), (0, values), (1, values)),
        ),
        "linear_attn.in_proj_ba.weight": ByHead(
            parts=("delta.beta.kernel", "delta.decay.kernel"), groups=delta.key_heads,
            sections=((0, shared), (1, shared)),
        ),
    }  # fmt: skip


DELTA_NAMES = {
    "delta.qkv.kernel": "linear_attn.in_proj_qkv.weight",
    "delta.gate.kernel": "linear_attn.in_proj_z.weight",
    "delta.beta.kernel": "linear_attn.in_proj_b.weight",
    "delta.decay.kernel": "linear_attn.in_proj_a.weight",
    "delta.conv.taps": "linear_attn.conv1d.weight",
    "delta.log_scale": "linear_attn.A_log",
    "delta.step_bias": "linear_attn.dt_bias",
    "delta.norm.scale": "linear_attn.norm.weight",
    "delta.o.kernel": "linear_attn.out_proj.weight",
}
COMMON: dict[str, Any] = {
    "names": DELTA_NAMES, "unused": DRAFTS, "head_dim_default": 256, "partial_default": 0.25,
}  # fmt: skip
QWEN3_NEXT: dict[str, Any] = COMMON | {
    "models": "Qwen3-Next 80B-A3B", "architecture": "Qwen3NextForCausalLM", "read": read_qwen3_next,
    "write": write_qwen3_next, "kv_heads_default": 2, "by_head": by_key_head,
}  # fmt: skip
QWEN3_5: dict[str, Any] = COMMON | {
    "models": "Qwen 3.5, 3.6 (dense), text", "architecture": "Qwen3_5ForCausalLM", "read": read_qwen3_5,
    "write": write_qwen3_5, "kv_heads_default": 4, "text_positions": True,
}  # fmt: skip
QWEN3_5_MOE: dict[str, Any] = COMMON | {
    "models": "Qwen 3.5, 3.6 with experts (35B-A3B), text", "architecture": "Qwen3_5MoeForCausalLM",
    "read": read_qwen3_5_moe, "write": write_qwen3_5_moe, "kv_heads_default": 2,
    "inner_field": "moe_intermediate_size", "experts_joined": True, "text_positions": True,
}  # fmt: skip
