"""Every model family against transformers: logits, loss, gradients, and folders that go both ways."""

import dataclasses

import family_cases
import jax
import numpy as np
import pytest

from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles

pytest.importorskip("torch")
pytest.importorskip("transformers")

pairs = pytest.importorskip("family_pairs")

pytestmark = pytest.mark.parity

SEEDS = (0, 1)


@pytest.fixture(params=[f"{case}-{seed}" for case in family_cases.CASES for seed in SEEDS], scope="module")
def pair(request, tmp_path_factory):
    case, seed = request.param.rsplit("-", 1)
    return pairs.make_pair(case, int(seed), tmp_path_factory.mktemp(request.param))


def test_padded_logits_equal_transformers(pair):
    assert pairs.padded_difference(pair) < family_cases.tolerance(pair.config)


def test_packed_logits_equal_those_of_the_padded_batch(pair):
    assert pairs.packed_difference(pair) < family_cases.tolerance(pair.config)


def test_cached_logits_equal_transformers(pair):
    assert pairs.cached_difference(pair) < family_cases.tolerance(pair.config)


def test_the_training_loss_equals_that_of_transformers_padded_and_packed(pair):
    assert pairs.loss_difference(pair) < 1e-5


def test_import_export_import_keeps_every_tensor_and_transformers_loads_it(pair, tmp_path):
    out = tmp_path / "out"
    hf.export_model(out, pair.config, pair.params, TextFiles(eos_token_id=2, bos_token_id=1, pad_token_id=0))
    config, params = hf.import_model(out)
    assert dataclasses.replace(config, layer_kinds=config.kinds) == dataclasses.replace(
        pair.config, layer_kinds=pair.config.kinds
    )
    jax.tree.map(np.testing.assert_array_equal, pair.params, params)
    loaded = pairs.load(out)
    for ours, theirs in zip(pairs.torch_logits(loaded, pair.sequences), pair.expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("case", ["qwen3_next", "qwen3_5"])
def test_rows_of_several_chunks_of_linear_attention_equal_transformers(case, tmp_path):
    """Rows longer than a chunk, and no multiple of it: padded, packed, and after the state of a prompt.

    The more tokens, the nearer to zero is the least that a head reads, whose rounding its norm magnifies.
    """
    pair = pairs.make_pair(case, 1, tmp_path)
    rng = np.random.default_rng(0)
    pair.sequences = [rng.integers(3, pair.config.vocab_size, length) for length in (150, 71)]
    found = pairs.padded_difference(pair), pairs.packed_difference(pair), pairs.cached_difference(pair, slots=160)
    assert max(found) < 4 * family_cases.tolerance(pair.config), found


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma2", "phi3", "mixtral", "qwen3_next", "qwen3_5"])
def test_gradients_equal_transformers(case, tmp_path):
    """Of the training loss over both sequences in one row.

    Where a head of linear attention reads next to nothing, its norm magnifies rounding. There the gradients may differ
    by twice what ours moves when the weights move by their own rounding: both round.
    """
    pair = pairs.make_pair(case, 0, tmp_path)
    ours, expected = pairs.gradients(pair, tmp_path / "gradients")
    alone = pair.config.delta is None
    moved = jax.tree.map(lambda _: 0.0, ours) if alone else pairs.moved_by_rounding(pair, ours)
    for (path, mine), theirs, far in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), jax.tree.leaves(moved), strict=True
    ):
        np.testing.assert_allclose(
            mine, theirs, atol=max(1e-5, 2 * far), rtol=1e-3 if alone else 0, err_msg=jax.tree_util.keystr(path)
        )
