"""The Gemma families: what their config.json says beyond the common fields."""

import math
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes, read_kinds, write_kinds
from jaxtune.model.settings import Activation, ModelConfig


def _read_gemma(left: Fields, sizes: Sizes, *, period: int, soft_caps: tuple[float | None, ...]) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    left.require("use_bidirectional_attention", False)
    left.left.pop("hidden_act", None)  # Gemma reads hidden_activation; older files repeat it under this name
    period = left.take("sliding_window_pattern", int, left.take("_sliding_window_pattern", int, period))
    if period < 1:
        raise UserError(f"{left.origin}: sliding_window_pattern is {period}; it must be at least 1.")
    return {
        "norm_offset": True,
        "post_norms": True,
        "embed_scale": math.sqrt(sizes["d_model"]),
        "qkv_bias": bias,
        "out_bias": bias,
        "attn_scale": left.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        "attn_soft_cap": left.nullable("attn_logit_softcapping", float, soft_caps[0]),
        "final_soft_cap": left.nullable("final_logit_softcapping", float, soft_caps[1]),
        "sliding_window": left.take("sliding_window", int, 4096),
        "layer_kinds": read_kinds(left, sizes["num_layers"], lambda layer: (layer + 1) % period != 0),
    }


def read_gemma2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return _read_gemma(left, sizes, period=2, soft_caps=(50.0, 30.0))


def read_gemma3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.refuse("attn_logit_softcapping", "is not applied by gemma3_text models; remove it.")
    return {"qk_norm": True} | _read_gemma(left, sizes, period=6, soft_caps=(None, None))


def read_gemma1(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.require("use_bidirectional_attention", False)
    bias = left.take("attention_bias", bool, False)
    name = left.take("hidden_activation", str, left.take("hidden_act", str, "gelu_pytorch_tanh"))
    if name not in ("gelu", "gelu_pytorch_tanh"):  # published as gelu, trained with its approximation by tanh
        raise UserError(f"{left.origin}: Gemma with the activation {name!r:.40} is not supported.")
    return {
        "activation": Activation.GELU_TANH, "norm_offset": True, "embed_scale": math.sqrt(sizes["d_model"]),
        "qkv_bias": bias, "out_bias": bias,
    }  # fmt: skip


def write_gemma1(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "hidden_act": "gelu_pytorch_tanh"}


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.attn_scale is None else config.attn_scale**-2
    fields = {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar)) else scalar,
        "attn_logit_softcapping": config.attn_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        "sliding_window": config.sliding_window,
        "layer_types": write_kinds(config),
    }
    return fields if config.local_rope is None else fields | {"rope_local_base_freq": config.local_rope.theta}


GEMMA_NAMES = {
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "attn_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
