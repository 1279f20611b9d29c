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


DELTA = {
    "attention_bias": False, "full_attention_interval": 4, "head_dim": 256, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_value_head_dim": 128, "rms_norm_eps": 1e-6,
}  # fmt: skip


def qwen3_5(model_type: str, architecture: str, text: dict) -> dict:
    """A model of images and text around a text model that also drafts tokens ahead."""
    layers = [*(["linear_attention"] * 3), "full_attention"] * (text["num_hidden_layers"] // 4)
    rope = {
        "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
        "rope_theta": 10000000, "rope_type": "default",
    }  # fmt: skip
    inner = (
        {name: value for name, value in COMMON.items() if name not in ("bos_token_id", "torch_dtype")} | DELTA | text
    )
    inner |= {
        "attn_output_gate": True, "dtype": "bfloat16", "eos_token_id": 248044, "layer_types": layers,
        "mamba_ssm_dtype": "float32", "model_type": f"{model_type}_text", "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False, "rope_parameters": rope, "tie_word_embeddings": False,
    }  # fmt: skip
    return named(model_type, architecture) | {
        "image_token_id": 248056, "text_config": inner, "tie_word_embeddings": False, "video_token_id": 248057,
        "vision_config": {"depth": 27}, "vision_end_token_id": 248054, "vision_start_token_id": 248053,
    }  # fmt: skip


def gpt_oss(layers: int, experts: int) -> dict:
    fields = {name: value for name, value in COMMON.items() if name not in ("torch_dtype", "bos_token_id")}
    return fields | named("gpt_oss", "GptOssForCausalLM") | sizes(201088, 2880, 2880, layers, 64, 8, 131072) | {
        "attention_bias": True, "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64,
        "initial_context_length": 4096, "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "num_experts_per_tok": 4, "num_local_experts": experts, "output_router_logits": False, "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-5, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": False,
        },
        "swiglu_limit": 7.0, "tie_word_embeddings": False,
    }  # fmt: skip


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
    "OLMo-3-1025-7B": (7_298_011_136, COMMON | named("olmo3", "Olmo3ForCausalLM")
        | sizes(100278, 4096, 11008, 32, 32, 32, 65536)
        | {"attention_bias": False, "pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_theta": 500000,
           "layer_types": [*(["sliding_attention"] * 3), "full_attention"] * 8, "sliding_window": 4096,
           "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                            "original_max_position_embeddings": 8192, "rope_type": "yarn"},
           "tie_word_embeddings": False}),
    "granite-3.3-2b": (2_533_539_840, COMMON | named("granite", "GraniteForCausalLM")
        | sizes(49159, 2048, 8192, 40, 32, 8, 131072)
        | {"attention_bias": False, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
           "logits_scaling": 8.0, "mlp_bias": False, "pad_token_id": 0, "residual_multiplier": 0.22,
           "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 1e7, "tie_word_embeddings": True}),
    "Seed-OSS-36B": (36_151_104_512, COMMON | named("seed_oss", "SeedOssForCausalLM")
        | sizes(155136, 5120, 27648, 64, 80, 8, 524288)
        | {"attention_bias": True, "attention_dropout": 0.1, "attention_out_bias": False, "head_dim": 128,
           "mlp_bias": False, "pad_token_id": 1, "pretraining_tp": 1, "residual_dropout": 0.1, "rms_norm_eps": 1e-6,
           "rope_scaling": {"rope_type": "default"}, "rope_theta": 1e7, "tie_word_embeddings": False}),
    "AFM-4.5B": (4_619_184_640, COMMON | named("arcee", "ArceeForCausalLM")
        | sizes(128004, 2560, 18432, 36, 20, 4, 65536)
        | {"attention_bias": False, "head_dim": 128, "hidden_act": "relu2", "mlp_bias": False, "pretraining_tp": 1,
           "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
           "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0, "rope_type": "yarn",
                            "original_max_position_embeddings": 4096, "type": "yarn"}}),
    "GLM-4-9B-0414": (9_400_279_040, COMMON | named("glm4", "Glm4ForCausalLM")
        | sizes(151552, 4096, 13696, 40, 32, 2, 32768)
        | {"attention_bias": True, "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "pad_token_id": 151329,
           "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}),
    "EXAONE-4.0-1.2B": (1_279_391_488, COMMON | named("exaone4", "Exaone4ForCausalLM")
        | sizes(102400, 2048, 4096, 30, 32, 8, 65536)
        | {"head_dim": 64, "layer_types": ["full_attention"] * 30, "rms_norm_eps": 1e-5, "rope_theta": 1000000,
           "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
           "sliding_window": None, "sliding_window_pattern": None, "tie_word_embeddings": True}),
    "EXAONE-4.0-32B": (32_003_216_384, COMMON | named("exaone4", "Exaone4ForCausalLM")
        | sizes(102400, 5120, 27392, 64, 40, 8, 131072)
        | {"head_dim": 128, "layer_types": [*(["sliding_attention"] * 3), "full_attention"] * 16, "rms_norm_eps": 1e-5,
           "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
           "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
           "tie_word_embeddings": False}),
    "c4ai-command-r7b-12-2024": (8_028_033_024, COMMON | named("cohere2", "Cohere2ForCausalLM")
        | sizes(256000, 4096, 14336, 32, 32, 8, 8192)
        | {"attention_bias": False, "cache_implementation": "hybrid", "head_dim": 128, "layer_norm_eps": 1e-5,
           "layer_switch": 4, "logit_scale": 0.25, "order_of_interleaved_layers": "local_attn_first",
           "pad_token_id": 0, "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000,
           "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4, "use_embedding_sharing": True,
           "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True}),
    "Ministral-3-3B, its text": (3_429_006_336, {"architectures": ["Mistral3ForConditionalGeneration"],
        "dtype": "bfloat16", "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "transformers_version": "5.0.0.dev0",
        "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1,
        "text_config": {"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
                        "model_type": "ministral3", "rms_norm_eps": 1e-5, "sliding_window": None, "use_cache": True,
                        "tie_word_embeddings": True,
                        "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0,
                                            "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
                                            "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
                                            "rope_type": "yarn", "type": "yarn"}}
                       | sizes(131072, 3072, 9216, 26, 32, 8, 262144)}),
    "Qwen2-0.5B": (494_032_768, QWEN | named("qwen2", "Qwen2ForCausalLM")
        | sizes(151936, 896, 4864, 24, 14, 2, 131072)
        | {"sliding_window": 131072, "tie_word_embeddings": True}),
    "Qwen2.5-0.5B": (494_032_768, QWEN | named("qwen2", "Qwen2ForCausalLM")
        | sizes(151936, 896, 4864, 24, 14, 2, 32768)
        | {"sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False}),
    "Qwen2.5-VL-3B, its text": (3_085_938_688, QWEN | named("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration")
        | sizes(151936, 2048, 11008, 36, 16, 2, 128000)
        | {"image_token_id": 151655, "max_window_layers": 70, "sliding_window": 32768, "tie_word_embeddings": True,
           "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "video_token_id": 151656,
           "vision_config": {"depth": 32}, "vision_end_token_id": 151653, "vision_start_token_id": 151652,
           "vision_token_id": 151654}),
    "Qwen3-VL-4B, its text": (4_022_468_096, {"architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655, "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0", "video_token_id": 151656, "vision_config": {"depth": 24},
        "vision_end_token_id": 151653, "vision_start_token_id": 151652,
        "text_config": {"attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "head_dim": 128,
                        "hidden_act": "silu", "model_type": "qwen3_vl_text", "rms_norm_eps": 1e-6,
                        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
                                         "rope_type": "default"},
                        "rope_theta": 5000000, "use_cache": True}
                       | sizes(151936, 2560, 9728, 36, 32, 8, 262144)}),
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
    "Qwen1.5-MoE-A2.7B": (14_315_784_192, QWEN | named("qwen2_moe", "Qwen2MoeForCausalLM")
        | sizes(151936, 2048, 5632, 24, 16, 16, 8192)
        | {"decoder_sparse_step": 1, "max_window_layers": 21, "moe_intermediate_size": 1408, "norm_topk_prob": False,
           "num_experts": 60, "num_experts_per_tok": 4, "output_router_logits": False, "router_aux_loss_coef": 0.001,
           "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": False}),
    "Qwen3-30B-A3B": (30_532_122_624, QWEN | named("qwen3_moe", "Qwen3MoeForCausalLM")
        | sizes(151936, 2048, 6144, 48, 32, 4, 40960)
        | {"attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128, "mlp_only_layers": [],
           "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8,
           "output_router_logits": False, "rope_scaling": None, "router_aux_loss_coef": 0.001,
           "sliding_window": None, "tie_word_embeddings": False}),
    "granite-4.0-micro": (3_402_836_480, COMMON | named("granitemoehybrid", "GraniteMoeHybridForCausalLM")
        | sizes(100352, 2560, 8192, 40, 40, 8, 131072)
        | {"attention_bias": False, "attention_multiplier": 0.015625, "embedding_multiplier": 12, "init_method": "mup",
           "layer_types": ["attention"] * 40, "logits_scaling": 10, "mamba_chunk_size": 256, "mamba_conv_bias": True,
           "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
           "mamba_n_heads": 80, "mamba_proj_bias": False, "normalization_function": "rmsnorm",
           "num_experts_per_tok": 0, "num_local_experts": 0, "output_router_logits": False,
           "position_embedding_type": "rope", "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None,
           "rope_theta": 10000000, "router_aux_loss_coef": 0.01, "shared_intermediate_size": 8192,
           "tie_word_embeddings": True}),
    "Qwen3-Next-80B-A3B": (79_674_391_296, COMMON | named("qwen3_next", "Qwen3NextForCausalLM")
        | sizes(151936, 2048, 5120, 48, 16, 2, 262144) | DELTA
        | {"decoder_sparse_step": 1, "linear_num_value_heads": 32, "mlp_only_layers": [], "moe_intermediate_size": 512,
           "norm_topk_prob": True, "num_experts": 512, "num_experts_per_tok": 10, "output_router_logits": False,
           "partial_rotary_factor": 0.25, "rope_scaling": None, "rope_theta": 10000000, "router_aux_loss_coef": 0.001,
           "shared_expert_intermediate_size": 512, "tie_word_embeddings": False, "use_sliding_window": False}),
    "Qwen3.6-27B, its text": (26_895_998_464, qwen3_5("qwen3_5", "Qwen3_5ForConditionalGeneration",
        sizes(248320, 5120, 17408, 64, 24, 4, 262144) | {"linear_num_value_heads": 48, "output_gate_type": "swish"})),
    "Qwen3.5-35B-A3B, its text": (34_660_610_688, qwen3_5("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration",
        {name: value for name, value in sizes(248320, 2048, 0, 40, 16, 2, 262144).items() if value}
        | {"linear_num_value_heads": 32, "moe_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
           "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512})),
    "gpt-oss-20b": (20_914_757_184, gpt_oss(24, 32)),
    "gpt-oss-120b": (116_829_156_672, gpt_oss(36, 128)),
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


GPT_OSS_DEFAULTS = ("rope_scaling", "rope_theta", "layer_types", "swiglu_limit", "sliding_window", "attention_bias")
"""Fields of a gpt-oss config.json that say what their absence says too."""


def test_what_a_published_config_says_arrives():
    def read(name):
        return read_config(PUBLISHED[name][1], "config.json")

    assert read("Llama-3.2-1B").rope.scaling is RopeScaling.LLAMA3
    assert read("Mistral-7B-v0.1").kinds == (LayerKind.LOCAL,) * 32
    assert read("Qwen2.5-0.5B").sliding_window is None
    assert read("gemma-3-1b").kinds == read("gemma-3-270m").kinds[:6] * 4 + (LayerKind.LOCAL,) * 2
    assert read("Phi-4-mini").rope.partial == 0.75
    assert read("Phi-4-mini").rope.factor == 32.0
    assert read("GLM-4-9B-0414").rope.partial == 0.5 and read("GLM-4-9B-0414").rope.interleaved
    assert read("c4ai-command-r7b-12-2024").unrotated_layers == (3, 7, 11, 15, 19, 23, 27, 31)
    assert read("EXAONE-4.0-32B").unrotated_layers == tuple(range(3, 64, 4))
    assert read("EXAONE-4.0-1.2B").unrotated_layers == ()
    assert read("Qwen3-Next-80B-A3B").kinds == ((LayerKind.LINEAR,) * 3 + (LayerKind.GLOBAL,)) * 12
    assert read("Qwen3-Next-80B-A3B").rope.partial == 0.25
    assert read("gpt-oss-20b").kinds == (LayerKind.LOCAL, LayerKind.GLOBAL) * 12
    bare = {name: value for name, value in PUBLISHED["gpt-oss-20b"][1].items() if name not in GPT_OSS_DEFAULTS}
    assert read_config(bare | {"num_local_experts": 32}, "config.json") == read("gpt-oss-20b")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Qwen2.5-0.5B", "use_mrope", True),
        ("Phi-4-mini", "lm_head_bias", True),
        ("Phi-4-mini", "attention_bias", True),
        ("Phi-4-mini", "full_attn_mod", 2),
        ("Phi-4-mini", "interpolate_factor", 4),
        ("c4ai-command-r7b-12-2024", "use_parallel_block", False),
        ("c4ai-command-r7b-12-2024", "rotary_pct", 0.5),
    ],
)
def test_a_field_that_is_read_only_where_it_changes_nothing_is_refused_elsewhere(name, field, value):
    with pytest.raises(UserError, match=f"config.json: {field} = {value} is not supported; only"):
        read_config(PUBLISHED[name][1] | {field: value}, "config.json")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Llama-3.2-1B", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_fac"),
        ("EXAONE-4.0-32B", {"layer_types": None}, "sliding_window_pattern is 'LLLG'; state the kinds in layer_types"),
        ("c4ai-command-r7b-12-2024", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("c4ai-command-r7b-12-2024", {"use_qk_norm": True}, "use_qk_norm = True is not supported"),
        ("Qwen1.5-MoE-A2.7B", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0; it must be at least 1"),
        ("Qwen1.5-MoE-A2.7B", {"mlp_only_layers": ["a"]}, "mlp_only_layers has 'a'; it must hold numbers of layers"),
        ("Qwen1.5-MoE-A2.7B", {"mlp_only_layers": list(range(24))}, "dense_layers has every layer"),
        ("Ministral-3-3B, its text", {"rope_parameters": {"rope_theta": 1e6}}, "only yarn is"),
        ("granite-4.0-micro", {"layer_types": ["mamba"] * 40}, "layer_types has mamba: layers with a recurrent state"),
        ("granite-4.0-micro", {"layer_types": None}, "layer_types has mamba: layers with a recurrent state"),
        ("granite-4.0-micro", {"layer_types": ["attention"]}, "layer_types has 1 entries for 40 layers"),
        ("granite-4.0-micro", {"num_local_experts": 62}, "num_local_experts is 62: experts beside a shared one"),
        ("granite-4.0-micro", {"position_embedding_type": "alibi"}, "it must be 'rope' or 'nope'"),
        ("Qwen3-Next-80B-A3B", {"attn_output_gate": False}, "attn_output_gate = False is not supported; only True is"),
        ("Qwen3-Next-80B-A3B", {"full_attention_interval": 0}, "full_attention_interval is 0; it must be at least 1"),
        ("Qwen3-Next-80B-A3B", {"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ("Qwen3-Next-80B-A3B", {"linear_num_key_heads": 5}, "32 value heads; their number must be a multiple of its 5"),
        ("Qwen3-Next-80B-A3B", {"rope_scaling": {"rope_type": "mrope"}}, "scaling type 'mrope' is not supported"),
        (
            "Qwen3.6-27B, its text",
            {"layer_types": ["sliding_attention"] * 64},
            "layer_types has sliding_attention; kno",
        ),
        ("Qwen3.6-27B, its text", {"layer_types": ["full_attention"]}, "layer_kinds has 1 entries"),
        ("Qwen3.6-27B, its text", {"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype = 'bfloat16' is not supported"),
        ("Qwen3.6-27B, its text", {"output_gate_type": "sigmoid"}, "output_gate_type = 'sigmoid' is not supported"),
        ("Qwen3.6-27B, its text", {"linear_rank": 4}, "unknown for this model_type: linear_rank = 4"),
        ("Qwen3.5-35B-A3B, its text", {"norm_topk_prob": False}, "norm_topk_prob = False is not supported"),
        ("gpt-oss-20b", {"quantization_config": {"quant_method": "fp8"}}, "quant_method = 'fp8' is not supported"),
        ("gpt-oss-20b", {"quantization_config": {"quant_method": "mxfp4", "bits": 4}}, "quantization_config: unknown"),
        ("gpt-oss-20b", {"experts_per_token": 2}, "experts_per_token = 2 is not supported; only 4 is"),
        ("gpt-oss-20b", {"swiglu_limit": -1.0}, "'swiglu_limit' is -1.0; it must be above 0"),
        ("gpt-oss-20b", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; only 'silu' is"),
    ],
)
def test_what_a_family_cannot_do_is_refused(name, changes, message):
    fields = text_fields(PUBLISHED[name][1], "config.json")
    with pytest.raises(UserError, match=message):
        read_config({**fields, **changes}, "config.json")
