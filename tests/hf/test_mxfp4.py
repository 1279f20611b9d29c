"""gpt-oss checkpoints: weights packed as MXFP4 come in as an independent decoding has them, and damage is named."""

import json
import pathlib
from collections.abc import Callable

import family_cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.configs import read_config
from jaxtune.hf.inspection import inspect
from jaxtune.hf.layout import stored_layout
from jaxtune.hf.mxfp4 import decode
from jaxtune.hf.tensors import tensors
from jaxtune.hf.text_files import TextFiles
from jaxtune.model.transformer import abstract_params

Tensors = dict[str, np.ndarray]
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families" / "gpt_oss.npz"
QUANTIZED = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
WIDTHS = {"hidden_size": 64, "intermediate_size": 32}


def independent(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values by the data types of another library, one nibble after the other."""
    nibbles = np.stack([blocks % 16, blocks // 16], axis=-1).reshape(*blocks.shape[:-1], 32).astype(np.uint8)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    powers = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return (values * powers[..., None]).reshape(*scales.shape[:-1], -1)


def packed_tensors() -> tuple[Tensors, Tensors]:
    """The tensors of a small gpt-oss model, its experts as MXFP4; and what they stand for, as transformers names it."""
    config = read_config(json.loads(str(np.load(GOLDEN)["config"])) | WIDTHS, "config.json")
    parameters = abstract_params(config)[1]
    shapes = {tensor.name: stored_layout(tensor, parameters)[0] for tensor in tensors(config)}
    rng = np.random.default_rng(0)
    packed, plain = {}, {}
    for name, shape in shapes.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = plain[name] = family_cases.weight(name, shape)
            continue
        experts, inputs, outputs = shape
        blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(120, 130, (experts, outputs, inputs // 32), np.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = np.ascontiguousarray(independent(blocks, scales).swapaxes(1, 2))
    return packed, plain


def write(folder: pathlib.Path, values: Tensors, **more) -> pathlib.Path:
    folder.mkdir()
    fields = json.loads(str(np.load(GOLDEN)["config"])) | WIDTHS | more
    (folder / "config.json").write_text(json.dumps(fields))
    header = {name: (value.dtype, value.shape) for name, value in values.items()}
    safetensors_io.write_file(folder / "model.safetensors", header, values.__getitem__)
    return folder


def test_every_byte_and_scale_decodes_as_another_library_has_it():
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(16, axis=0)
    scales = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode(blocks, scales), independent(blocks, scales))
    exact = scales < 253  # beyond it, 4 and 6 are more than float32 holds
    assert np.isfinite(decode(blocks, np.where(exact, scales, 0).astype(np.uint8))).all()


def test_packed_weights_come_in_and_go_out_as_plain_ones(tmp_path):
    packed, plain = packed_tensors()
    config, params = hf.import_model(write(tmp_path / "packed", packed, **QUANTIZED))
    _, expected = hf.import_model(write(tmp_path / "plain", plain))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert inspect(tmp_path / "packed")["tensors"] == len(plain)
    half = hf.import_model(tmp_path / "packed", dtype=jnp.bfloat16)[1]
    gate = half["layers"]["moe"]["gate"]["kernel"]
    np.testing.assert_array_equal(gate.astype(jnp.float32), params["layers"]["moe"]["gate"]["kernel"])  # exact
    hf.export_model(tmp_path / "out", config, half, TextFiles(eos_token_id=2))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    stored = safetensors_io.find_tensors(tmp_path / "out")
    assert {name: entry.shape for name, entry in stored.items()} == {n: value.shape for n, value in plain.items()}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert stored[name].dtype == "BF16"
    np.testing.assert_array_equal(safetensors_io.read_tensor(stored[name]).astype(np.float32), plain[name])


FIRST = "model.layers.0.mlp.experts.down_proj"
DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a scale that stands for NaN": (
        lambda t: t[f"{FIRST}_scales"].__setitem__((1, 3, 0), 255), rf"'{FIRST}' holds 32 values that are NaN",
    ),
    "a weight beyond float32": (
        lambda t: (t[f"{FIRST}_scales"].__setitem__((0, 0, 0), 254), t[f"{FIRST}_blocks"].fill(0x77)),
        rf"'{FIRST}' holds 32 values that are NaN or infinite",
    ),
    "no scales": (
        lambda t: t.pop(f"{FIRST}_scales"), rf"tensor '{FIRST}' is missing .*\n.*'{FIRST}_blocks' .* is unknown",
    ),
    "scales of another shape": (
        lambda t: t.update({f"{FIRST}_scales": t[f"{FIRST}_scales"][:, :-1]}), "MXFP4 weights are U8",
    ),
    "blocks of another type": (
        lambda t: t.update({f"{FIRST}_blocks": t[f"{FIRST}_blocks"].view(np.int8)}), "_blocks' is I8",
    ),
    "an expert too few": (
        lambda t: t.update({f"{FIRST}{end}": t[f"{FIRST}{end}"][1:] for end in ("_blocks", "_scales")}),
        rf"'{FIRST}' in model.safetensors has shape \[4, 32, 64\], expected \[5, 32, 64\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(damage, tmp_path):
    change, message = DAMAGES[damage]
    packed, _ = packed_tensors()
    change(packed)
    with pytest.raises(UserError, match=message):
        hf.import_model(write(tmp_path / "model", packed, **QUANTIZED))
