"""Granite 3 and 4: what their config.json says beyond the common fields."""

import math
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields, Sizes, read_biases, write_biases
from jaxtune.model.settings import ModelConfig


def read_granite(left: Fields, sizes: Sizes) -> dict[str, Any]:
    scales = {
        "embed_scale": left.positive("embedding_multiplier", 1.0),
        "attn_scale": left.positive("attention_multiplier", 1.0),
        "residual_scale": left.positive("residual_multiplier", 1.0),
        "logit_scale": 1 / left.positive("logits_scaling", 1.0),
    }
    return {**read_biases(left, sizes), **scales}


def write_granite(config: ModelConfig) -> dict[str, Any]:
    divisor = 1 / config.logit_scale
    scales = {
        "embedding_multiplier": 1.0 if config.embed_scale is None else config.embed_scale,
        "attention_multiplier": config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": round(divisor) if math.isclose(divisor, round(divisor)) else divisor,
    }
    return {**write_biases(config), **scales}


OF_MAMBA = (
    "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head", "mamba_d_state", "mamba_expand",
    "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "time_step_limit", "time_step_min", "time_step_max",
)  # fmt: skip
"""Fields about layers with a state, which models with attention in all layers state too."""
OF_EXPERTS = ("num_experts_per_tok", "router_aux_loss_coef", "init_method")
"""Fields that say nothing where there are no experts."""


def read_granite_hybrid(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """The dense models among the hybrids: attention in all layers, and the shared expert alone as feed-forward."""
    kinds = left.take("layer_types", list, left.take("layers_block_type", list, ["mamba"] * sizes["num_layers"]))
    if len(kinds) != sizes["num_layers"]:
        raise UserError(f"{left.origin}: layer_types has {len(kinds)} entries for {sizes['num_layers']} layers.")
    others = sorted({str(kind) for kind in kinds} - {"attention", "full_attention"})
    if others:
        raise UserError(
            f"{left.origin}: layer_types has {', '.join(others)[:80]}: layers with a recurrent state, which jaxtune "
            "does not have. Give a Granite 4 model whose layers are all attention (those without an H in their name)."
        )
    experts = left.take("num_local_experts", int, 8)
    if experts:
        raise UserError(
            f"{left.origin}: num_local_experts is {experts}: experts beside a shared one without a gate, which jaxtune "
            "does not have. Give a Granite 4 model without experts."
        )
    for name in (*OF_MAMBA, *OF_EXPERTS):
        left.left.pop(name, None)
    left.require("mlp_bias", False)
    left.require("normalization_function", "rmsnorm")
    position = left.take("position_embedding_type", str, "nope")
    if position not in ("rope", "nope"):
        raise UserError(f"{left.origin}: position_embedding_type is {position!r:.40}; it must be 'rope' or 'nope'.")
    return {
        **read_granite(left, sizes),
        "d_ff": left.take("shared_intermediate_size", int, 1024),
        "unrotated_layers": () if position == "rope" else tuple(range(sizes["num_layers"])),
    }


def write_granite_hybrid(config: ModelConfig) -> dict[str, Any]:
    fields = write_granite(config)
    if fields.pop("mlp_bias"):
        raise UserError("a granitemoehybrid model has no biases in its feed-forward; leave mlp_bias off.")
    if len(set(config.unrotated_layers)) not in (0, config.num_layers):
        raise UserError("a granitemoehybrid model rotates all layers or none; see unrotated_layers.")
    return {
        **fields,
        "layer_types": ["attention"] * config.num_layers,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": config.d_ff,
        "position_embedding_type": "nope" if config.unrotated_layers else "rope",
        # transformers checks that these divide the width, though no layer uses them
        "mamba_n_heads": 1,
        "mamba_d_head": "auto",
    }
