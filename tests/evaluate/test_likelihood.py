"""Log-likelihoods of continuations: equal to the plain ones, whatever they share a batch with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import CONFIG, answer, random_model, random_prompts

from jaxtune.errors import UserError
from jaxtune.evaluate import likelihood
from jaxtune.evaluate.decoding import Batching, SamplingConfig
from jaxtune.evaluate.likelihood import cut_left, likelihoods
from jaxtune.model.transformer import apply, apply_logits
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh

CUTS = (4, 1, 30, 10, 31, 1, 5)
"""Where the continuation of each prompt begins; the second prompt has one token, and gets three more."""


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def prompts():
    return random_prompts()


@pytest.fixture(scope="module")
def pairs(prompts):
    texts = [text if len(text) > 1 else text + [3, 1, 4] for text in prompts]
    return [(text[:cut], text[cut:]) for text, cut in zip(texts, CUTS, strict=True)]


@pytest.fixture(scope="module")
def plain(model, pairs):
    """log p and the best token at every position, from all logits of rows padded on the right."""
    graphdef, params = model
    texts = [[*context, *continuation] for context, continuation in pairs]
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    tokens = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    read: Any = jax.jit(
        lambda p: apply_logits(graphdef, p, apply(graphdef, p, tokens, positions, jnp.ones_like(tokens)))
    )
    logits = np.asarray(read(params), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = []
    for i, (context, continuation) in enumerate(pairs):
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        found.append(sum(log_p[i, place, token] for place, token in zip(places, continuation, strict=True)))
    return found


def test_likelihoods_are_those_of_all_logits_in_any_batch(model, pairs, plain, monkeypatch):
    together = likelihoods(model[1], CONFIG, pairs)
    assert [one.total for one in together] == pytest.approx(plain, abs=2e-4)
    assert [one.tokens for one in together] == [len(continuation) for _, continuation in pairs]
    assert together[0].mean == pytest.approx(plain[0] / len(pairs[0][1]), abs=1e-4)
    monkeypatch.setattr(likelihood, "TOKENS", 2 * 96)  # rows of at most two long texts; four of short ones
    few = likelihoods(model[1], CONFIG, pairs, batching=Batching(rows=4))
    assert [one.total for one in few] == pytest.approx(plain, abs=2e-4)


def test_an_answer_is_greedy_where_greedy_generation_gives_it(model, prompts):
    said = answer(model, prompts[:3], SamplingConfig(max_new_tokens=6))
    other = [ids[:-1] + [(ids[-1] + 1) % CONFIG.vocab_size] for ids in said]
    found = likelihoods(model[1], CONFIG, [*zip(prompts, said, strict=False), *zip(prompts, other, strict=False)])
    assert [one.greedy for one in found] == [True] * 3 + [False] * 3


def test_rows_are_split_over_the_devices_of_a_mesh(model, pairs, plain):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    placed = jax.device_put(model[1], sharding.shardings(mesh, model[1], indivisible=Indivisible.REPLICATE))
    found = likelihoods(placed, CONFIG, pairs, batching=Batching(rows=3, mesh=mesh))
    assert [one.total for one in found] == pytest.approx(plain, abs=2e-4)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (([], [1]), "a token before the continuation"),
        (([1], []), "one in it"),
        (([1] * 60, [1] * 62), "has 122 tokens; the model's context is 120"),
        (([1], [CONFIG.vocab_size]), "holds the token 61"),
    ],
)
def test_texts_that_the_model_cannot_weigh_are_refused(model, pair, said):
    with pytest.raises(UserError, match=said):
        likelihoods(model[1], CONFIG, [pair])


def test_a_long_context_is_cut_on_the_left():
    assert cut_left((list(range(200)), [7] * 20), CONFIG) == (list(range(99, 200)), [7] * 20)
    assert cut_left(([1, 2], [3]), CONFIG) == ([1, 2], [3])
