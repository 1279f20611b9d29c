"""Every model family against transformers: logits, loss, gradients, and folders that go both ways."""

import dataclasses
import functools
import json
import pathlib

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtune import hf, model, safetensors_io

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SEEDS = (0, 1, 2)
TOLERANCE = 1e-4


def torch_model(fields: dict):
    """The model of transformers with the values of `family_cases.weight`, under the names that it saves."""
    fields = dict(fields)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()


def saved_shapes(network, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    network.save_pretrained(folder)
    return {name: entry.shape for name, entry in safetensors_io.find_tensors(folder).items()}


@functools.cache
def both(case: str, seed: int, folder: pathlib.Path):
    """The model of transformers, and the same weights imported here."""
    fields = family_cases.config_fields(case, seed)
    shapes = saved_shapes(torch_model(fields), folder / "shapes")
    saved = json.loads((folder / "shapes" / "config.json").read_text())
    family_cases.write_checkpoint(folder / "model", saved, shapes)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager", experts_implementation="eager").eval()
    config, params = hf.import_model(folder / "model")
    return network, config, params


@pytest.fixture(params=[f"{case}-{seed}" for case in family_cases.CASES for seed in SEEDS], scope="module")
def pair(request, tmp_path_factory):
    case, seed = request.param.rsplit("-", 1)
    return both(case, int(seed), tmp_path_factory.mktemp(request.param))


def torch_logits(network, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of a padded batch, cut to each sequence's length."""
    length = max(len(s) for s in sequences)
    tokens = torch.tensor(np.stack([np.pad(s, (0, length - len(s))) for s in sequences]))
    mask = torch.tensor(np.stack([np.arange(length) < len(s) for s in sequences]).astype(np.int64))
    with torch.no_grad():
        logits = network(tokens, attention_mask=mask).logits.numpy()
    return [row[: len(s)] for row, s in zip(logits, sequences, strict=True)]


def padded(sequences: list[np.ndarray]):
    length = max(len(s) for s in sequences) + 3
    tokens = jnp.stack([jnp.pad(jnp.asarray(s), (0, length - len(s))) for s in sequences])
    segments = jnp.stack([(jnp.arange(length) < len(s)).astype(jnp.int32) for s in sequences])
    return tokens, jnp.tile(jnp.arange(length), (len(sequences), 1)), segments


def packed(sequences: list[np.ndarray]):
    """One row with all sequences and some padding."""
    pad = 4
    tokens = jnp.pad(jnp.concatenate(sequences), (0, pad))[None]
    positions = jnp.pad(jnp.concatenate([jnp.arange(len(s)) for s in sequences]), (0, pad))[None]
    ids = [jnp.full(len(s), i + 1, jnp.int32) for i, s in enumerate(sequences)]
    return tokens, positions, jnp.pad(jnp.concatenate(ids), (0, pad))[None]


def logits_of(config, params, tokens, positions, segments):
    graphdef, _ = model.abstract_params(config)
    return model.apply_logits(graphdef, params, model.apply(graphdef, params, tokens, positions, segments))


def test_padded_logits_equal_transformers(pair):
    network, config, params = pair
    sequences = family_cases.sequences(config.vocab_size)
    ours = logits_of(config, params, *padded(sequences))
    for row, expected in zip(ours, torch_logits(network, sequences), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=TOLERANCE, rtol=0)


def test_packed_logits_equal_those_of_single_sequences(pair):
    network, config, params = pair
    sequences = family_cases.sequences(config.vocab_size)
    ours = logits_of(config, params, *packed(sequences))[0]
    start = 0
    # The long rope of a batch depends on its longest sequence, in transformers too: so compare with the padded batch.
    for expected in torch_logits(network, sequences):
        np.testing.assert_allclose(ours[start : start + len(expected)], expected, atol=TOLERANCE, rtol=0)
        start += len(expected)


def test_cached_logits_equal_transformers(pair):
    network, config, params = pair
    if config.rope.long_factor is not None:
        pytest.skip("the long rope changes the keys of earlier tokens once a sequence grows long; see the last test")
    graphdef, _ = model.abstract_params(config)
    sequences = family_cases.sequences(config.vocab_size)
    prompts = [s[:-5] for s in sequences]
    cache = model.init_cache(config, len(sequences), 32)
    step = jax.jit(functools.partial(model.apply_cached, graphdef))
    hidden, cache = step(params, *padded(prompts), cache)
    expected = torch_logits(network, sequences)
    for i, prompt in enumerate(prompts):
        ours = model.apply_logits(graphdef, params, hidden)[i, : len(prompt)]
        np.testing.assert_allclose(ours, expected[i][: len(prompt)], atol=TOLERANCE, rtol=0)
    for offset in range(5):
        at = [len(prompt) + offset for prompt in prompts]
        tokens = jnp.asarray([[s[i]] for s, i in zip(sequences, at, strict=True)])
        hidden, cache = step(params, tokens, cache.lengths[:, None], jnp.ones((len(at), 1), jnp.int32), cache)
        ours = model.apply_logits(graphdef, params, hidden)[:, 0]
        wanted = np.stack([rows[i] for rows, i in zip(expected, at, strict=True)])
        np.testing.assert_allclose(ours, wanted, atol=TOLERANCE, rtol=0)


def test_loss_equals_transformers(pair):
    network, config, params = pair
    sequence = family_cases.sequences(config.vocab_size)[0]
    tokens = torch.tensor(sequence)[None]
    with torch.no_grad():
        expected = network(tokens, labels=tokens).loss.item()
    logits = logits_of(config, params, *packed([sequence]))[0, : len(sequence)]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), jnp.asarray(sequence[1:])[:, None], axis=1)
    assert float(-chosen.mean()) == pytest.approx(expected, abs=1e-5)


def test_import_export_import_keeps_every_tensor_and_transformers_loads_it(pair, tmp_path):
    network, config, params = pair
    hf.export_model(tmp_path / "out", config, params, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    again_config, again = hf.import_model(tmp_path / "out")
    assert dataclasses.replace(again_config, layer_kinds=again_config.kinds) == dataclasses.replace(
        config, layer_kinds=config.kinds
    )
    jax.tree.map(np.testing.assert_array_equal, params, again)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager", experts_implementation="eager").eval()
    sequences = family_cases.sequences(config.vocab_size)
    for ours, theirs in zip(torch_logits(loaded, sequences), torch_logits(network, sequences), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("case", ["qwen3", "gemma2", "mixtral"])
def test_gradients_equal_transformers(case, tmp_path):
    network, config, params = both(case, 0, tmp_path)
    sequence = family_cases.sequences(config.vocab_size)[0]
    tokens = torch.tensor(sequence)[None]
    network.zero_grad()
    network(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    network.save_pretrained(tmp_path / "gradients")
    _, expected = hf.import_model(tmp_path / "gradients")

    def loss(params):
        logits = logits_of(config, params, *packed([sequence]))[0, : len(sequence)]
        logs = jax.nn.log_softmax(logits[:-1])
        return -jnp.take_along_axis(logs, jnp.asarray(sequence[1:])[:, None], axis=1).mean()

    ours = jax.jit(jax.grad(loss))(params)
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-3, err_msg=jax.tree_util.keystr(path))
