"""Small random models of every family in awkward shapes: odd head counts, a head_dim of its own, all rope rules."""

import json
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtune.hf import safetensors as safetensors_io
from jaxtune.model.settings import ModelConfig

Fields = dict[str, Any]


def shape(rng: np.random.Generator, *, heads: int | None = None) -> Fields:
    """Fields that all families share; hidden_size is a multiple of the heads, because transformers insists."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * int(rng.integers(1, 4)) if heads is None else heads
    return {
        "vocab_size": int(rng.integers(60, 100)),
        "hidden_size": heads * int(rng.integers(5, 9)),
        "intermediate_size": int(rng.integers(17, 60)),
        "num_hidden_layers": int(rng.integers(2, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads if heads % kv_heads == 0 else 1,
        "head_dim": 2 * int(rng.integers(3, 9)),
        "max_position_embeddings": 256,
        "tie_word_embeddings": bool(rng.integers(2)),
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama(rng: np.random.Generator, scaling: Fields | None = None) -> Fields:
    biases = {"attention_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
    rope = {} if scaling is None else {"rope_scaling": scaling}
    return {"model_type": "llama", **shape(rng), **biases, "rope_theta": 500.0, **rope}


def llama3(rng: np.random.Generator) -> Fields:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return llama(rng, scaling | {"original_max_position_embeddings": 32})


def llama_linear(rng: np.random.Generator) -> Fields:
    return llama(rng, {"rope_type": "linear", "factor": 4.0})


def llama_yarn(rng: np.random.Generator) -> Fields:
    return llama(rng, {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16})


def smollm2(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "llama", **shape(rng, heads=9), "num_key_value_heads": 3, "tie_word_embeddings": True}
    return fields | {"rope_theta": 100_000.0}


def mistral(rng: np.random.Generator) -> Fields:
    return {"model_type": "mistral", **shape(rng), "sliding_window": int(rng.integers(3, 9)), "rope_theta": 1000.0}


def qwen2(rng: np.random.Generator) -> Fields:
    return {"model_type": "qwen2", **shape(rng, heads=7), "num_key_value_heads": 1, "rope_theta": 1e6}


def qwen2_sliding(rng: np.random.Generator) -> Fields:
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    return {"model_type": "qwen2", **shape(rng), **window}


def qwen3(rng: np.random.Generator) -> Fields:
    return {"model_type": "qwen3", **shape(rng), "attention_bias": bool(rng.integers(2)), "rope_theta": 1e6}


def gemma2(rng: np.random.Generator) -> Fields:
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
    fields = {"model_type": "gemma2", **shape(rng), "num_hidden_layers": 3, "tie_word_embeddings": True, **caps}
    return fields | {"sliding_window": 5, "query_pre_attn_scalar": 13}


def gemma3(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "gemma3_text", **shape(rng), "num_hidden_layers": 4, "tie_word_embeddings": True}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    ropes = {"rope_theta": 1e5, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    return fields | ropes | {"sliding_window": 5, "query_pre_attn_scalar": 13, "layer_types": kinds}


def phi3(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "phi3", **shape(rng), "sliding_window": 6, "partial_rotary_factor": 0.75}
    return fields | {"hidden_size": 16 * fields["num_attention_heads"], "head_dim": 16}


def phi3_longrope(rng: np.random.Generator) -> Fields:
    """Rows of over 16 tokens go beyond the original context, where the long factors hold."""
    fields = phi3(rng) | {"original_max_position_embeddings": 16, "sliding_window": None}
    factors = {name: list(rng.uniform(1, 4, 6).round(2)) for name in ("short_factor", "long_factor")}
    return fields | {"rope_scaling": {"type": "longrope", **factors}}


def mixtral(rng: np.random.Generator) -> Fields:
    return {"model_type": "mixtral", **shape(rng), "num_local_experts": 5, "num_experts_per_tok": 2}


def qwen3_moe(rng: np.random.Generator) -> Fields:
    experts = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
    return {"model_type": "qwen3_moe", **shape(rng), **experts, "norm_topk_prob": bool(rng.integers(2))}


def qwen3_moe_dense(rng: np.random.Generator) -> Fields:
    """Experts in every other layer, and none in one of those."""
    return qwen3_moe(rng) | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}


def qwen2_moe(rng: np.random.Generator) -> Fields:
    experts = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
    shared = {"shared_expert_intermediate_size": 13, "norm_topk_prob": bool(rng.integers(2))}
    fields = {"model_type": "qwen2_moe", **shape(rng), **experts, **shared, "num_hidden_layers": 5}
    return fields | {"decoder_sparse_step": 2, "qkv_bias": bool(rng.integers(2))}


def qwen2_moe_sliding(rng: np.random.Generator) -> Fields:
    """Experts everywhere; the first and third of four layers have a window."""
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}
    return qwen2_moe(rng) | {"decoder_sparse_step": 1, "num_hidden_layers": 4, **window}


def gemma(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "gemma", **shape(rng), "tie_word_embeddings": True, "attention_bias": bool(rng.integers(2))}
    return fields | {"hidden_act": "gelu_pytorch_tanh"}


def olmo2(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "olmo2", **shape(rng), "attention_bias": bool(rng.integers(2))}
    return fields | {"hidden_size": fields.pop("head_dim") * fields["num_attention_heads"]}


def olmo3(rng: np.random.Generator) -> Fields:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return olmo2(rng) | {"model_type": "olmo3", "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 5}


def smollm3(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "smollm3", **shape(rng), "num_hidden_layers": 4, "mlp_bias": bool(rng.integers(2))}
    window = {"use_sliding_window": True, "sliding_window": 6}
    return fields | {"no_rope_layers": [1, 0, 1, 0], "rope_theta": 300.0, "attention_bias": True, **window}


def granite(rng: np.random.Generator) -> Fields:
    scales = {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
    }
    return {"model_type": "granite", **shape(rng), "attention_bias": bool(rng.integers(2)), **scales}


def granite_hybrid(rng: np.random.Generator) -> Fields:
    """All layers are attention, rotated; the shared expert is all of the feed-forward."""
    fields = granite(rng) | {"model_type": "granitemoehybrid", "num_local_experts": 0, "num_experts_per_tok": 0}
    sizes = {"shared_intermediate_size": int(rng.integers(17, 60)), "mamba_n_heads": 1, "mamba_d_head": "auto"}
    kinds = ["attention"] * fields["num_hidden_layers"]
    return fields | sizes | {"layer_types": kinds, "position_embedding_type": "rope", "rope_theta": 300.0}


def granite_hybrid_unrotated(rng: np.random.Generator) -> Fields:
    return granite_hybrid(rng) | {"position_embedding_type": "nope"}


def arcee(rng: np.random.Generator) -> Fields:
    return {"model_type": "arcee", **shape(rng), "hidden_act": "relu2", "mlp_bias": bool(rng.integers(2))}


def seed_oss(rng: np.random.Generator) -> Fields:
    biases = {"attention_bias": True, "attention_out_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
    return {"model_type": "seed_oss", **shape(rng), **biases, "attention_dropout": 0.1, "residual_dropout": 0.1}


def ministral(rng: np.random.Generator) -> Fields:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return {"model_type": "ministral", **shape(rng), "num_hidden_layers": 3, "layer_types": kinds, "sliding_window": 5}


def ministral3(rng: np.random.Generator) -> Fields:
    """Rows of over 8 tokens go beyond the original context, where queries grow."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 8}
    more = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4}
    return {"model_type": "ministral3", **shape(rng), "rope_parameters": rope | more}


def glm(rng: np.random.Generator) -> Fields:
    rope = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}
    fields = {"model_type": "glm", **shape(rng), "attention_bias": bool(rng.integers(2)), "rope_parameters": rope}
    return fields | {"head_dim": 4 * int(rng.integers(2, 5))}


def glm4(rng: np.random.Generator) -> Fields:
    return glm(rng) | {"model_type": "glm4"}


def exaone4(rng: np.random.Generator) -> Fields:
    """Layers without a window are not rotated."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    fields = {"model_type": "exaone4", **shape(rng), "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 5}
    return fields | {"sliding_window_pattern": "LG", "rope_theta": 1e4}


def exaone4_full(rng: np.random.Generator) -> Fields:
    """No layer has a window, and all are rotated."""
    fields = {"model_type": "exaone4", **shape(rng), "sliding_window": None, "rope_theta": 1e4}
    return fields | {"layer_types": ["full_attention"] * fields["num_hidden_layers"]}


def cohere(rng: np.random.Generator) -> Fields:
    fields = {"model_type": "cohere", **shape(rng), "logit_scale": 0.3, "rope_theta": 1e4}
    fields |= {"layer_norm_eps": fields.pop("rms_norm_eps"), "attention_bias": bool(rng.integers(2))}
    return fields | {"hidden_size": fields.pop("head_dim") * fields["num_attention_heads"]}


def cohere2(rng: np.random.Generator) -> Fields:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return cohere(rng) | {"model_type": "cohere2", "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 5}


def gpt_oss(rng: np.random.Generator) -> Fields:
    """Sinks, biases everywhere, and a limit that hidden units of these weights pass."""
    experts = {"num_local_experts": 5, "num_experts_per_tok": 3, "swiglu_limit": 1.5, "swiglu_alpha": 1.3}
    fields = {"model_type": "gpt_oss", **shape(rng), **experts, "num_hidden_layers": 4, "sliding_window": 5}
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return fields | {"attention_bias": bool(rng.integers(2)), "layer_types": kinds}


def gpt_oss_plain(rng: np.random.Generator) -> Fields:
    """The rope and the alternation of layers that no field states, and those that are stated."""
    fields = gpt_oss(rng) | {"num_hidden_layers": 3, "rope_scaling": {"rope_type": "default"}, "rope_theta": 300.0}
    return {name: value for name, value in fields.items() if name not in ("layer_types", "swiglu_limit")}


def delta(rng: np.random.Generator) -> Fields:
    """Sizes of linear attention: value heads that share key heads, and odd dimensions.

    The fewer dimensions a head has, the more often are all of them near zero, where its norm magnifies rounding.
    """
    key_heads = int(rng.integers(2, 4))
    rope = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.25}
    return {
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * int(rng.integers(2, 4)),
        "linear_key_head_dim": int(rng.integers(7, 14)),
        "linear_value_head_dim": int(rng.integers(7, 14)),
        "linear_conv_kernel_dim": int(rng.integers(2, 6)),
        "head_dim": 8 * int(rng.integers(1, 4)),
        "attention_bias": bool(rng.integers(2)),
        "rope_parameters": rope,
    }


def qwen3_next(rng: np.random.Generator) -> Fields:
    """Experts in all layers but one; attention in the third."""
    experts = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
    shared = {"shared_expert_intermediate_size": 13, "norm_topk_prob": bool(rng.integers(2)), "mlp_only_layers": [1]}
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    layers = {"num_hidden_layers": 3, "layer_types": kinds}
    return {"model_type": "qwen3_next", **shape(rng, heads=4), **experts, **shared, **delta(rng), **layers}


def qwen3_5(rng: np.random.Generator) -> Fields:
    """Attention in the fourth of five layers, where no field says which."""
    return {"model_type": "qwen3_5_text", **shape(rng, heads=4), **delta(rng), "num_hidden_layers": 5}


def qwen3_5_moe(rng: np.random.Generator) -> Fields:
    experts = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 11}
    fields = {"model_type": "qwen3_5_moe_text", **shape(rng, heads=4), **delta(rng), **experts, "num_hidden_layers": 4}
    del fields["intermediate_size"]
    return fields | {"shared_expert_intermediate_size": 13}


CASES: dict[str, Callable[[np.random.Generator], Fields]] = {
    case.__name__: case
    for case in (
        llama, llama3, llama_linear, llama_yarn, smollm2, mistral, qwen2, qwen2_sliding, qwen3, gemma2, gemma3, phi3,
        phi3_longrope, mixtral, qwen3_moe, gemma, olmo2, olmo3, smollm3, granite, arcee, seed_oss,
        ministral, ministral3, glm, glm4, exaone4, exaone4_full, cohere, cohere2,
        qwen3_moe_dense, qwen2_moe, qwen2_moe_sliding, gpt_oss, gpt_oss_plain,
        granite_hybrid, granite_hybrid_unrotated, qwen3_next, qwen3_5, qwen3_5_moe,
    )
}  # fmt: skip


def tolerance(config: ModelConfig) -> float:
    """Largest difference of logits of a few units from those of transformers, both in float32.

    Where all that a head of linear attention reads is near zero, its norm magnifies rounding: logits of transformers
    are up to 1e-4 from those that this model has in float64.
    """
    return 1e-4 if config.delta is None else 5e-4


LENGTHS = (23, 14)
"""Two sequences: a batch pads the second; packing puts them side by side."""


def config_fields(case: str, seed: int) -> Fields:
    """A config.json of the case; the same for the same seed."""
    return CASES[case](np.random.default_rng([seed, *case.encode()]))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a tensor, from its name alone, of a size that gives logits of a few units."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, dtype=np.float32)
    return 0.2 * values + 0.5 if len(shape) == 1 else values * np.float32(1.5 / np.sqrt(shape[-1]))


def sequences(vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, vocab_size, length) for length in LENGTHS]


def write_checkpoint(folder: pathlib.Path, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]):
    """A model folder with the values of `weight`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    header = {name: (np.dtype(np.float32), tuple(shape)) for name, shape in shapes.items()}
    safetensors_io.write_file(folder / "model.safetensors", header, lambda name: weight(name, header[name][1]))
