"""The text models inside models of images and text, against what transformers computes for text with the whole."""

import family_cases
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.hf import folder as hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pairs = pytest.importorskip("family_pairs")

pytestmark = pytest.mark.parity

TEXT = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 1e4,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 8, "out_hidden_size": 24}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}  # fmt: skip
CASES = {
    "qwen2_5_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]}},
    "qwen3_vl": {"head_dim": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    "qwen3_5": {"head_dim": 16, **DELTA},
    "qwen3_5_moe": {
        "head_dim": 16, **DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
        "shared_expert_intermediate_size": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_logits_of_text_equal_those_of_the_model_of_images_and_text(kind, tmp_path):
    extra = {"qwen3_vl": {"deepstack_visual_indexes": [0]}, "qwen2_5_vl": {"fullatt_block_indexes": [0]}}
    images = VISION | extra.get(kind, {})
    config = transformers.AutoConfig.for_model(
        kind, text_config=TEXT | CASES[kind], vision_config=images, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    network = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    network.save_pretrained(tmp_path)
    ours, params = hf.import_model(tmp_path)
    tokens = family_cases.sequences(TEXT["vocab_size"])[0]
    with torch.no_grad():
        expected = network(input_ids=torch.tensor(tokens)[None]).logits[0].numpy()
    rows = jnp.asarray(tokens)[None], jnp.arange(len(tokens))[None], jnp.ones((1, len(tokens)), jnp.int32)
    np.testing.assert_allclose(
        pairs.our_logits(ours, params, rows)[0], expected, atol=family_cases.tolerance(ours), rtol=0
    )
    alone = {"qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3"}
    assert ours.family == alone.get(kind, f"{kind}_text")
