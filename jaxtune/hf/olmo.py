"""OLMo 2 and 3: what their config.json says beyond the common fields."""

from typing import Any

from jaxtune.hf.fields import Fields, Sizes, read_kinds, write_kinds
from jaxtune.model.settings import ModelConfig


def read_olmo2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_whole": True}
    return {**norms, "qkv_bias": bias, "out_bias": bias}


def write_olmo2(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias}


def read_olmo3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    kinds = read_kinds(left, sizes["num_layers"], lambda layer: (layer + 1) % 4 != 0)
    return {**read_olmo2(left, sizes), "layer_kinds": kinds, "sliding_window": left.take("sliding_window", int, 4096)}


def write_olmo3(config: ModelConfig) -> dict[str, Any]:
    window = {"sliding_window": config.sliding_window, "layer_types": write_kinds(config)}
    return {**write_olmo2(config), **window}


OLMO_NAMES = {
    "attn_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
