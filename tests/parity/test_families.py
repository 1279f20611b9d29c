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

from jaxtune import hf, losses, model, safetensors_io

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SEEDS = (0, 1)
TOLERANCE = 1e-4


def torch_model(fields: dict):
    """The model of transformers with the values of `family_cases.weight`, under the names that it saves."""
    fields = dict(fields)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def saved_shapes(network, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    network.save_pretrained(folder)
    return {name: entry.shape for name, entry in safetensors_io.find_tensors(folder).items()}


@dataclasses.dataclass
class Pair:
    """The model of transformers, and the same weights imported here."""

    network: torch.nn.Module
    config: model.ModelConfig
    params: dict

    @functools.cached_property
    def sequences(self) -> list[np.ndarray]:
        return family_cases.sequences(self.config.vocab_size)

    @functools.cached_property
    def expected(self) -> list[np.ndarray]:
        return torch_logits(self.network, self.sequences)

    def logits(self, tokens, positions, segments):
        return jitted(self.config, self.params, tokens, positions, segments)


def logits_of(config, params, tokens, positions, segments):
    graphdef, _ = model.abstract_params(config)
    return model.apply_logits(graphdef, params, model.apply(graphdef, params, tokens, positions, segments))


jitted = jax.jit(logits_of, static_argnums=0)


def make_pair(case: str, seed: int, folder: pathlib.Path) -> Pair:
    fields = family_cases.config_fields(case, seed)
    shapes = saved_shapes(torch_model(fields), folder / "shapes")
    saved = json.loads((folder / "shapes" / "config.json").read_text())
    family_cases.write_checkpoint(folder / "model", saved, shapes)
    return Pair(load(folder / "model"), *hf.import_model(folder / "model"))


def load(folder: pathlib.Path):
    """A saved model, computed by plain torch operations."""
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture(params=[f"{case}-{seed}" for case in family_cases.CASES for seed in SEEDS], scope="module")
def pair(request, tmp_path_factory):
    case, seed = request.param.rsplit("-", 1)
    return make_pair(case, int(seed), tmp_path_factory.mktemp(request.param))


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


def mean_loss(config, params, batch):
    """The training loss of rows whose every token counts, in nats per token."""
    tokens, positions, segments = batch
    graphdef, _ = model.abstract_params(config)
    hidden = model.apply(graphdef, params, tokens, positions, segments)
    targets, weights = losses.shift(tokens, jnp.ones(tokens.shape), segments)
    head = params["embed"]["embedding"] if config.tie_embeddings else params["head"]["kernel"]
    sums = losses.per_task_sums(
        hidden, head, targets, weights, jnp.zeros_like(tokens), num_tasks=1,
        vocab_axis=0 if config.tie_embeddings else 1, soft_cap=config.final_soft_cap,
    )  # fmt: skip
    return sums.objective / sums.weight.sum()


def torch_loss(network, sequences: list[np.ndarray]):
    """The loss that transformers computes for a padded batch whose padding carries no label."""
    length = max(len(s) for s in sequences)
    tokens = torch.tensor(np.stack([np.pad(s, (0, length - len(s))) for s in sequences]))
    labels = torch.tensor(np.stack([np.pad(s, (0, length - len(s)), constant_values=-100) for s in sequences]))
    return network(tokens, attention_mask=(labels >= 0).long(), labels=labels).loss


def test_padded_logits_equal_transformers(pair):
    ours = pair.logits(*padded(pair.sequences))
    for row, expected in zip(ours, pair.expected, strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=TOLERANCE, rtol=0)


def test_the_training_loss_equals_that_of_transformers_padded_and_packed(pair):
    with torch.no_grad():
        expected = torch_loss(pair.network, pair.sequences).item()
    for batch in (padded(pair.sequences), packed(pair.sequences)):
        assert float(jax.jit(mean_loss, static_argnums=0)(pair.config, pair.params, batch)) == pytest.approx(
            expected, abs=1e-5
        )


def test_packed_logits_equal_those_of_the_padded_batch(pair):
    """Both sequences in one row. (The long rope depends on the longest sequence of a batch, in transformers too.)"""
    ours = pair.logits(*packed(pair.sequences))[0]
    start = 0
    for expected in pair.expected:
        np.testing.assert_allclose(ours[start : start + len(expected)], expected, atol=TOLERANCE, rtol=0)
        start += len(expected)


def test_cached_logits_equal_transformers(pair):
    """Sequences of a long rope stay within its original context: keys cached before its end do not turn again."""
    sequences, expected = pair.sequences, pair.expected
    if pair.config.rope.long_factor is not None:
        sequences = [s[: pair.config.rope.original_max_len] for s in sequences]
        expected = torch_logits(pair.network, sequences)
    graphdef, _ = model.abstract_params(pair.config)
    prompts = [s[:-5] for s in sequences]
    cache = model.init_cache(pair.config, len(prompts), 32)
    step = jax.jit(functools.partial(model.apply_cached, graphdef))
    hidden, cache = step(pair.params, *padded(prompts), cache)
    for i, prompt in enumerate(prompts):
        ours = model.apply_logits(graphdef, pair.params, hidden)[i, : len(prompt)]
        np.testing.assert_allclose(ours, expected[i][: len(prompt)], atol=TOLERANCE, rtol=0)
    for offset in range(5):
        at = [len(prompt) + offset for prompt in prompts]
        tokens = jnp.asarray([[s[i]] for s, i in zip(sequences, at, strict=True)])
        new = jnp.ones((len(at), 1), jnp.int32)
        hidden, cache = step(pair.params, tokens, cache.lengths[:, None], new, cache)
        ours = model.apply_logits(graphdef, pair.params, hidden)[:, 0]
        wanted = np.stack([rows[i] for rows, i in zip(expected, at, strict=True)])
        np.testing.assert_allclose(ours, wanted, atol=TOLERANCE, rtol=0)


def test_import_export_import_keeps_every_tensor_and_transformers_loads_it(pair, tmp_path):
    out = tmp_path / "out"
    hf.export_model(out, pair.config, pair.params, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    config, params = hf.import_model(out)
    assert dataclasses.replace(config, layer_kinds=config.kinds) == dataclasses.replace(
        pair.config, layer_kinds=pair.config.kinds
    )
    jax.tree.map(np.testing.assert_array_equal, pair.params, params)
    loaded = load(out)
    for ours, theirs in zip(torch_logits(loaded, pair.sequences), pair.expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma2", "phi3", "mixtral"])
def test_gradients_equal_transformers(case, tmp_path):
    """Of the training loss over both sequences in one row."""
    pair = make_pair(case, 0, tmp_path)
    network = pair.network
    network.zero_grad()
    torch_loss(network, pair.sequences).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    network.save_pretrained(tmp_path / "gradients")
    _, expected = hf.import_model(tmp_path / "gradients")
    gradient = jax.jit(jax.grad(mean_loss, argnums=1), static_argnums=0)
    ours = gradient(pair.config, pair.params, packed(pair.sequences))
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-3, err_msg=jax.tree_util.keystr(path))
