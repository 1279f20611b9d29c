import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtune.science.contrasts import contrast, family, holm, over_seeds

NUMBERS = st.floats(0, 1)


def simulate(rng, *, temperatures=4, rates=3, seeds=5, interaction=1.0):
    """Settings x seeds under the null: noise of 1, a seed effect, and a temperature x seed interaction."""
    noise = rng.standard_normal((temperatures, rates, seeds))
    noise += interaction * rng.standard_normal((temperatures, 1, seeds)) + rng.standard_normal(seeds)
    return noise.reshape(-1, seeds)


def against_first(temperatures=4, rates=3):
    """Weights of every temperature against the first, each averaged over the rates."""
    rows = []
    for value in range(1, temperatures):
        weights = np.zeros((temperatures, rates))
        weights[value], weights[0] = 1 / rates, -1 / rates
        rows.append(weights.reshape(-1))
    return rows


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_under_an_interaction_with_the_seed(seeds):
    rng = np.random.default_rng(seeds)
    weights = against_first()[0]
    found = [contrast(simulate(rng, seeds=seeds), weights) for _ in range(3000)]
    assert 0.935 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.965


def test_pooling_cells_and_seeds_would_not():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(500):
        y = simulate(rng).reshape(4, 3, 5)
        missed += np.asarray(stats.ttest_1samp((y[1] - y[0]).reshape(-1), 0))[1] < 0.05
    assert missed / 500 > 0.12


def test_a_family_without_any_effect_is_called_clear_in_one_of_twenty_at_most():
    rng = np.random.default_rng(1)
    false = [any(one.clear for one in family([contrast(y, w) for w in against_first()])) for y in
             (simulate(rng) for _ in range(2000))]  # fmt: skip
    raw = np.random.default_rng(1)
    unadjusted = [any(contrast(y, w).p < 0.05 for w in against_first()) for y in (simulate(raw) for _ in range(500))]
    assert np.mean(false) <= 0.06 < np.mean(unadjusted)


@given(st.lists(NUMBERS, min_size=3, max_size=9))
def test_the_p_value_is_students(values):
    one = over_seeds(values)
    if np.std(values) > 1e-6:
        assert one.p == pytest.approx(stats.ttest_1samp(values, 0)[1], rel=1e-6, abs=1e-12)
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0)


def test_one_and_two_seeds_have_values_but_no_interval():
    for count in (1, 2):
        one = family([over_seeds([0.1, 0.3][:count])])[0]
        assert math.isnan(one.low) and math.isnan(one.p) and not one.clear
        assert one.by_seed == (0.1, 0.3)[:count]


def test_equal_differences_are_as_sure_as_flipping_their_signs_allows():
    assert over_seeds([0.05] * 5).p == 1 / 16
    assert over_seeds([0.0] * 5).p == 1


def test_a_seed_with_a_hole_is_left_out_of_the_contrasts_it_is_missing_from():
    y = np.arange(12.0).reshape(3, 4) ** 2
    y[1, 2] = math.nan
    one = contrast(y, np.array([-1.0, 1.0, 0.0]))
    assert one.by_seed == tuple((y[1] - y[0])[[0, 1, 3]])
    assert contrast(y, np.array([-1.0, 0.0, 1.0])).n == 4


def test_weights_that_do_not_add_to_zero_are_refused():
    with pytest.raises(ValueError, match="add to 0"):
        contrast(np.ones((2, 3)), np.array([1.0, 1.0]))


@given(st.lists(NUMBERS, min_size=1, max_size=12))
def test_holm_is_monotone_bounded_and_rejects_what_its_steps_reject(p_values):
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert list(np.diff(np.array(adjusted)[order]) >= 0) == [True] * (len(order) - 1)
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(order) and p_values[order[rejected]] <= level / (len(order) - rejected):
            rejected += 1
        assert sum(a <= level for a in adjusted) in {rejected, sum(math.isclose(a, level) for a in adjusted) + rejected}


def test_holm_leaves_out_what_could_not_be_tested():
    assert holm([0.01, math.nan, 0.04])[::2] == [0.02, 0.04]
