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
CASES = {
    "qwen2_5_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]}},
    "qwen3_vl": {"head_dim": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
}


@pytest.mark.parametrize("kind", CASES)
def test_logits_of_text_equal_those_of_the_model_of_images_and_text(kind, tmp_path):
    extra = {"deepstack_visual_indexes": [0]} if kind == "qwen3_vl" else {"fullatt_block_indexes": [0]}
    config = transformers.AutoConfig.for_model(
        kind, text_config=TEXT | CASES[kind], vision_config=VISION | extra, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    network = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    network.save_pretrained(tmp_path)
    ours, params = hf.import_model(tmp_path)
    tokens = family_cases.sequences(TEXT["vocab_size"])[0]
    with torch.no_grad():
        expected = network(input_ids=torch.tensor(tokens)[None]).logits[0].numpy()
    rows = jnp.asarray(tokens)[None], jnp.arange(len(tokens))[None], jnp.ones((1, len(tokens)), jnp.int32)
    np.testing.assert_allclose(pairs.our_logits(ours, params, rows)[0], expected, atol=1e-4, rtol=0)
    assert ours.family == {"qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3"}[kind]
