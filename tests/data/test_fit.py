"""Over-long examples: dropped, cut or refused, and always counted under the right name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.batch import Example
from jaxtune.data.fit import FitOutcome, LengthPolicy, fit_length
from jaxtune.errors import UserError

BOS = 1


def example(weights, tokens=None):
    tokens = np.arange(10, 10 + len(weights), dtype=np.int32) if tokens is None else np.array(tokens, np.int32)
    return Example(tokens=tokens, loss_weights=np.array(weights, np.float32))


TWO_TURNS = example([0, 0, 0, 1, 1, 0, 0, 1, 1, 1], tokens=[BOS, 11, 12, 13, 14, 15, 16, 17, 18, 19])


def fit(what, length, policy, **kwargs):
    fitted = fit_length(what, length, policy, **kwargs)
    return fitted.outcome, None if fitted.example is None else fitted.example.tokens.tolist()


@pytest.mark.parametrize("policy", LengthPolicy)
def test_an_example_that_fits_is_kept_as_it_is(policy):
    fitted = fit_length(TWO_TURNS, 10, policy)
    assert fitted.outcome is FitOutcome.KEPT and fitted.example is TWO_TURNS


@pytest.mark.parametrize("policy", LengthPolicy)
def test_an_example_in_which_nothing_trains_is_dropped_by_every_policy(policy):
    """Prevents examples without loss from entering the mixture; weight on the first token trains nothing."""
    assert fit(example([0, 0, 0]), 10, policy) == (FitOutcome.NOTHING_TRAINS, None)
    assert fit(example([1, 0, 0]), 2, policy) == (FitOutcome.NOTHING_TRAINS, None)
    assert fit(example([0]), 10, policy) == (FitOutcome.NOTHING_TRAINS, None)


def test_a_too_long_example_is_refused_or_dropped():
    assert fit(TWO_TURNS, 9, LengthPolicy.DROP) == (FitOutcome.TOO_LONG, None)
    with pytest.raises(UserError, match="10 tokens, more than the maximum length 9"):
        fit(TWO_TURNS, 9, LengthPolicy.ERROR)


def test_a_prompt_is_cut_from_the_left_after_bos():
    assert fit(TWO_TURNS, 8, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS) == (
        FitOutcome.PROMPT_TRUNCATED,
        [BOS, 13, 14, 15, 16, 17, 18, 19],
    )
    assert fit(TWO_TURNS, 8, LengthPolicy.TRUNCATE_PROMPT)[1] == [12, 13, 14, 15, 16, 17, 18, 19]


def test_an_earlier_response_that_loses_its_beginning_no_longer_trains():
    fitted = fit_length(TWO_TURNS, 7, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS)
    assert fitted.example is not None
    assert fitted.example.tokens.tolist() == [BOS, 14, 15, 16, 17, 18, 19]
    assert fitted.example.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1]
    whole = fit_length(TWO_TURNS, 8, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS)
    assert whole.example is not None and whole.example.loss_weights.tolist() == [0, 1, 1, 0, 0, 1, 1, 1]


def test_a_response_that_is_too_long_alone_is_dropped_and_says_so():
    assert fit(TWO_TURNS, 4, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS)[1] == [BOS, 17, 18, 19]
    assert fit(TWO_TURNS, 3, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS) == (FitOutcome.RESPONSE_TOO_LONG, None)
    assert fit(TWO_TURNS, 3, LengthPolicy.TRUNCATE_PROMPT)[1] == [17, 18, 19]


def test_the_first_token_weighs_nothing_after_a_cut():
    fitted = fit_length(TWO_TURNS, 3, LengthPolicy.TRUNCATE_PROMPT)
    assert fitted.example is not None and fitted.example.loss_weights.tolist() == [0, 1, 1]


def test_a_truncated_response_loses_its_end_of_turn_token():
    """Prevents teaching a model to stop in mid-answer."""
    fitted = fit_length(TWO_TURNS, 9, LengthPolicy.TRUNCATE_RESPONSE)
    assert fitted.outcome is FitOutcome.RESPONSE_TRUNCATED and fitted.example is not None
    assert fitted.example.tokens.tolist() == TWO_TURNS.tokens[:9].tolist()
    assert 19 not in fitted.example.tokens
    assert fitted.example.loss_weights.tolist() == TWO_TURNS.loss_weights[:9].tolist()


def test_an_answer_beyond_the_maximum_length_is_dropped_after_the_cut_and_says_so():
    """Prevents examples of nothing but prompt: the check comes after truncation."""
    assert fit(TWO_TURNS, 3, LengthPolicy.TRUNCATE_RESPONSE) == (FitOutcome.NOTHING_TRAINS_AFTER_CUT, None)


def test_prompt_weights_survive_a_cut():
    weighted = example([0, 0.5, 0.5, 1, 1, 0.5, 0.5, 1, 1, 1], tokens=TWO_TURNS.tokens)
    fitted = fit_length(weighted, 7, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS, prompt_loss_weight=0.5)
    assert fitted.example is not None
    assert fitted.example.loss_weights.tolist() == [0, 0.5, 0.5, 0.5, 1, 1, 1]
    assert (
        fit(weighted, 3, LengthPolicy.TRUNCATE_PROMPT, bos_id=BOS, prompt_loss_weight=0.5)[0]
        is FitOutcome.RESPONSE_TOO_LONG
    )


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5]), min_size=1, max_size=14),
    length=st.integers(2, 14),
    policy=st.sampled_from([LengthPolicy.DROP, LengthPolicy.TRUNCATE_PROMPT, LengthPolicy.TRUNCATE_RESPONSE]),
    has_bos=st.booleans(),
)
def test_whatever_comes_out_fits_and_trains(weights, length, policy, has_bos):
    given_example = example(weights)
    fitted = fit_length(given_example, length, policy, bos_id=10 if has_bos else None)
    if fitted.example is not None:
        assert len(fitted.example.tokens) == len(fitted.example.loss_weights) <= length
        assert (fitted.example.loss_weights[1:] > 0).any()
        weight_of = dict(zip(given_example.tokens.tolist(), weights, strict=True))
        for token, weight in zip(fitted.example.tokens.tolist(), fitted.example.loss_weights.tolist(), strict=True):
            assert weight in (0.0, weight_of[token])
    assert (fitted.example is None) == fitted.outcome.value.startswith("dropped")
