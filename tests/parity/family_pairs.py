"""A small model of transformers and the same weights imported here, and how far apart the two are."""

import dataclasses
import functools
import json
import pathlib

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxtune.hf import folder as hf
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.model import transformer as model
from jaxtune.model.cache import init_cache
from jaxtune.model.settings import ModelConfig
from jaxtune.step import losses

Rows = tuple[jax.Array, jax.Array, jax.Array]
"""Tokens, positions and segment ids [rows, seq]."""


@dataclasses.dataclass
class Pair:
    """The model of transformers, and the same weights imported here."""

    network: torch.nn.Module
    config: ModelConfig
    params: dict

    @functools.cached_property
    def sequences(self) -> list[np.ndarray]:
        return family_cases.sequences(self.config.vocab_size)

    @functools.cached_property
    def expected(self) -> list[np.ndarray]:
        return torch_logits(self.network, self.sequences)


def make_pair(case: str, seed: int, folder: pathlib.Path) -> Pair:
    fields = family_cases.config_fields(case, seed)
    shapes = saved_shapes(torch_model(fields), folder / "shapes")
    saved = json.loads((folder / "shapes" / "config.json").read_text())
    family_cases.write_checkpoint(folder / "model", saved, shapes)
    return Pair(load(folder / "model"), *hf.import_model(folder / "model"))


def torch_model(fields: dict):
    """A model of transformers; the names and shapes of its tensors are what counts."""
    fields = dict(fields)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def saved_shapes(network, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    network.save_pretrained(folder)
    return {name: entry.shape for name, entry in safetensors_io.find_tensors(folder).items()}


def load(folder: pathlib.Path):
    """A saved model, computed by plain torch operations."""
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


# ---------------------------------------------------------------------------------------------------------------- rows


def torch_padded(sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of a padded batch, and labels that are -100 under padding."""
    length = max(len(s) for s in sequences)
    pad = lambda value: torch.tensor(
        np.stack([np.pad(s, (0, length - len(s)), constant_values=value) for s in sequences])
    )
    return pad(0), pad(-100)


def padded(sequences: list[np.ndarray]) -> Rows:
    length = max(len(s) for s in sequences) + 3
    tokens = jnp.stack([jnp.pad(jnp.asarray(s), (0, length - len(s))) for s in sequences])
    segments = jnp.stack([(jnp.arange(length) < len(s)).astype(jnp.int32) for s in sequences])
    return tokens, jnp.tile(jnp.arange(length), (len(sequences), 1)), segments


def packed(sequences: list[np.ndarray]) -> Rows:
    """One row with all sequences and some padding."""
    pad = 4
    tokens = jnp.pad(jnp.concatenate(sequences), (0, pad))[None]
    positions = jnp.pad(jnp.concatenate([jnp.arange(len(s)) for s in sequences]), (0, pad))[None]
    ids = [jnp.full(len(s), i + 1, jnp.int32) for i, s in enumerate(sequences)]
    return tokens, positions, jnp.pad(jnp.concatenate(ids), (0, pad))[None]


# ------------------------------------------------------------------------------------------------- logits, loss, slopes


def batches_of(network, sequences: list[np.ndarray]) -> list[list[np.ndarray]]:
    """What transformers reads at once: all, or with a long rope each alone.

    There the longest sequence of a batch picks its frequencies for all; here each sequence's own length does.
    """
    parameters = getattr(network.config, "rope_parameters", None) or {}
    return [[one] for one in sequences] if parameters.get("rope_type") == "longrope" else [sequences]


def torch_logits(network, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of padded batches, cut to each sequence's length."""
    found = []
    for batch in batches_of(network, sequences):
        tokens, labels = torch_padded(batch)
        with torch.no_grad():
            logits = network(tokens, attention_mask=(labels >= 0).long()).logits.numpy()
        found += [row[: len(s)] for row, s in zip(logits, batch, strict=True)]
    return found


def torch_loss(network, sequences: list[np.ndarray]) -> torch.Tensor:
    """The loss that transformers computes for padded batches whose padding carries no label, a mean over tokens."""
    total = torch.zeros(())
    for batch in batches_of(network, sequences):
        tokens, labels = torch_padded(batch)
        loss = network(tokens, attention_mask=(labels >= 0).long(), labels=labels).loss
        total = total + loss * sum(len(s) - 1 for s in batch)
    return total / sum(len(s) - 1 for s in sequences)


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, rows: Rows):
    graphdef, _ = model.abstract_params(config)
    return model.apply_logits(graphdef, params, model.apply(graphdef, params, *rows))


@functools.partial(jax.jit, static_argnums=0)
def our_loss(config, params, rows: Rows):
    """The training loss of rows whose every token counts, in nats per token."""
    tokens, positions, segments = rows
    graphdef, _ = model.abstract_params(config)
    hidden = model.apply(graphdef, params, tokens, positions, segments)
    targets, weights = losses.shift(tokens, jnp.ones(tokens.shape), segments)
    sums = losses.per_task_sums(
        hidden,
        params["embed"]["embedding"] if config.tie_embeddings else params["head"]["kernel"],
        targets,
        weights,
        jnp.zeros_like(tokens),
        num_tasks=1,
        spec=losses.LossSpec(
            head=losses.HeadSpec(vocab_axis=0 if config.tie_embeddings else 1, soft_cap=config.final_soft_cap)
        ),
    )
    return sums.objective / sums.weight.sum()


def difference(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def padded_difference(pair: Pair) -> float:
    """Largest difference of logits, each sequence in a row of its own."""
    ours = our_logits(pair.config, pair.params, padded(pair.sequences))
    return max(difference(row[: len(theirs)], theirs) for row, theirs in zip(ours, pair.expected, strict=True))


def packed_difference(pair: Pair) -> float:
    """Both sequences in one row."""
    ours = our_logits(pair.config, pair.params, packed(pair.sequences))[0]
    theirs = np.concatenate(pair.expected)
    return difference(ours[: len(theirs)], theirs)


def cached_difference(pair: Pair, tail: int = 5, slots: int = 32) -> float:
    """Prompts into the cache as one batch, then `tail` tokens one by one.

    Sequences of a long rope stay within its original context: keys cached before its end do not turn again.
    """
    sequences, expected = pair.sequences, pair.expected
    if pair.config.rope.long_factor is not None:
        sequences = [s[: pair.config.rope.original_max_len] for s in sequences]
        expected = torch_logits(pair.network, sequences)
    graphdef, _ = model.abstract_params(pair.config)
    prompts = [s[:-tail] for s in sequences]
    step = jax.jit(functools.partial(model.apply_cached, graphdef))
    logits = functools.partial(model.apply_logits, graphdef, pair.params)
    hidden, cache = step(pair.params, *padded(prompts), init_cache(pair.config, len(prompts), slots))
    first = logits(hidden)
    off = [difference(first[i, : len(p)], expected[i][: len(p)]) for i, p in enumerate(prompts)]
    for offset in range(tail):
        at = [len(prompt) + offset for prompt in prompts]
        tokens = jnp.asarray([[s[i]] for s, i in zip(sequences, at, strict=True)])
        hidden, cache = step(pair.params, tokens, cache.lengths[:, None], jnp.ones((len(at), 1), jnp.int32), cache)
        off.append(difference(logits(hidden)[:, 0], np.stack([e[i] for e, i in zip(expected, at, strict=True)])))
    return max(off)


def loss_difference(pair: Pair) -> float:
    """Of the training loss, padded and packed, from that of transformers."""
    with torch.no_grad():
        theirs = torch_loss(pair.network, pair.sequences)
    ours = [our_loss(pair.config, pair.params, make(pair.sequences)) for make in (padded, packed)]
    return max(difference(loss, theirs) for loss in ours)


def gradients(pair: Pair, folder: pathlib.Path) -> tuple[dict, dict]:
    """Of the loss over both sequences: ours in one row, and those of transformers; changes its weights."""
    network = pair.network
    network.zero_grad()
    torch_loss(network, pair.sequences).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    network.save_pretrained(folder)
    return our_gradients(pair.config, pair.params, packed(pair.sequences)), hf.import_model(folder)[1]


our_gradients = jax.jit(jax.grad(our_loss, argnums=1), static_argnums=0)


def moved_by_rounding(pair: Pair, gradient: dict) -> dict:
    """How far each gradient moves, at most, when every weight moves by half a unit in the last place or stays."""
    random, worst = np.random.default_rng(0), jax.tree.map(lambda _: 0.0, gradient)
    for _ in range(4):
        step = lambda x: np.asarray(x) * (1 + np.float32(6e-8) * random.choice([-1, 0, 1], size=x.shape)).astype("f4")
        other = our_gradients(pair.config, jax.tree.map(step, pair.params), packed(pair.sequences))
        worst = jax.tree.map(lambda far, a, b: max(far, difference(a, b)), worst, other, gradient)
    return worst
