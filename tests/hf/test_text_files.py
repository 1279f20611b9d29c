"""Settings for generation in an export: those of the base survive, the trained terminator among its end tokens."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxtune.errors import UserError
from jaxtune.hf.text_files import TextFiles, read_generation

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}


def folder_with(tmp_path, generation=None, config=None):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_sampling_and_every_end_token_of_the_base_survive(tmp_path):
    base = SAMPLING | {"bos_token_id": 1, "eos_token_id": [9, 7, 8], "transformers_version": "4.51.0"}
    written = TextFiles(eos_token_id=7, pad_token_id=3, generation=read_generation(folder_with(tmp_path, base)))
    expected = SAMPLING | {"bos_token_id": 1, "pad_token_id": 3, "eos_token_id": [7, 9, 8]}
    assert written.generation_config == expected


@pytest.mark.parametrize(("eos", "ends"), [(7, 7), ([7], 7), (9, [7, 9]), ([], 7), (None, 7), ([9, 7], [7, 9])])
def test_the_trained_terminator_comes_first(tmp_path, eos, ends):
    found = read_generation(folder_with(tmp_path, {"eos_token_id": eos}))
    assert TextFiles(eos_token_id=7, generation=found).generation_config == {"eos_token_id": ends}


def test_end_tokens_of_config_json_count_where_no_others_are_named(tmp_path):
    assert read_generation(folder_with(tmp_path, None, {"eos_token_id": [4, 5], "top_p": 0.1})) == {
        "eos_token_id": [4, 5]
    }
    assert read_generation(folder_with(tmp_path, {"eos_token_id": 6}, {"eos_token_id": [4, 5]})) == {"eos_token_id": 6}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@hypothesis.given(st.dictionaries(st.sampled_from(["eos_token_id", "top_p", "x"]), JSON) | JSON)
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_generation_config_is_read_or_refused(tmp_path_factory, content):
    folder = folder_with(tmp_path_factory.mktemp("g"), content)
    try:
        found = read_generation(folder)
    except UserError as error:
        assert "generation_config.json" in str(error)
        return
    json.dumps(TextFiles(eos_token_id=2, generation=found).generation_config)
