"""Greedy generation against transformers, token by token: batches of unequal prompts against one prompt at a time."""

import os
import pathlib

import numpy as np
import pytest

from jaxtune.evaluate.decoding import SamplingConfig, generate
from jaxtune.hf import folder as hf
from jaxtune.model import transformer as model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
}
NEW = 24


def theirs(network, prompt: list[int], stop_ids: list[int] | None) -> list[int]:
    """The tokens that transformers adds to a prompt."""
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=stop_ids, pad_token_id=0, bos_token_id=None
    )
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        return network.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )[0, len(prompt) :].tolist()  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
def test_random_models_generate_the_same_tokens(family, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES, **FAMILIES[family], initializer_range=0.2)
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    network.save_pretrained(tmp_path / "model")
    ours, params = hf.import_model(tmp_path / "model")
    draws = np.random.default_rng(1)
    prompts = [draws.integers(1, 97, length).tolist() for length in (3, 40, 1, 17, 64)]
    expected = [theirs(network, prompt, None) for prompt in prompts]
    assert len({token for answer in expected for token in answer}) > 10, "the random model repeats itself"
    answers = generate(
        model.abstract_params(ours)[0], params, ours, prompts, stop_ids=(), sampling=SamplingConfig(max_new_tokens=NEW)
    )
    assert answers == expected


def test_a_real_model_answers_chats_with_the_same_tokens():
    folder = os.environ.get("JAXTUNE_SMOLLM2")
    if folder is None:
        pytest.skip("set JAXTUNE_SMOLLM2 to the folder of SmolLM2-135M-Instruct")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    questions = ["What is the capital of France?", "Count from one to five.", "Write a haiku about the sea, please."]
    prompts = [
        words.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in questions
    ]  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stop = network.generation_config.eos_token_id
    expected = [theirs(network, prompt, [stop]) for prompt in prompts]
    ours, params = hf.import_model(pathlib.Path(folder))
    answers = generate(
        model.abstract_params(ours)[0], params, ours, prompts, stop_ids=[stop],
        sampling=SamplingConfig(max_new_tokens=NEW),
    )  # fmt: skip
    assert answers == expected
    assert any(answer[-1] == stop for answer in answers)
