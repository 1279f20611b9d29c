"""Cached, batched generation: equal to plain recomputation, and its sampling, limits and errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import CONFIG, LENGTHS, NEVER, answer, random_model, random_prompts

from jaxtune.errors import UserError
from jaxtune.evaluate import decoding as generation
from jaxtune.evaluate.decoding import SamplingConfig, stream
from jaxtune.model.transformer import apply
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh

FILTER = jax.jit(generation.filter_logits)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def prompts():
    return random_prompts()


def streamed(model, prompt, sampling: SamplingConfig, stop_ids=NEVER) -> list[int]:
    return list(stream(model[0], model[1], CONFIG, prompt, stop_ids=stop_ids, sampling=sampling))


@pytest.fixture(scope="module")
def greedy(model, prompts):
    """Batched greedy answers of 12 tokens that nothing stops."""
    return answer(model, prompts, SamplingConfig(max_new_tokens=12))


def recomputed(model, prompts, steps: int) -> list[list[int]]:
    """Greedy answers without a cache: the whole row is read again for every token."""
    graphdef, params = model
    length = max(map(len, prompts)) + steps
    rows = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt

    @jax.jit
    def logits(tokens):
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        hidden = apply(graphdef, params, tokens, positions, jnp.ones_like(tokens))
        return hidden @ params["embed"]["embedding"].T

    ends = np.array([len(prompt) for prompt in prompts])
    for _ in range(steps):
        best = np.asarray(logits(rows)).argmax(-1)
        rows[np.arange(len(rows)), ends] = best[np.arange(len(rows)), ends - 1]
        ends += 1
    return [row[end - steps : end].tolist() for row, end in zip(rows, ends, strict=True)]


def test_cached_batches_equal_recomputation(model, prompts, greedy):
    assert greedy == recomputed(model, prompts, 12)
    assert len({tuple(row) for row in greedy}) == len(prompts), "the toy model should not give one answer to all"


def test_one_by_one_equals_batched(model, prompts, greedy):
    sampling = SamplingConfig(max_new_tokens=12)
    assert answer(model, prompts, sampling, rows=1) == greedy


def test_an_answer_ends_with_its_stop_token(model, prompts, greedy):
    stops = {greedy[0][3], greedy[1][0]}
    answers = answer(model, prompts, SamplingConfig(max_new_tokens=12), stops)
    for short, whole in zip(answers, greedy, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in stops), len(whole))
        assert short == whole[:end]
    assert len(answers[1]) == 1 < len(answers[0])


def test_an_answer_ends_where_the_context_ends(model, prompts):
    answers = answer(model, prompts, SamplingConfig(max_new_tokens=100))
    assert [len(row) for row in answers] == [min(100, CONFIG.max_seq_len - length) for length in LENGTHS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_gives_the_same_tokens(model, prompts, temperature):
    sampling = SamplingConfig(max_new_tokens=12, temperature=temperature)
    whole = answer(model, prompts, sampling)[0]
    assert streamed(model, prompts[0], sampling) == whole
    stops = {whole[4]}
    short = streamed(model, prompts[0], sampling, stops)
    assert short == whole[: whole.index(whole[4]) + 1]


def test_no_prompts_give_no_answers(model):
    assert answer(model, [], SamplingConfig()) == []


def test_prompt_and_answer_lengths_share_a_program(model, prompts, greedy):
    program: Any = generation._jitted(generation._answer, jnp.dtype(jnp.float32))
    before = program._cache_size()
    for new_tokens, chosen in ((3, prompts), (9, prompts[:5]), (1, prompts[::-1])):
        sampling = SamplingConfig(max_new_tokens=new_tokens)
        answer(model, chosen, sampling, {1, 2, 3}, rows=8)
    assert program._cache_size() == before


def test_prompts_of_like_length_share_a_batch_and_batches_of_like_length_a_program(model, monkeypatch):
    """So a long prompt makes few others wait, and programs are counted by cache sizes, not by batches."""
    lengths = [3, 150, 5, 120, 4, 130, 90, 6, 7]
    prompts = [[7] * length for length in lengths]
    seen = []

    def pretend(program, params, rows, *_):
        seen.append((rows.lengths[rows.limits > 0].tolist(), program))
        return np.repeat(rows.lengths[:, None], 4, axis=1), np.full(len(rows.lengths), 1)

    monkeypatch.setattr(generation, "_jitted", lambda function, dtype: pretend)
    roomy = dataclasses.replace(CONFIG, max_seq_len=256)
    found = generation.generate(
        model[0], model[1], roomy, prompts, stop_ids=NEVER, sampling=SamplingConfig(max_new_tokens=8),
        batching=generation.Batching(rows=2),
    )  # fmt: skip
    assert [batch for batch, _ in seen] == [[3, 4], [5, 6], [7, 90], [120, 130], [150]]
    assert [program.slots for _, program in seen] == [128, 128, 128, 256, 256]
    assert len({program for _, program in seen}) == 2
    assert found == [[length] for length in lengths]  # each answer where its prompt stands


def test_a_batch_ends_with_its_last_answer_and_not_at_the_limit(model, prompts, greedy, monkeypatch):
    steps: list[int] = []
    extend = generation._extend

    def counted(*given: Any) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return extend(*given)

    monkeypatch.setattr(generation, "_extend", counted)
    traced_anew = lambda function, dtype: jax.jit(lambda *given: function(*given), static_argnums=0)
    monkeypatch.setattr(generation, "_jitted", traced_anew)
    stops = {row[k] for row, k in zip(greedy, (2, 1, 3), strict=False)}
    found = answer(model, prompts[:3], SamplingConfig(max_new_tokens=12), stops)
    jax.effects_barrier()
    assert len(steps) == max(map(len, found)) - 1 < 4  # the first token comes with the prompt


def test_a_draw_does_not_depend_on_its_neighbours(model, prompts):
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=1)
    together = answer(model, prompts, sampling)
    assert answer(model, prompts[::-1], sampling) == together[::-1]
    assert answer(model, prompts[2:], sampling) == together[2:]


def test_seeds_and_repeated_prompts_draw_differently_and_repeat(model, prompts):
    draw = lambda seed: answer(
        model, [prompts[0]] * 8,
        SamplingConfig(max_new_tokens=12, temperature=1.0, seed=seed),
    )  # fmt: skip
    first, again, other = draw(1), draw(1), draw(2)
    assert first == again
    assert len({tuple(row) for row in first + other}) == 16


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda narrow: next(iter(narrow))
)
def test_the_narrowest_filters_are_greedy(model, prompts, greedy, narrow):
    sampling = SamplingConfig(max_new_tokens=12, temperature=0.7, **narrow)
    assert answer(model, prompts, sampling) == greedy


def test_the_widest_filters_change_nothing(model, prompts):
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.3, "seed": 5}
    plain = SamplingConfig(**settings)
    wide = SamplingConfig(**settings, top_k=10**6, top_p=1.0, min_p=0.0)
    answers = [answer(model, prompts, sampling) for sampling in (plain, wide)]
    assert answers[0] == answers[1]


def filtered_slowly(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens left by one filter after the other, each on the probabilities that the one before left."""
    probabilities = np.exp(logits - logits.max())
    kept = np.argsort(-probabilities)[:top_k]
    nucleus, mass = [], 0.0
    for token in kept:
        if mass < top_p:
            nucleus.append(int(token))
        mass += probabilities[token] / probabilities[kept].sum()
    return {token for token in nucleus if probabilities[token] >= min_p * probabilities.max()}


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(5, 1.0, 0.0), (61, 0.6, 0.0), (61, 1.0, 0.2), (8, 0.7, 0.0), (20, 0.9, 0.3)]
)
def test_filters_keep_the_tokens_of_the_plain_definition(top_k, top_p, min_p):
    logits = 2 * np.random.default_rng(0).standard_normal((6, 61)).astype(np.float32)
    kept = FILTER(logits, *(np.asarray(x, t) for x, t in ((top_k, np.int32), (top_p, np.float32), (min_p, np.float32))))
    for ours, row in zip(np.asarray(kept), logits, strict=True):
        assert set(np.flatnonzero(np.isfinite(ours)).tolist()) == filtered_slowly(row, top_k, top_p, min_p)
        np.testing.assert_array_equal(ours[np.isfinite(ours)], row[np.isfinite(ours)])


def test_draws_follow_the_tempered_probabilities(model):
    """First tokens drawn from one prompt, against the probabilities of its logits: a chi-square test of fixed seed."""
    graphdef, params = model
    prompt, draws, temperature = [7, 8, 9], 400, 2.0
    sampling = SamplingConfig(max_new_tokens=1, temperature=temperature)
    drawn = answer(model, [prompt] * draws, sampling, rows=8)
    tokens, positions = jnp.asarray([prompt]), jnp.arange(3)[None]
    hidden = apply(graphdef, params, tokens, positions, jnp.ones_like(tokens))
    expected = draws * np.asarray(jax.nn.softmax(hidden[0, -1] @ params["embed"]["embedding"].T / temperature))
    counts = np.bincount([row[0] for row in drawn], minlength=CONFIG.vocab_size)
    assert ((counts - expected) ** 2 / expected).sum() < CONFIG.vocab_size + 5 * np.sqrt(2 * CONFIG.vocab_size)


def test_rows_and_weights_split_over_devices_give_the_same(model, prompts, greedy):
    graphdef, params = model
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    where = sharding.shardings(mesh, params, indivisible=Indivisible.REPLICATE)
    placed = jax.device_put(params, where)
    answers = answer((graphdef, placed), prompts, SamplingConfig(max_new_tokens=12), mesh=mesh)
    assert answers == greedy


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 120, "prompt 2 has 120 tokens; the model's context is 120 tokens, answer included"),
        ([], "prompt 2 is empty"),
        ([3, 61], "prompt 2 holds token ids 3 to 61; the model knows 0 to 60"),
        ([-1], "prompt 2 holds token ids -1 to -1"),
    ],
    ids=["long", "empty", "unknown", "negative"],
)
def test_prompts_that_cannot_be_continued_are_refused(model, prompt, message):
    with pytest.raises(UserError, match=message):
        answer(model, [[1], prompt], SamplingConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-300}, r"temperature is 1e-300; it must be 0 \(greedy\) or in \[1e-06, 1e\+06\]"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"temperature": 1.0, "min_p": 1.5}, r"min_p is 1.5; it must be in \[0, 1\]"),
        ({"top_p": 0.9, "top_k": 3}, "top_k, top_p has no effect at temperature 0"),
    ],
)
def test_impossible_sampling_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**settings)
