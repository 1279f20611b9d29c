"""Text models inside models of images and text."""

import json
import pathlib

import family_cases
import jax
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.wrapped import text_fields

GOLDENS = pathlib.Path(__file__).parent.parent / "golden" / "families"
GOLDEN = np.load(GOLDENS / "gemma3.npz")
TEXT = json.loads(str(GOLDEN["config"]))
SHAPES = {name: tuple(shape) for name, shape in json.loads(str(GOLDEN["shapes"])).items()}
WRAPPED = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": TEXT,
    "vision_config": {"hidden_size": 3}, "image_token_index": 7, "torch_dtype": "float32",
}  # fmt: skip
SPELLINGS = {
    "older": lambda name: f"language_model.{name}",
    "newer": lambda name: name.replace("model.", "model.language_model.", 1),
}


def write(
    folder: pathlib.Path, rename=lambda name: name, fields=WRAPPED, *, shapes=SHAPES, **others: tuple[int, ...]
) -> pathlib.Path:
    """A model folder with the values of the golden text model under other names, and tensors of images beside them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    names = {rename(name): name for name in shapes}
    header = {new: (np.dtype(np.float32), shapes[old]) for new, old in names.items()}
    header |= {name.replace("__", "."): (np.dtype(np.float32), shape) for name, shape in others.items()}
    load = lambda name: family_cases.weight(names.get(name, name), header[name][1])
    safetensors_io.write_file(folder / "model.safetensors", header, load)
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_text_model_of_a_wrapper_is_that_model_alone(tmp_path, spelling):
    config, params = hf.import_model(write(tmp_path / "alone", fields=TEXT))
    images = {"vision_tower__patch__weight": (3, 3), "multi_modal_projector__w": (2,)}
    inside, same = hf.import_model(write(tmp_path / "wrapped", SPELLINGS[spelling], **images))
    assert inside == config
    jax.tree.map(np.testing.assert_array_equal, params, same)


QWEN = np.load(GOLDENS / "qwen2.npz")


@pytest.mark.parametrize("flat", [True, False], ids=["fields beside", "text_config"])
def test_the_text_of_qwen_vl_is_qwen(tmp_path, flat):
    text = json.loads(str(QWEN["config"]))
    rope = {"type": "mrope", "mrope_section": [1, 1, 1], "rope_theta": 1e6}
    inner = {name: value for name, value in text.items() if name not in ("architectures", "rope_parameters")}
    inner |= {"model_type": "qwen2_5_vl_text", "rope_scaling": rope}
    images = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 1}, "video_token_id": 9}
    wrapped = inner | images if flat else {"text_config": inner} | images
    shapes = {name: tuple(shape) for name, shape in json.loads(str(QWEN["shapes"])).items()}
    config, params = hf.import_model(write(tmp_path / "alone", fields=text, shapes=shapes))
    rename = (lambda name: name) if flat else SPELLINGS["newer"]
    folder = write(tmp_path / "wrapped", rename, wrapped, shapes=shapes, visual__patch__weight=(3, 3))
    inside, same = hf.import_model(folder)
    assert inside == config
    jax.tree.map(np.testing.assert_array_equal, params, same)


def golden(family: str) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """config.json, and shapes of the tensors, of a golden text model."""
    held = np.load(GOLDENS / f"{family}.npz")
    shapes = json.loads(str(held["shapes"]))
    return json.loads(str(held["config"])), {name: tuple(shape) for name, shape in shapes.items()}


MROPE = {"mrope_section": [1, 1, 1], "mrope_interleaved": True}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "alone"])
def test_the_text_of_qwen_3_5_leaves_images_and_the_drafting_layer_where_they_are(tmp_path, inside):
    text, shapes = golden("qwen3_5")
    config, params = hf.import_model(write(tmp_path / "alone", fields=text, shapes=shapes))
    said = text | {"rope_parameters": text["rope_parameters"] | MROPE, "mtp_num_hidden_layers": 1}
    wrapped = {"model_type": "qwen3_5", "text_config": said, "vision_config": {"depth": 1}, "image_token_id": 5}
    others = {"mtp__layers__0__mlp__up_proj__weight": (3, 2), "mtp__norm__weight": (2,)}
    others |= {"model__visual__patch_embed__proj__weight": (3, 3)} if inside else {}
    rename = SPELLINGS["newer"] if inside else (lambda name: name)
    folder = write(tmp_path / "model", rename, wrapped if inside else said, shapes=shapes, **others)
    again, same = hf.import_model(folder)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_experts_of_one_tensor_are_those_of_many(tmp_path):
    """As the files of Qwen 3.5 are published, and as transformers writes its text model."""
    text, shapes = golden("qwen3_5_moe")
    config, params = hf.import_model(write(tmp_path / "many", fields=text, shapes=shapes))
    values = {name: family_cases.weight(name, shape) for name, shape in shapes.items() if ".experts." not in name}
    assert config.moe is not None
    for layer in range(config.num_layers):
        start = f"model.layers.{layer}.mlp.experts"
        of = lambda expert, x, start=start: family_cases.weight(
            name := f"{start}.{expert}.{x}_proj.weight", shapes[name]
        )
        experts = range(config.moe.num_experts)
        values[f"{start}.gate_up_proj"] = np.stack([np.concatenate([of(e, "gate"), of(e, "up")]) for e in experts])
        values[f"{start}.down_proj"] = np.stack([of(e, "down") for e in experts])
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(text))
    header = {name: (value.dtype, value.shape) for name, value in values.items()}
    safetensors_io.write_file(folder / "model.safetensors", header, values.__getitem__)
    again, same = hf.import_model(folder)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    values["model.layers.0.mlp.experts.gate_up_proj"] = np.zeros((5, 21, 24), np.float32)
    (folder / "model.safetensors").unlink()
    header = {name: (value.dtype, value.shape) for name, value in values.items()}
    safetensors_io.write_file(folder / "model.safetensors", header, values.__getitem__)
    with pytest.raises(UserError, match="'model.layers.0.mlp.experts.0.gate_proj.weight' is missing"):
        hf.import_model(folder)


def test_a_tensor_that_is_neither_text_nor_images_is_refused(tmp_path):
    folder = write(tmp_path / "wrapped", SPELLINGS["older"], audio_tower__w=(2,))
    with pytest.raises(UserError, match="tensor 'audio_tower.w' in model.safetensors is unknown"):
        hf.import_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "text_config is None; a gemma3 model needs an object there"),
        ({"text_config": [1]}, r"text_config is \[1\]"),
        ({"text_config": {"model_type": "llama"}}, "the text model of gemma3 is 'llama'; known: gemma3_text"),
        ({"text_config": {"model_type": ["x"]}}, "the text model of gemma3 is"),
        ({"model_type": "qwen3_vl", "text_config": None}, "a qwen3_vl model needs an object there"),
        ({"quantization_config": {"bits": 4}}, "unknown for a gemma3 model: quantization_config"),
    ],
)
def test_a_wrapper_that_says_too_little_or_too_much_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        text_fields(WRAPPED | changes, "config.json")
