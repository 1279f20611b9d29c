"""PEFT folders: what is written, that it comes back, and what is refused."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import peft
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import lora
from jaxtune.model.lora import LoraConfig, Scaling, Variant
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params

CONFIG = ModelConfig(
    vocab_size=41, d_model=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=16, max_seq_len=32,
    tie_embeddings=False,
)  # fmt: skip
SETTINGS = LoraConfig(rank=3, alpha=5.0, targets=(".*kernel",), variant=Variant.DORA, scaling=Scaling.RANK_STABILIZED)


def random_like(tree, seed: int) -> Any:
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(draws.standard_normal(leaf.shape), leaf.dtype), tree)


BASE = random_like(abstract_params(CONFIG)[1], 0)


def random_adapters(config: ModelConfig, settings: LoraConfig) -> dict:
    return random_like(
        jax.eval_shape(lambda: lora.init_lora(random_like(abstract_params(config)[1], 0), settings, 0)), 1
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An exported adapter and its values."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    adapters = random_adapters(CONFIG, SETTINGS)
    fingerprint = peft.base_fingerprint(BASE)
    peft.export_peft(folder, CONFIG, adapters, SETTINGS, base_name="org/base", fingerprint=fingerprint)
    return folder, adapters


@pytest.fixture
def copied(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written[0], tmp_path / "copy")


def change_config(folder, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_adapters_come_back_as_they_were(written):
    folder, adapters = written
    settings, back = peft.import_peft(folder, CONFIG, fingerprint=peft.base_fingerprint(BASE))
    jax.tree.map(np.testing.assert_array_equal, back, adapters)
    kept = ("rank", "alpha", "variant", "scaling")
    assert [getattr(settings, name) for name in kept] == [getattr(SETTINGS, name) for name in kept]
    assert jax.tree.structure(lora.init_lora(BASE, settings, 0)) == jax.tree.structure(adapters)


def test_some_kernels_alone_come_back(tmp_path):
    settings = LoraConfig(rank=2, targets=(r"layers\.attn\.[qv]\.kernel",))
    adapters = random_adapters(CONFIG, settings)
    peft.export_peft(tmp_path / "a", CONFIG, adapters, settings, base_name="base")
    back, tree = peft.import_peft(tmp_path / "a", CONFIG)
    jax.tree.map(np.testing.assert_array_equal, tree, adapters)
    assert back.targets == (r"layers\.attn\.q\.kernel", r"layers\.attn\.v\.kernel")
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (fields["target_modules"], fields["r"], fields["use_dora"]) == (["q_proj", "v_proj"], 2, False)


def test_tensors_have_the_names_and_shapes_of_peft(written):
    entries = safetensors_io.read_header(written[0] / "adapter_model.safetensors")
    o = "base_model.model.model.layers.1.self_attn.o_proj."
    assert entries[o + "lora_A.weight"].shape == (3, 24)
    assert entries[o + "lora_B.weight"].shape == (12, 3)
    assert entries[o + "lora_magnitude_vector"].shape == (12,)
    assert entries["base_model.model.lm_head.lora_A.weight"].shape == (3, 12)
    assert len(entries) == 3 * (2 * 7 + 1)


def test_an_existing_folder_is_left_alone(written):
    with pytest.raises(UserError, match="already there; nothing was written"):
        peft.export_peft(written[0], CONFIG, written[1], SETTINGS, base_name="x")


def test_an_existing_folder_is_overwritten_when_asked(copied, written):
    peft.export_peft(copied, CONFIG, random_adapters(CONFIG, SETTINGS), SETTINGS, base_name="y", overwrite=True)
    assert json.loads((copied / "adapter_config.json").read_text())["base_model_name_or_path"] == "y"
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_training_can_start_from_adapters_of_the_same_description(written):
    starting = dataclasses.replace(SETTINGS, start=str(written[0]), targets=(r".*\.kernel",))
    tree = peft.starting_adapters(CONFIG, starting, fingerprint=peft.base_fingerprint(BASE))
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, written[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 4}, "rank is 3 there and 4 in the config"),
        (
            {"alpha": 1.0, "variant": Variant.LORA},
            "alpha is 5.0 there and 1.0 in the config; variant is dora there and",
        ),
        ({"targets": (r"layers\.attn\.q\.kernel",)}, "lora.targets are layers.attn.q.kernel"),
    ],
)
def test_adapters_of_another_description_are_refused(written, changes, message):
    starting = dataclasses.replace(SETTINGS, start=str(written[0]), **changes)
    with pytest.raises(UserError, match=message):
        peft.starting_adapters(CONFIG, starting)


def test_a_failed_export_leaves_nothing(tmp_path):
    broken = {"layers": {"attn": {"q": {"a": np.zeros((2, 12, 3)), "b": np.zeros((1, 3, 4, 6))}}}}
    with pytest.raises(IndexError):
        peft.export_peft(tmp_path / "a", CONFIG, broken, SETTINGS, base_name="x")
    assert not list(tmp_path.iterdir())


def test_adapters_without_a_module_are_refused(tmp_path):
    experts = dataclasses.replace(CONFIG, family="mixtral", moe=MoeConfig(num_experts=2, experts_per_token=1, d_ff=8))
    settings = LoraConfig(rank=2, targets=(r"layers\.moe\.up\.kernel",))
    with pytest.raises(UserError, match=r"no module for the adapters of layers\.moe\.up\.kernel in a mixtral model"):
        peft.export_peft(tmp_path / "a", experts, random_adapters(experts, settings), settings, base_name="x")
    fused = dataclasses.replace(CONFIG, family="phi3")
    settings = LoraConfig(rank=2)
    with pytest.raises(UserError, match=r"layers\.attn\.q\.kernel.* in a phi3 model"):
        peft.export_peft(tmp_path / "a", fused, random_adapters(fused, settings), settings, base_name="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_ff": 20}, r"mlp.gate_proj.lora_B.weight has shape \[16, 3\], and this model needs \[20, 3\]"),
        ({"num_layers": 3}, r"layers\.2\..* is missing; an adapter must cover a module in all layers"),
        ({"num_layers": 1}, r"tensors have no place in this llama model, for instance .*layers\.1\."),
        ({"tie_embeddings": True}, "3 tensors have no place in this llama model, for instance .*lm_head"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_an_adapter_of_another_shape_is_refused(written, change, message):
    with pytest.raises(UserError, match=message):
        peft.import_peft(written[0], dataclasses.replace(CONFIG, **change))


def test_an_adapter_of_another_base_of_equal_shape_is_refused(written):
    other = peft.base_fingerprint(jax.tree.map(lambda x: x + 0.1, BASE))
    with pytest.raises(UserError, match="the adapter was trained on a base with fingerprint"):
        peft.import_peft(written[0], CONFIG, fingerprint=other)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_was_taken_out_of_its_base_is_refused_by_name(copied, init):
    change_config(copied, init_lora_weights=init)
    with pytest.raises(UserError, match=f"init_lora_weights is '{init}'.*path_initial_model_for_weight_conversion"):
        peft.import_peft(copied, CONFIG)


@pytest.mark.parametrize("init", ["newest", 3, ["pissa"], {"pissa": 1}, "PISSA", "pissa_niter_"])
def test_an_unknown_start_of_an_adapter_is_refused(copied, init):
    change_config(copied, init_lora_weights=init)
    with pytest.raises(UserError, match="it is not known whether that changes the base"):
        peft.import_peft(copied, CONFIG)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone_are_read(copied, written, init):
    change_config(copied, init_lora_weights=init)
    jax.tree.map(np.testing.assert_array_equal, peft.import_peft(copied, CONFIG)[1], written[1])


OTHER = {
    "alpha_pattern": {"q_proj": 4}, "rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"], "bias": "all",
    "lora_bias": True, "fan_in_fan_out": True, "layers_to_transform": [0], "layer_replication": [[0, 2]],
    "trainable_token_indices": [1], "target_parameters": ["w"], "use_qalora": True, "alora_invocation_tokens": [1],
    "an_option_of_tomorrow": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_options_that_change_what_an_adapter_computes_are_refused(copied, name):
    change_config(copied, **{name: OTHER[name]})
    with pytest.raises(UserError, match=f"not supported: {name}"):
        peft.import_peft(copied, CONFIG)


def test_an_adapter_folder_carries_tokenizer_and_template(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    text = TextFiles(eos_token_id=2, files=(tmp_path / "tokenizer.json",), chat_template="{{ messages }}")
    peft.export_peft(tmp_path / "a", CONFIG, random_adapters(CONFIG, SETTINGS), SETTINGS, base_name="b", text=text)
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "a" / "chat_template.jinja").read_text() == "{{ messages }}"
    peft.import_peft(tmp_path / "a", CONFIG)


def test_the_fingerprint_survives_a_change_of_dtype_and_nothing_else():
    fingerprint = peft.base_fingerprint(BASE)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    assert peft.base_fingerprint(half) == fingerprint
    assert peft.base_fingerprint({**BASE, "final_norm": {"scale": BASE["final_norm"]["scale"][::-1]}}) != fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"rank_pattern": {"q_proj": 8}, "lora_bias": True}, "not supported: rank_pattern = .*, lora_bias = True"),
        ({"bias": "all"}, "not supported: bias = 'all'"),
        ({"r": 4}, r"has shape \[3, 12\], and this model needs \[4, 12\].* states another rank"),
        ({"r": None}, "r is None; it must be of type int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_that_cannot_be_honoured_are_refused(copied, fields, message):
    change_config(copied, **fields)
    with pytest.raises(UserError, match=message):
        peft.import_peft(copied, CONFIG)


def test_options_without_effect_are_accepted(copied):
    change_config(copied, lora_dropout=0.1, rank_pattern={}, loftq_config={}, layers_to_transform=None, revision="main")
    peft.import_peft(copied, CONFIG)


def test_a_missing_weight_file_is_named(copied):
    (copied / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors: missing"):
        peft.import_peft(copied, CONFIG)
