"""config.json as the makers of each family publish it: every field is read, and the model has the stated size."""

import math

import jax
import pytest

from jaxtune.errors import UserError
from jaxtune.hf.configs import read_config, write_config
from jaxtune.hf.wrapped import text_fields
from jaxtune.model.rope import RopeScaling
from jaxtune.model.settings import LayerKind
from jaxtune.model.transformer import abstract_params

COMMON = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True,
}  # fmt: skip
QWEN = COMMON | {"max_window_layers": 24, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False}
GEMMA = {name: value for name, value in COMMON.items() if name != "hidden_act"} | {
    "attention_bias": False, "cache_implementation": "hybrid", "head_dim": 256, "pad_token_id": 0,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
}  # fmt: skip
PHI = COMMON | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                "attention_bias": False, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}  # fmt: skip


def sizes(vocab: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, context: int) -> dict:
    return {
        "vocab_size": vocab, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": context,
    }  # fmt: skip


def named(model_type: str, architecture: str) -> dict:
    return {"model_type": model_type, "architectures": [architecture]}


PUBLISHED: dict[str, tuple[int, dict]] = {
    "Llama-2-7b": (6_738_415_616, COMMON | named("llama", "LlamaForCausalLM")
        | sizes(32000, 4096, 11008, 32, 32, 32, 4096)
        | {"pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False}),
    "Llama-3.2-1B": (1_235_814_400, COMMON | named("llama", "LlamaForCausalLM")
        | sizes(128256, 2048, 8192, 16, 32, 8, 131072)
        | {"attention_bias": False, "head_dim": 64, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
           "rope_theta": 500000.0, "tie_word_embeddings": True,
           "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
    "SmolLM2-360M": (361_821_120, COMMON | named("llama", "LlamaForCausalLM")
        | sizes(49152, 960, 2560, 32, 15, 5, 8192)
        | {"attention_bias": False, "is_llama_config": True, "mlp_bias": False, "pretraining_tp": 1,
           "rms_norm_eps": 1e-5, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
           "tie_word_embeddings": True, "pad_token_id": 2,
           "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
    "Mistral-7B-v0.1": (7_241_732_096, COMMON | named("mistral", "MistralForCausalLM")
        | sizes(32000, 4096, 14336, 32, 32, 8, 32768)
        | {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False}),
    "gemma-2b": (2_506_172_416, COMMON | named("gemma", "GemmaForCausalLM")
        | sizes(256000, 2048, 16384, 18, 8, 1, 8192)
        | {"attention_bias": False, "head_dim": 256, "hidden_act": "gelu", "pad_token_id": 0, "rms_norm_eps": 1e-6,
           "rope_scaling": None, "rope_theta": 10000.0}),
    "SmolLM3-3B": (3_075_098_624, COMMON | named("smollm3", "SmolLM3ForCausalLM")
        | sizes(128256, 2048, 11008, 36, 16, 4, 65536)
        | {"attention_bias": False, "layer_types": ["full_attention"] * 36, "max_window_layers": 28, "mlp_bias": False,
           "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "pretraining_tp": 2, "rms_norm_eps": 1e-6,
           "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False}),
    "OLMo-2-1124-7B": (7_298_617_344, COMMON | named("olmo2", "Olmo2ForCausalLM")
        | sizes(100352, 4096, 11008, 32, 32, 32, 4096)
        | {"attention_bias": False, "pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_scaling": None,
           "rope_theta": 500000, "tie_word_embeddings": False}),
    "gemma-3-4b-it, its text": (3_880_263_168, {"architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3", "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                        "sliding_window": 1024}}),
    "Mistral-Small-3.1-24B, its text": (23_572_403_200, {"architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1,
        "text_config": {"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
                        "model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": None,
                        "use_cache": True} | sizes(131072, 5120, 32768, 40, 32, 8, 131072)}),
    "Qwen2-0.5B": (494_032_768, QWEN | named("qwen2", "Qwen2ForCausalLM")
        | sizes(151936, 896, 4864, 24, 14, 2, 131072)
        | {"sliding_window": 131072, "tie_word_embeddings": True}),
    "Qwen2.5-0.5B": (494_032_768, QWEN | named("qwen2", "Qwen2ForCausalLM")
        | sizes(151936, 896, 4864, 24, 14, 2, 32768)
        | {"sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False}),
    "Qwen3-0.6B": (596_049_920, QWEN | named("qwen3", "Qwen3ForCausalLM")
        | sizes(151936, 1024, 3072, 28, 16, 8, 40960)
        | {"attention_bias": False, "head_dim": 128, "rope_scaling": None, "sliding_window": None,
           "tie_word_embeddings": True}),
    "gemma-2-2b": (2_614_341_888, GEMMA | named("gemma2", "Gemma2ForCausalLM")
        | sizes(256000, 2304, 9216, 26, 8, 4, 8192)
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
           "rope_theta": 10000.0, "sliding_window": 4096}),
    "gemma-3-1b": (999_885_952, GEMMA | named("gemma3_text", "Gemma3ForCausalLM")
        | sizes(262144, 1152, 6912, 26, 4, 1, 32768)
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_local_base_freq": 10000,
           "eos_token_id": [1, 106], "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
           "sliding_window_pattern": 6}),
    "gemma-3-270m": (268_098_176, GEMMA | named("gemma3_text", "Gemma3ForCausalLM")
        | sizes(262144, 640, 2048, 18, 4, 1, 32768)
        | {"_sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
           "layer_types": [*(["sliding_attention"] * 5), "full_attention"] * 3, "rope_local_base_freq": 10000.0,
           "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
           "use_bidirectional_attention": False}),
    "Phi-3-mini-4k": (3_821_079_552, PHI | sizes(32064, 3072, 8192, 32, 32, 32, 4096)
        | {"rope_scaling": None, "sliding_window": 2047, "tie_word_embeddings": False, "pad_token_id": 32000}),
    "Phi-4-mini": (3_836_021_760, PHI | sizes(200064, 3072, 8192, 32, 24, 8, 131072)
        | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
           "partial_rotary_factor": 0.75, "sliding_window": 262144, "tie_word_embeddings": True,
           "pad_token_id": 199999,
           "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"}}),
    "Mixtral-8x7B": (46_702_792_704, COMMON | named("mixtral", "MixtralForCausalLM")
        | sizes(32000, 4096, 14336, 32, 32, 8, 32768)
        | {"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-5,
           "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
           "tie_word_embeddings": False}),
    "Qwen3-30B-A3B": (30_532_122_624, QWEN | named("qwen3_moe", "Qwen3MoeForCausalLM")
        | sizes(151936, 2048, 6144, 48, 32, 4, 40960)
        | {"attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128, "mlp_only_layers": [],
           "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8,
           "output_router_logits": False, "rope_scaling": None, "router_aux_loss_coef": 0.001,
           "sliding_window": None, "tie_word_embeddings": False}),
}  # fmt: skip
"""Name of a checkpoint -> its number of parameters, and its config.json."""


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_field_is_read_and_the_size_is_the_published_one(name):
    count, fields = PUBLISHED[name]
    config = read_config(text_fields(fields, "config.json"), "config.json")
    shapes = abstract_params(config)[1]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    again = read_config(write_config(config), "config.json")
    assert (again.rope, again.kinds, again.moe) == (config.rope, config.kinds, config.moe)


def test_what_a_published_config_says_arrives():
    def read(name):
        return read_config(PUBLISHED[name][1], "config.json")

    assert read("Llama-3.2-1B").rope.scaling is RopeScaling.LLAMA3
    assert read("Mistral-7B-v0.1").kinds == (LayerKind.LOCAL,) * 32
    assert read("Qwen2.5-0.5B").sliding_window is None
    assert read("gemma-3-1b").kinds == read("gemma-3-270m").kinds[:6] * 4 + (LayerKind.LOCAL,) * 2
    assert read("Phi-4-mini").rope.partial == 0.75
    assert read("Phi-4-mini").rope.factor == 32.0


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Qwen2.5-0.5B", "use_mrope", True),
        ("Phi-4-mini", "lm_head_bias", True),
        ("Phi-4-mini", "attention_bias", True),
        ("Phi-4-mini", "full_attn_mod", 2),
        ("Phi-4-mini", "interpolate_factor", 4),
    ],
)
def test_a_field_that_is_read_only_where_it_changes_nothing_is_refused_elsewhere(name, field, value):
    with pytest.raises(UserError, match=f"config.json: {field} = {value} is not supported; only"):
        read_config(PUBLISHED[name][1] | {field: value}, "config.json")
