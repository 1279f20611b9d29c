"""The Qwen families: what their config.json says beyond the common fields."""

from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes, read_kinds, write_kinds
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import LayerKind, ModelConfig


def _read_qwen_window(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Qwen states a window, whether it is used, and the first layer that uses it."""
    used = left.take("use_sliding_window", bool, False)
    window = left.take("sliding_window", int, 4096)
    first = left.take("max_window_layers", int, 28)
    kinds = read_kinds(left, sizes["num_layers"], lambda layer: used and layer >= first)
    if not used and LayerKind.LOCAL in kinds:
        raise UserError(f"{left.origin}: layer_types has sliding layers, but use_sliding_window is false.")
    return {"layer_kinds": kinds, "sliding_window": window} if LayerKind.LOCAL in kinds else {}


def write_qwen_window(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": config.sliding_window, "layer_types": write_kinds(config)}


def read_qwen2(left: Fields, sizes: Sizes) -> dict[str, Any]:
    left.require("use_mrope", False)
    return {"qkv_bias": True, **_read_qwen_window(left, sizes)}


def read_qwen3(left: Fields, sizes: Sizes) -> dict[str, Any]:
    bias = left.take("attention_bias", bool, False)
    return {"qk_norm": True, "qkv_bias": bias, "out_bias": bias, **_read_qwen_window(left, sizes)}


def write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, **write_qwen_window(config)}


def read_qwen3_moe(left: Fields, sizes: Sizes) -> dict[str, Any]:
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
        "qk_norm": True, "qkv_bias": bias, "out_bias": bias, "moe": moe, "sliding_window": window if used else None,
        "dense_layers": read_dense_layers(left, sizes),
    }  # fmt: skip


def write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    window = {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
    return {
        "attention_bias": config.qkv_bias, "use_sliding_window": config.sliding_window is not None,
        **write_experts(config), **window,
    }  # fmt: skip


def read_qwen2_moe(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """Of the first `max_window_layers` layers every other one has the window, where it is used."""
    used = left.take("use_sliding_window", bool, False)
    window, first = left.take("sliding_window", int, 4096), left.take("max_window_layers", int, 28)
    kinds = read_kinds(left, sizes["num_layers"], lambda layer: used and layer < first and layer % 2 == 0)
    if not used and LayerKind.LOCAL in kinds:
        raise UserError(f"{left.origin}: layer_types has sliding layers, but use_sliding_window is false.")
    moe = MoeConfig(
        num_experts=left.take("num_experts", int, 60),
        experts_per_token=left.take("num_experts_per_tok", int, 4),
        d_ff=left.take("moe_intermediate_size", int, 1408),
        normalise=left.take("norm_topk_prob", bool, False),
        shared_d_ff=left.take("shared_expert_intermediate_size", int, 5632),
    )
    local = {"layer_kinds": kinds, "sliding_window": window} if LayerKind.LOCAL in kinds else {}
    bias, dense = left.take("qkv_bias", bool, True), read_dense_layers(left, sizes)
    return {"qkv_bias": bias, "moe": moe, "dense_layers": dense, **local}


def write_qwen2_moe(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    shared = {"shared_expert_intermediate_size": config.moe.shared_d_ff}
    return {"qkv_bias": config.qkv_bias, **write_experts(config), **shared, **write_qwen_window(config)}


def read_dense_layers(left: Fields, sizes: Sizes) -> tuple[int, ...]:
    """Layers without experts: those of `mlp_only_layers`, and all but every `decoder_sparse_step`-th."""
    step, listed = left.take("decoder_sparse_step", int, 1), left.take("mlp_only_layers", list, [])
    if step < 1:
        raise UserError(f"{left.origin}: decoder_sparse_step is {step}; it must be at least 1.")
    wrong = [layer for layer in listed if isinstance(layer, bool) or not isinstance(layer, int)]
    if wrong:
        raise UserError(f"{left.origin}: mlp_only_layers has {wrong[0]!r:.40}; it must hold numbers of layers.")
    return tuple(layer for layer in range(sizes["num_layers"]) if layer in set(listed) or (layer + 1) % step)


def write_experts(config: ModelConfig) -> dict[str, Any]:
    """Fields about experts, and about the layers that have none."""
    assert config.moe is not None
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
        "num_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token,
        "moe_intermediate_size": config.moe.d_ff,
        "norm_topk_prob": config.moe.normalise,
    }
