"""gpt-oss: what its config.json says beyond the common fields, and how its experts are stored."""

from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes, read_kinds, write_kinds
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.settings import ModelConfig


def read_gpt_oss(left: Fields, sizes: Sizes) -> dict[str, Any]:
    _check_quantization(left)
    left.left.pop("initial_context_length", None)  # repeats what the rope says; transformers reads that
    chosen = left.take("num_experts_per_tok", int, 4)
    left.require("experts_per_token", chosen)
    moe = MoeConfig(
        num_experts=left.take("num_local_experts", int, left.take("num_experts", int, 128)),
        experts_per_token=chosen,
        d_ff=sizes["d_ff"],
        bias=True,
        clamped=ClampedGate(alpha=left.positive("swiglu_alpha", 1.702), limit=left.positive("swiglu_limit", 7.0)),
    )
    left.require("hidden_act", "silu")
    bias = left.take("attention_bias", bool, True)
    return {
        "attn_sinks": True, "qkv_bias": bias, "out_bias": bias, "moe": moe,
        "sliding_window": left.nullable("sliding_window", int, 128),
        "layer_kinds": read_kinds(left, sizes["num_layers"], lambda layer: layer % 2 == 0),
    }  # fmt: skip


def _check_quantization(left: Fields) -> None:
    """Published weights of experts are MXFP4; the tensors show which are."""
    stated = left.take("quantization_config", dict, None)
    if stated is None:
        return
    inner = Fields(stated, f"{left.origin}: quantization_config")
    if inner.take("quant_method", str) != "mxfp4":
        raise UserError(
            f"{inner.origin}: quant_method = {stated['quant_method']!r:.40} is not supported; only 'mxfp4' is. Give "
            "the model in MXFP4, bfloat16, float16 or float32."
        )
    for name in ("modules_to_not_convert", "dequantize"):
        inner.left.pop(name, None)
    inner.finish()


def write_gpt_oss(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    if moe is None or moe.clamped is None:
        raise UserError("a gpt_oss model has experts with a clamped gate; set moe and moe.clamped.")
    return {
        "num_local_experts": moe.num_experts, "num_experts_per_tok": moe.experts_per_token, "hidden_act": "silu",
        "swiglu_alpha": moe.clamped.alpha, "swiglu_limit": moe.clamped.limit, "attention_bias": config.qkv_bias,
        "sliding_window": config.sliding_window, "layer_types": write_kinds(config),
    }  # fmt: skip


GPT_OSS: dict[str, Any] = {
    "models": "gpt-oss 20B, 120B",
    "architecture": "GptOssForCausalLM",
    "read": read_gpt_oss,
    "write": write_gpt_oss,
    "activation_field": "",
    "head_dim_default": 64,
    "kv_heads_default": 8,
    "theta_default": 150_000.0,
    "eps_default": 1e-5,
    "rope_default": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "names": {
        "attn.sink_bias": "self_attn.sinks",
        "moe.router.kernel": "mlp.router.weight",
        "moe.router.bias": "mlp.router.bias",
    },
    "stacked": {
        "mlp.experts.gate_up_proj": ("moe.gate.kernel", "moe.up.kernel"),
        "mlp.experts.gate_up_proj_bias": ("moe.gate.bias", "moe.up.bias"),
        "mlp.experts.down_proj": ("moe.down.kernel",),
        "mlp.experts.down_proj_bias": ("moe.down.bias",),
    },
}  # fmt: skip
