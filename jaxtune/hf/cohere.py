"""Cohere, Exaone and GLM: what their config.json says beyond the common fields."""

from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes, read_kinds, write_kinds
from jaxtune.model.settings import LayerKind, ModelConfig


def read_cohere(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Fields of the makers' own code in published files are accepted where they say what transformers computes."""
    for name in ("use_embedding_sharing", "use_gated_activation", "use_parallel_block", "use_parallel_embedding"):
        left.require(name, True)
    left.require("use_qk_norm", False)
    left.require("position_embedding_type", "rope_gptj")
    left.require("rotary_pct", 1)
    bias = left.take("attention_bias", bool, False)
    return {
        "norm_center": True,
        "parallel_block": True,
        "logit_scale": left.positive("logit_scale", 0.0625),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def write_cohere(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "logit_scale": config.logit_scale}


def read_cohere2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Cohere 2: layers with a window are rotated, the others are not."""
    left.require("order_of_interleaved_layers", "local_attn_first")
    period = left.take("sliding_window_pattern", int, left.take("layer_switch", int, 4))
    left.left.pop("layer_switch", None)  # the makers' name for the same
    if period < 1:
        raise UserError(f"{left.origin}: sliding_window_pattern is {period}; it must be at least 1.")
    kinds = read_kinds(left, sizes["num_layers"], lambda layer: (layer + 1) % period != 0)
    return {
        **read_cohere(left, sizes),
        "sliding_window": left.take("sliding_window", int, 4096),
        "layer_kinds": kinds,
        "unrotated_layers": _of_kind(kinds, LayerKind.GLOBAL),
    }


def write_cohere2(config: ModelConfig) -> dict[str, Any]:
    window = {"sliding_window": config.sliding_window, "layer_types": write_kinds(config)}
    return {**write_cohere(config), **window}


def read_exaone4(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Exaone 4: where some layers have a window, these are rotated and the others are not; else all are."""
    window = left.nullable("sliding_window", int, 4096)
    pattern = left.take("sliding_window_pattern", (int, str), 4)  # "LLLG": only the makers' own code reads letters
    if left.left.get("layer_types") is None and window is not None and not (isinstance(pattern, int) and pattern > 0):
        raise UserError(f"{left.origin}: sliding_window_pattern is {pattern!r:.40}; state the kinds in layer_types.")
    local = lambda layer: window is not None and (layer + 1) % int(pattern) != 0
    kinds = read_kinds(left, sizes["num_layers"], local)
    return {
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": True,
        "sliding_window": window,
        "layer_kinds": kinds,
        "unrotated_layers": () if window is None else _of_kind(kinds, LayerKind.GLOBAL),
    }


def write_exaone4(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window, "layer_types": write_kinds(config)}


def read_glm(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"qkv_bias": left.take("attention_bias", bool, True)}


def read_glm4(left: Fields, sizes: Sizes) -> dict[str, Any]:
    return {"post_norms": True, **read_glm(left, sizes)}


def write_glm(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias}


def _of_kind(kinds: tuple[LayerKind, ...], kind: LayerKind) -> tuple[int, ...]:
    return tuple(layer for layer, own in enumerate(kinds) if own is kind)


GLM4_NAMES = {
    "attn_post_norm.scale": "post_self_attn_layernorm.weight",
    "mlp_post_norm.scale": "post_mlp_layernorm.weight",
}
GLM_FUSED = {"mlp.gate_up_proj.weight": ("mlp.gate.kernel", "mlp.up.kernel")}
