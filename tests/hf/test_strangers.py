"""Files of model folders as strangers may send them: each is read, or refused at once by a UserError that names it."""

import json
import pathlib

import family_cases
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import peft
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.configs import read_config
from jaxtune.hf.folder import load_config
from jaxtune.model.settings import ModelConfig

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 10**8, 2**40, 10**400, 0.0, -0.5, 1e-320, 1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(["llama", "yarn", "longrope"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ROPE_NUMBERS = (
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
    "attention_factor", "mscale", "mscale_all_dim", "short_factor", "long_factor", "truncate", "rope_theta",
    "partial_rotary_factor",
)  # fmt: skip
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn", "longrope", "default", "dynamic"])},
    optional={name: JSON | st.floats(0, 40) for name in ROPE_NUMBERS},
)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=400, deadline=None)
def test_any_config_json_is_read_or_refused(data):
    case = data.draw(st.sampled_from(sorted(family_cases.CASES)))
    fields = family_cases.config_fields(case, 0)
    names = [
        *fields,
        "head_dim",
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "sliding_window_pattern",
        "no_rope_layers",
    ]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        value = JSON if not name.startswith("rope_") else JSON | ROPE
        fields[name] = data.draw(value)
    try:
        assert isinstance(read_config(fields, "config.json"), ModelConfig)
    except UserError as error:
        assert str(error).startswith("config.json") and len(str(error)) < 4000


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[1]", b"{" * 100_000, b"[" * 100_000, b'{"model_type": ["llama"]}', b"\xff\xfe", b'{"a": NaN}',
        b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", b'{"model_type": {"a": {}}}',
    ],
)  # fmt: skip
def test_a_config_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json"):
        load_config(tmp_path)


def write_safetensors(folder: pathlib.Path, header: bytes, data: bytes = b"") -> pathlib.Path:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@hypothesis.given(
    st.dictionaries(
        st.text(max_size=4),
        JSON | st.fixed_dictionaries({name: JSON | st.just(ENTRY[name]) for name in ENTRY}),
        max_size=3,
    )
    | JSON
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_safetensors_header_is_read_or_refused(tmp_path_factory, header):
    folder = write_safetensors(tmp_path_factory.mktemp("s"), json.dumps(header).encode(), bytes(8))
    try:
        for entry in safetensors_io.find_tensors(folder).values():
            safetensors_io.read_tensor(entry)
    except UserError as error:
        assert "model.safetensors" in str(error)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', "the key 'a' stands twice"),
        (b"{" * 50_000, "its header"),
        (b'{"a": ' + b"[" * 50_000, "its header"),
        (b'{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}', "has the header"),
        (b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', "has the header"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [false, 8]}}', "has the header"),
    ],
)
def test_a_header_that_readers_take_differently_is_refused(tmp_path, header, message):
    with pytest.raises(UserError, match=message):
        safetensors_io.find_tensors(write_safetensors(tmp_path, header, bytes(8)))


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["weight_map", "metadata"]), st.dictionaries(st.text(max_size=4), JSON, max_size=3) | JSON
    )
    | JSON
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_index_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("i")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="index.json"):
        safetensors_io.find_tensors(folder)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_adapter_config_is_read_or_refused(tmp_path_factory, data):
    fields = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
    }  # fmt: skip
    for name in data.draw(st.lists(st.sampled_from([*fields, "alpha_pattern", "bias"]), min_size=1, max_size=3)):
        fields[name] = data.draw(JSON)
    file = tmp_path_factory.mktemp("a") / "adapter_config.json"
    file.write_text(json.dumps(fields))
    try:
        peft._read_config(file)
    except UserError as error:
        assert "adapter_config.json" in str(error)


def test_zero_sized_and_scalar_tensors_are_read(tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    folder = write_safetensors(tmp_path, json.dumps(header).encode(), np.float32(2).tobytes())
    found = {name: safetensors_io.read_tensor(entry) for name, entry in safetensors_io.find_tensors(folder).items()}
    assert found["a"].shape == (0, 3) and found["b"] == 2
