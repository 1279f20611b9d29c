"""Rotary tables whose frequencies depend on an example's length."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.model import rope, transformer
from jaxtune.model.attention.core import Backend
from jaxtune.model.cache import init_cache
from jaxtune.model.rope import RopeConfig, RopeScaling
from jaxtune.model.settings import ModelConfig

ORIGINAL = 8
LONGROPE = RopeConfig(
    scaling=RopeScaling.LONGROPE, original_max_len=ORIGINAL, factor=4.0, short_factor=(1.0, 1.5), long_factor=(3.0, 9.0)
)
CONFIG = ModelConfig(
    vocab_size=20, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8, max_seq_len=32,
    rope=LONGROPE, attention=Backend.REFERENCE,
)  # fmt: skip


@hypothesis.given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 4))
@hypothesis.settings(max_examples=30, deadline=None)
def test_every_token_knows_the_length_of_its_own_example(lengths, padding):
    width = 34
    positions = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(width - sum(lengths), int)])
    segments = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, width - sum(lengths)])
    found = rope.example_lengths(jnp.asarray(positions[None]), jnp.asarray(segments[None]))[0]
    assert list(found[: sum(lengths)]) == [n for n in lengths for _ in range(n)]


@pytest.mark.parametrize("scaling", [s for s in RopeScaling if s is not RopeScaling.LONGROPE])
def test_other_scalings_know_no_length(scaling):
    given = {"factor": 2.0, "original_max_len": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = RopeConfig(scaling=scaling, **given)
    assert not rope.depends_on_length(config)
    short, long = (rope.tables(config, 4, jnp.asarray([[3]]), jnp.asarray([[n]])) for n in (4, 400))
    np.testing.assert_array_equal(short[0], long[0])


@functools.cache
def model():
    graphdef, params = transformer.init_params(CONFIG, 0)
    params = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 2 else leaf, params)  # so that positions matter
    apply = jax.jit(functools.partial(transformer.apply, graphdef))
    cached = jax.jit(functools.partial(transformer.apply_cached, graphdef))
    return params, apply, cached


def rows(*packed: list[np.ndarray], width: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, positions, segments = (np.zeros((2, width), np.int32) for _ in range(3))
    for row, examples in enumerate(packed):
        place = 0
        for number, example in enumerate(examples, 1):
            here = slice(place, place + len(example))
            tokens[row, here], positions[row, here], segments[row, here] = example, np.arange(len(example)), number
            place += len(example)
    return tokens, positions, segments


def test_an_examples_own_length_picks_its_frequencies_wherever_it_stands():
    params, apply, _ = model()
    rng = np.random.default_rng(0)
    short, long = rng.integers(0, 20, ORIGINAL), rng.integers(0, 20, 14)
    alone = apply(params, *rows([short], [short]))[0, :ORIGINAL]
    beyond = apply(params, *rows([long], [long]))[0, :14]
    packed = apply(params, *rows([short, long], [long]))
    np.testing.assert_allclose(packed[0, :ORIGINAL], alone, atol=1e-5)
    np.testing.assert_allclose(packed[0, ORIGINAL : ORIGINAL + 14], beyond, atol=1e-5)
    np.testing.assert_allclose(packed[1, :14], beyond, atol=1e-5)
    cut = apply(params, *rows([long[:ORIGINAL]], [short]))[0, :ORIGINAL]
    assert np.abs(cut - beyond[:ORIGINAL]).max() > 0.1, "the two frequencies give the same: nothing was tested"


@pytest.mark.parametrize("chunks", [(1,) * 14, (3, 8, 1, 2)], ids=["by-token", "by-chunk"])
def test_a_cache_that_grows_beyond_the_original_context_equals_the_row_read_at_once(chunks):
    params, apply, cached = model()
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 20, (2, 14)).astype(np.int32)
    ends = (14, 6)  # the second row never leaves the original context
    cache, place = init_cache(CONFIG, 2, 16), 0
    for width in chunks:
        positions = np.broadcast_to(place + np.arange(width), (2, width)).astype(np.int32)
        present = (positions < np.array(ends)[:, None]).astype(np.int32)
        hidden, cache = cached(params, tokens[:, place : place + width], positions, present, cache)
        place += width
        for row, end in enumerate(ends):
            stop = min(place, end)
            if stop <= place - width:
                continue
            whole = apply(params, *rows([tokens[row, :stop]], [tokens[row, :stop]]))[0]
            np.testing.assert_allclose(hidden[row, stop - 1 - (place - width)], whole[stop - 1], atol=1e-5)


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
@pytest.mark.parametrize("count", [1, 3])
def test_factors_of_another_head_dimension_are_no_model(name, count):
    """Prevents a folder from being read that fails when the first batch is computed."""
    with pytest.raises(UserError, match=f"{name} has {count} numbers; the head dimension needs 2"):
        dataclasses.replace(CONFIG, rope=dataclasses.replace(LONGROPE, **{name: (1.0,) * count}))
