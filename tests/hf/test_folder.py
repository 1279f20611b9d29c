import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import sys
import tracemalloc

import family_cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import reading
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.configs import read_config, write_config
from jaxtune.hf.text_files import TextFiles, tokenizer_files
from jaxtune.model import transformer as model
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import LayerKind, ModelConfig

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
CONFIG = ModelConfig(
    vocab_size=37,
    d_model=12,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    d_ff=20,
    max_seq_len=64,
    tie_embeddings=False,
)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def random_params(config: ModelConfig):
    rng = np.random.default_rng(0)
    shapes = model.abstract_params(config)[1]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, dtype=np.float32)), shapes)


@pytest.fixture
def folder(params, tmp_path):
    """An exported model in several shards, to be damaged."""
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2), shard_bytes=10000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def rewrite(file: pathlib.Path, change):
    """Apply `change` to the tensors of a safetensors file, as a dict."""
    tensors = {name: safetensors_io.read_tensor(entry) for name, entry in safetensors_io.read_header(file).items()}
    change(tensors)
    file.unlink()
    safetensors_io.write_file(file, {name: (t.dtype, t.shape) for name, t in tensors.items()}, tensors.__getitem__)


def edit_config(folder: pathlib.Path, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture(params=family_cases.CASES, scope="module")
def family(request, tmp_path_factory):
    """A family's golden: the imported model, its folder, and logits that transformers computed."""
    golden = np.load(GOLDEN / f"{request.param}.npz")
    folder = tmp_path_factory.mktemp(request.param)
    family_cases.write_checkpoint(folder, json.loads(str(golden["config"])), json.loads(str(golden["shapes"])))
    return folder, *hf.import_model(folder), golden["logits"]


def test_packed_logits_of_every_family_equal_those_of_transformers(family):
    _, config, params, expected = family
    sequences = family_cases.sequences(config.vocab_size)
    tokens = jnp.asarray(np.concatenate([*sequences, [0, 0]]))[None]
    positions = jnp.asarray(np.concatenate([*(np.arange(len(s)) for s in sequences), [0, 0]]))[None]
    lengths = [*family_cases.LENGTHS, 2]
    segments = jnp.asarray(np.repeat([1, 2, 0], lengths))[None]
    graphdef, _ = model.abstract_params(config)
    logits = jax.jit(
        lambda params: model.apply_logits(graphdef, params, model.apply(graphdef, params, tokens, positions, segments))
    )(params)
    atol = family_cases.tolerance(config)
    np.testing.assert_allclose(logits[0, :-2, ::7], expected, atol=atol, rtol=0, err_msg=EXPLANATION)


EXPLANATION = (
    "The model no longer computes what transformers computes for this family. If family_cases.py changed, write the "
    "goldens anew: PYTHONPATH=tests python tests/parity/make_family_goldens.py"
)


def test_every_family_survives_export_and_import(family, tmp_path):
    folder, config, params, _ = family
    hf.export_model(tmp_path / "out", config, params, TextFiles(eos_token_id=2))
    again, same = hf.import_model(tmp_path / "out")
    assert dataclasses.replace(again, layer_kinds=config.layer_kinds) == config
    assert again.kinds == config.kinds
    jax.tree.map(np.testing.assert_array_equal, params, same)
    before, after = (safetensors_io.find_tensors(f) for f in (folder, tmp_path / "out"))
    assert {name: entry.shape for name, entry in before.items()} == {name: entry.shape for name, entry in after.items()}


def test_shards_and_a_single_file_hold_the_same(params, folder, tmp_path):
    hf.export_model(tmp_path / "single", CONFIG, params, TextFiles(eos_token_id=2))
    assert (tmp_path / "single" / "model.safetensors").exists()
    for source in (folder, tmp_path / "single"):
        config, loaded = hf.import_model(source)
        assert config == CONFIG
        jax.tree.map(np.testing.assert_array_equal, params, loaded)


def test_bfloat16_goes_both_ways(params, tmp_path):
    hf.export_model(tmp_path / "half", CONFIG, params, TextFiles(eos_token_id=2), dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    for dtype in (jnp.bfloat16, jnp.float32):
        _, loaded = hf.import_model(tmp_path / "half", dtype=dtype)
        for ours, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(rounded), strict=True):
            np.testing.assert_array_equal(ours, expected.astype(dtype), strict=True)


def test_import_lands_in_the_given_sharding(params, folder, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1)  # every layer is a chunk of its own
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = {"layers.attn.q.kernel": jax.P(None, "fsdp"), "layers.mlp.down.kernel": jax.P(None, "fsdp")}
    _, loaded = hf.import_model(folder, sharding=lambda path: jax.NamedSharding(mesh, spec.get(path, jax.P())))
    assert loaded["layers"]["mlp"]["down"]["kernel"].addressable_shards[0].data.shape == (3, 5, 12)
    jax.tree.map(np.testing.assert_array_equal, params, loaded)


def split(mesh: jax.sharding.Mesh, config: ModelConfig):
    """A rule that splits every parameter along its last dimension that the mesh divides."""
    shapes = jax.tree_util.tree_leaves_with_path(model.abstract_params(config)[1])
    by_path = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in shapes}

    def rule(path: str) -> jax.NamedSharding:
        even = [i for i, size in enumerate(by_path[path]) if size % mesh.size == 0]
        return jax.NamedSharding(mesh, jax.P(*[None] * even[-1], "fsdp") if even else jax.P())

    return rule


SHARED = ("llama", "phi3", "gpt_oss", "qwen3_moe", "qwen3_next")
"""Families whose matrices are stored alone; fused by rows; of all experts in one, by columns; of each expert; fused by
heads."""


@pytest.mark.parametrize("family", SHARED, indirect=True)
def test_what_processes_read_in_shares_is_what_one_reads_alone(family, monkeypatch):
    folder, config, params, _ = family
    read, honest = [], safetensors_io.read_tensor
    monkeypatch.setattr(safetensors_io, "read_tensor", lambda *given: read.append(given) or honest(*given))
    monkeypatch.setattr(reading, "spans_processes", lambda _: True)
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    _, shared = hf.import_model(folder, sharding=split(mesh, config))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x).view("u4"), np.asarray(y).view("u4")), shared, params
    )
    parts = [(entry, rows) for entry, rows in read if len(entry.shape) > 1 and rows is not None]
    assert any(rows.stop - rows.start <= -(-entry.shape[0] // 4) for entry, rows in parts), "each device's share"


def test_shares_of_rows_that_devices_do_not_divide_and_of_half_precision(tmp_path, monkeypatch):
    """Bits that a sum with zero would change are there: a negative zero, a number below the normal ones."""
    params = random_params(CONFIG)
    odd = np.array(params["embed"]["embedding"])
    odd[3, :4] = -0.0, 1e-40, -1e-40, 3e38
    params["embed"]["embedding"] = jnp.asarray(odd)
    monkeypatch.setattr(reading, "spans_processes", lambda _: True)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    for dtype, bits in ((jnp.float32, "u4"), (jnp.bfloat16, "u2")):
        hf.export_model(tmp_path / bits, CONFIG, params, TextFiles(eos_token_id=2), dtype=dtype)
        _, shared = hf.import_model(tmp_path / bits, dtype=dtype, sharding=split(mesh, CONFIG))
        for found, written in zip(jax.tree.leaves(shared), jax.tree.leaves(params), strict=True):
            expected = np.asarray(written).astype(dtype)
            np.testing.assert_array_equal(np.asarray(found).view(bits), expected.view(bits))


def test_what_is_wrong_with_a_share_is_raised_when_all_have_read_theirs(params, tmp_path, monkeypatch):
    weights = jax.tree.map(np.array, params)
    weights["layers"]["attn"]["q"]["kernel"][1, 2, 3, 4] = np.nan
    hf.export_model(tmp_path / "model", CONFIG, weights, TextFiles(eos_token_id=2))
    monkeypatch.setattr(reading, "spans_processes", lambda _: True)
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight' holds 1 values that are NaN"):
        hf.import_model(tmp_path / "model", sharding=split(mesh, CONFIG))


def test_import_holds_little_more_than_what_it_returns(tmp_path):
    config = dataclasses.replace(CONFIG, d_model=64, d_ff=512, num_layers=8, tie_embeddings=True)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), model.abstract_params(config)[1])
    hf.export_model(tmp_path / "model", config, params, TextFiles(eos_token_id=2), shard_bytes=1000000)
    largest = max(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    tracemalloc.start()
    hf.import_model(tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * largest + kept


def test_export_states_the_trained_terminator_and_takes_tokenizer_files_along(params, tmp_path):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text('{"chat_template": "old", "eos_token": "</s>"}')
    files = tokenizer_files(source)
    hf.export_model(
        tmp_path / "out",
        CONFIG,
        params,
        TextFiles(eos_token_id=7, pad_token_id=3, files=tuple(files), chat_template="new"),
    )
    out = tmp_path / "out"
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((out / name).read_text())
        assert (fields["eos_token_id"], fields["pad_token_id"]) == (7, 3)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "chat_template.jinja").read_text() == "new"
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"eos_token": "</s>"}


def test_export_overwrites_only_when_allowed(params, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="already there"):
        hf.export_model(tmp_path / "out", CONFIG, params, TextFiles(eos_token_id=2))
    assert (tmp_path / "out" / "mine").exists()
    hf.export_model(tmp_path / "out", CONFIG, params, TextFiles(eos_token_id=2), overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()
    assert hf.import_model(tmp_path / "out")[0] == CONFIG


def test_a_failed_export_leaves_nothing_behind_and_the_old_folder_whole(params, tmp_path, monkeypatch):
    hf.export_model(tmp_path / "out", CONFIG, params, TextFiles(eos_token_id=2))

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(hf, "_gather", fail)
    with pytest.raises(OSError, match="no space"):
        hf.export_model(tmp_path / "out", CONFIG, params, TextFiles(eos_token_id=9), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_a_truncated_file_is_named(folder):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{file.name}: truncated or corrupt.*the file has only"):
        hf.import_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header would be 0 bytes"),
        (b"\xff" * 40, "header would be"),
        ((10).to_bytes(8, "little") + b"not json!!", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((2).to_bytes(8, "little") + b"{}trailing", "8 bytes follow the last tensor"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"model.safetensors: truncated or corrupt.*{message}"):
        safetensors_io.find_tensors(tmp_path)


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"tensor 'a' of dtype F32 and shape \[3\] spans 8 bytes"):
        safetensors_io.find_tensors(tmp_path)


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=rf"names shards that are not there: {shard.name}"):
        hf.import_model(folder)


def test_a_missing_tensor_is_named(folder):
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    shard = fields["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    index.write_text(json.dumps(fields))
    rewrite(folder / shard, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"tensor 'model.layers.1.mlp.up_proj.weight' is missing .*\[20, 12\]"):
        hf.import_model(folder)


@pytest.mark.parametrize(
    "home", ["../outside/w.safetensors", "/w.safetensors", "sub/w.safetensors", "..", "w.bin", "a\\b"]
)
def test_an_index_may_name_files_beside_itself_only(folder, home):
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["model.norm.weight"] = home
    index.write_text(json.dumps(fields))
    with pytest.raises(
        UserError, match="index.json: .* cannot be read: an index names safetensors files beside itself"
    ):
        hf.import_model(folder)


def test_two_sets_of_weights_are_refused_unless_they_are_one(params, tmp_path):
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2))
    single, index = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "model.safetensors.index.json"
    names = safetensors_io.read_header(single)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, single.name)}))
    assert hf.import_model(tmp_path / "model")[0] == CONFIG
    shutil.copy(single, single.with_name("model-00001-of-00001.safetensors"))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    with pytest.raises(UserError, match="two sets of weights, model.safetensors and model.safetensors.index.json"):
        hf.import_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(params, tmp_path, dtype, value):
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2), dtype=dtype)
    file = tmp_path / "model" / "model.safetensors"
    entry = safetensors_io.read_header(file)["model.norm.weight"]
    data = bytearray(file.read_bytes())
    width = np.dtype(dtype).itemsize
    data[entry.start + width : entry.start + 2 * width] = np.array([value]).astype(dtype).tobytes()
    file.write_bytes(data)
    with pytest.raises(UserError, match="'model.norm.weight' holds 1 values that are NaN or infinite"):
        hf.import_model(tmp_path / "model")


def test_a_pipe_in_place_of_weights_is_refused_at_once(params, tmp_path):
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2))
    (tmp_path / "model" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match="no regular file"):
        hf.import_model(tmp_path / "model")


def test_more_layers_than_the_weights_can_hold_are_told_without_listing_them(folder):
    edit_config(folder, num_hidden_layers=9999)
    with pytest.raises(UserError, match="states 9999 layers, which are 9999 tensors or more, and the weights hold"):
        hf.import_model(folder)


def test_names_of_the_hub_come_from_the_source_or_its_cache(tmp_path):
    assert hf.hub_name("owner/model") == "owner/model"
    assert hf.hub_name(tmp_path) is None and hf.hub_name("./owner/model") is None
    assert hf.hub_name(tmp_path / "models--owner--model" / "snapshots" / "0a1b") == "owner/model"


def test_an_index_that_contradicts_its_shard_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["extra"] = sorted(fields["weight_map"].values())[0]
    index.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="does not hold the tensors .* differing: extra"):
        hf.import_model(folder)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((11, 12), np.float32), r"in model.safetensors has shape \[11, 12\], expected \[24, 12\]"),
        (np.zeros((24, 12), np.int8), "in model.safetensors has dtype I8, expected F32 or BF16 or F16"),
        (np.zeros((24, 12), ml_dtypes.float8_e4m3fn), "in model.safetensors has dtype F8_E4M3"),
    ],
)
def test_a_tensor_of_wrong_shape_or_dtype_is_named(params, tmp_path, tensor, message):
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2))
    name = "model.layers.2.self_attn.q_proj.weight"
    rewrite(tmp_path / "model" / "model.safetensors", lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(UserError, match=f"tensor '{name}' {message}"):
        hf.import_model(tmp_path / "model")


def test_an_unknown_tensor_is_named_and_a_redundant_one_is_not(params, tmp_path):
    hf.export_model(tmp_path / "model", CONFIG, params, TextFiles(eos_token_id=2))
    file = tmp_path / "model" / "model.safetensors"
    rewrite(file, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}))
    hf.import_model(tmp_path / "model")
    rewrite(file, lambda t: t.update({"model.vision.weight": np.ones(3, np.float32)}))
    with pytest.raises(UserError, match="tensor 'model.vision.weight' in model.safetensors is unknown"):
        hf.import_model(tmp_path / "model")


def test_a_stored_head_must_equal_the_embedding_it_is_tied_to(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    hf.export_model(tmp_path / "model", config, random_params(config), TextFiles(eos_token_id=2))
    file = tmp_path / "model" / "model.safetensors"
    rewrite(file, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    hf.import_model(tmp_path / "model")
    rewrite(file, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(
        UserError, match="'lm_head.weight' .* differs from the embedding.* set that to false if the stored"
    ):
        hf.import_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not read by llama models; remove it"),
        ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000; the most are 10000"),
        ({"rms_norm_eps": 1e999}, "Infinity is no JSON number"),
        ({"rms_norm_eps": 2.0}, r"norm_eps is 2.0; it must be in \[0, 1\)"),
        ({"hidden_size": 10**400}, "d_model is"),
        ({"num_experts_used": 3}, "unknown for this model_type: num_experts_used = 3"),
        ({"model_type": "unheard"}, "model_type 'unheard' is not supported; known: llama, mistral"),
        (
            {"model_type": "kimi_linear"},
            "model_type 'kimi_linear' is not supported: it needs layers with a recurrent state .*; known: llama",
        ),
        ({"model_type": ["x"]}, r"model_type \['x'\] is not supported; known"),
        ({"model_type": "gemma3"}, "text_config is None; a gemma3 model needs an object there"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures = .* is not supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; known: silu"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported; only 0 is"),
        ({"hidden_size": "12"}, "'hidden_size' is '12'; it must be of type int"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1; it must be of type bool"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"head_dim": None, "num_attention_heads": 5}, "is no multiple of num_attention_heads"),
        ({"head_dim": 5}, "rope would rotate 5 of 5 head dimensions"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaling type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' needs low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 1}}, "rope: unknown .* twist = 1"),
    ],
)
def test_an_unsupported_config_field_is_named(folder, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(UserError, match=f"config.json.*{message}"):
        hf.import_model(folder)


def test_broken_or_missing_json_is_named(folder):
    (folder / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(UserError, match="config.json: not valid JSON .*line 1, column 24"):
        hf.import_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: no such file"):
        hf.import_model(folder)


def test_a_config_that_the_family_cannot_express_is_refused():
    for changed in ({"qk_norm": True}, {"sliding_window": 4}, {"rope": RopeConfig(theta=5.0), "qkv_bias": True}):
        with pytest.raises(UserError, match="model_type 'llama' cannot express this model"):
            write_config(dataclasses.replace(CONFIG, **changed))


def test_both_spellings_of_rope_are_read():
    older = {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4}}
    newer = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}}
    base = {name: value for name, value in write_config(CONFIG).items() if name != "rope_theta"}
    first, second = (read_config(base | rope, "config.json").rope for rope in (older, newer))
    assert first == second
    assert (first.theta, first.factor) == (7.0, 4.0)


def test_layer_types_by_layer_rope_and_null_soft_caps_of_gemma_are_read():
    fields = family_cases.config_fields("gemma3", 0) | {"rope_scaling": None, "rope_theta": None}
    fields |= {"rope_local_base_freq": None, "final_logit_softcapping": None}
    fields["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }
    config = read_config(fields, "config.json")
    assert (config.rope.theta, config.rope.factor, config.local_rope) == (1e6, 8.0, RopeConfig(theta=5e3))
    assert config.kinds == (LayerKind.LOCAL, LayerKind.LOCAL, LayerKind.GLOBAL, LayerKind.LOCAL)
    gemma2 = family_cases.config_fields("gemma2", 0)
    assert read_config(gemma2 | {"final_logit_softcapping": None}, "config.json").final_soft_cap is None
    assert read_config(gemma2 | {"final_logit_softcapping": 9}, "config.json").final_soft_cap == 9.0


def raised(error):
    raise error


def without_response(kind, text):
    """An error of a request, which none was made for."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def test_a_folder_that_is_not_there_is_told_apart_from_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # so that whoever asks it says so
    for name in (str(tmp_path / "models" / "bsae"), "./models/bsae/", "models/bsae/deep", "model", "~/none"):
        with pytest.raises(UserError, match="no such folder") as caught:
            hf.resolve(name)
        assert "cannot be either: those are called owner/model" in str(caught.value)
        near = name == "model" or name.strip("/").endswith("bsae")
        assert ("models" in str(caught.value).partition("did you mean ")[2]) == near, name
    with pytest.raises(UserError, match="file: a file, not a folder"):
        hf.resolve("file")
    with pytest.raises(UserError, match=r"no such folder.*; did you mean models/base\?; and to look for .*pip install"):
        hf.resolve("models/bsae")


def test_why_the_hub_gave_no_model_is_said_in_words(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    said = {
        errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder"): "cannot be reached",
        without_response(
            errors.RepositoryNotFoundError, "404 Client Error. (Request ID: x)"
        ): "no such model, or a pri",
        without_response(errors.GatedRepoError, "403 Client Error."): "its owner lets in who has asked",
        errors.HFValidationError("Repo id must use alphanumeric chars\nand more"): "must use alphanumeric chars",
        OSError("No space left on device"): "No space left on device",
    }
    for error, words in said.items():
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, error=error, **_: raised(error))
        with pytest.raises(
            UserError, match=f"owner/model: no such folder.*; and as a name of .* hub: .*{words}"
        ) as caught:
            hf.resolve("owner/model")
        assert "\n" not in str(caught.value) and "snapshot" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    assert hf.resolve("owner/model") == tmp_path
