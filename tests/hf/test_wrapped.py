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

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "families" / "gemma3.npz")
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


QWEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "families" / "qwen2.npz")


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
