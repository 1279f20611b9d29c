"""Adapters against PEFT: equal logits and gradients, for adapters that either side made."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.model import lora
from jaxtune.model import transformer as model
from jaxtune.model.lora import LoraConfig, Scaling, Variant

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
reference = pytest.importorskip("peft")

# PEFT still asks transformers by the old name of the property.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

TOLERANCE = 1e-4
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 9))
SETTINGS = {
    "lora": LoraConfig(rank=3, alpha=7),
    "rslora": LoraConfig(rank=4, alpha=3.5, scaling=Scaling.RANK_STABILIZED, targets=(r"layers\.attn\.[qo]\.kernel",)),
    "dora": LoraConfig(rank=2, alpha=5, variant=Variant.DORA),
    "head": LoraConfig(rank=2, alpha=5, targets=(r"head\.kernel", r"layers\.mlp\.down\.kernel")),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small random Llama: its folder, and config and parameters here."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64, tie_word_embeddings=False,
        initializer_range=0.2, attention_bias=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder, *hf.import_model(folder)


def load_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@functools.partial(jax.jit, static_argnums=(0, 3))
def our_logits(config, params, adapters, settings):
    graphdef = model.abstract_params(config)[0]
    tokens = jnp.asarray(TOKENS, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    full = lora.apply_lora(params, adapters, settings)
    return model.apply_logits(graphdef, full, model.apply(graphdef, full, tokens, positions, jnp.ones_like(tokens)))


def random_adapters(params, settings) -> Any:
    shapes = jax.eval_shape(lambda: lora.init_lora(params, settings, 0))
    draws = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draws.standard_normal(leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_peft_loads_our_adapters_with_equal_logits_and_gradients(name, base, tmp_path):
    folder, config, params = base
    settings = SETTINGS[name]
    adapters = random_adapters(params, settings)
    peft.export_peft(tmp_path / "adapter", config, adapters, settings, base_name=str(folder))
    network = reference.PeftModel.from_pretrained(load_base(folder), tmp_path / "adapter", is_trainable=True)
    logits = network(torch.tensor(TOKENS)).logits
    torch.sin(logits).sum().backward()
    total = lambda adapters: jnp.sum(jnp.sin(our_logits(config, params, adapters, settings)))
    np.testing.assert_allclose(our_logits(config, params, adapters, settings), logits.detach(), atol=TOLERANCE)

    gradients = jax.grad(total)(adapters)
    peft.export_peft(tmp_path / "gradients", config, gradients, settings, base_name="gradients")
    ours = reference.utils.load_peft_weights(str(tmp_path / "gradients"), device="cpu")
    theirs = {
        key.replace(".default.weight" if "magnitude" in key else ".default", ""): parameter.grad
        for key, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(ours[key], gradient, atol=TOLERANCE * max(scale, 1), err_msg=key)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_adapters_of_peft_load_with_equal_logits(options, base, tmp_path):
    folder, config, params = base
    torch.manual_seed(3)
    settings = reference.LoraConfig(
        r=3, lora_alpha=11, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    network = reference.get_peft_model(load_base(folder), settings)
    network.save_pretrained(tmp_path / "adapter")
    read, adapters = peft.import_peft(tmp_path / "adapter", config)
    with torch.no_grad():
        expected = network(torch.tensor(TOKENS)).logits
        plain = load_base(folder)(torch.tensor(TOKENS)).logits
    assert float((expected - plain).abs().max()) > 0.1, "the adapter does nothing"
    np.testing.assert_allclose(our_logits(config, params, adapters, read), expected, atol=TOLERANCE)
