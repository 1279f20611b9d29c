"""Kinds of models that cannot be read, and the mechanisms they would need."""

from jaxtune.errors import UserError

RECURRENT = "layers with a recurrent state of another kind than the gated delta rule"
OLDER = "LayerNorm with biases, and feed-forwards or positions of older models"
PER_LAYER = "embeddings for each layer, and layers that share keys and values"
LATENT = "latent attention, and a router of sigmoids with groups of experts"

MISSING = {
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), PER_LAYER),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "mistral4"), LATENT),
    **dict.fromkeys(("llama4", "llama4_text"), "chunked attention, and experts whose inputs are weighted"),
    **dict.fromkeys(("glm4_moe", "dots1", "ernie4_5_moe", "minimax_m2"), "a router of sigmoids with corrections"),
    **dict.fromkeys(("olmoe", "granitemoe", "phimoe"), "this family's experts and router"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_h1", "nemotron_h", "minimax"), RECURRENT),
    **dict.fromkeys(("kimi_linear", "bamba", "jamba"), RECURRENT),
    **dict.fromkeys(("lfm2", "lfm2_moe"), "convolution layers"),
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "bloom", "phi", "starcoder2", "stablelm", "nemotron", "olmo"), OLDER),
}
"""model_type -> mechanisms that jaxtune lacks."""


def refuse(name: object, known: list[str], origin: str) -> UserError:
    """The error for a `model_type` that is not among `known`."""
    missing = MISSING.get(name) if isinstance(name, str) else None
    why = "" if missing is None else f": it needs {missing}, which jaxtune does not have"
    return UserError(f"{origin}: model_type {name!r:.80} is not supported{why}; known: {', '.join(known)}.")
