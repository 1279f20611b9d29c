import math

import numpy as np
import pytest
from scipy import special, stats

from jaxtune.science.best import additive, compare_with_best, contenders, dunnett_quantile


def settings_by_seeds(rng, means, seeds, *, seed_effect=1.0):
    return means[:, None] + rng.standard_normal((len(means), seeds)) + seed_effect * rng.standard_normal(seeds)


@pytest.mark.parametrize(("count", "df"), [(1, 10), (3, 12), (4, 20), (9, 60)])
def test_quantiles_are_those_of_the_integral(count, df):
    """P(largest of (Z_i + Z_0) / sqrt 2 below q s) = E_s E_z Phi(sqrt(2) q s - z)^count."""
    q = dunnett_quantile(count, df)
    z = np.linspace(-7, 7, 401)
    s = np.sqrt(stats.chi2.ppf((np.arange(400) + 0.5) / 400, df) / df)
    inner = special.ndtr(math.sqrt(2) * q * s[:, None] - z) ** count * stats.norm.pdf(z)
    assert float(np.trapezoid(inner, z, axis=1).mean()) == pytest.approx(0.95, abs=0.004)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_set_holds_the_best_setting_and_is_smaller_when_settings_differ(seeds):
    rng = np.random.default_rng(seeds)
    held, sizes = [], {0.3: [], 3.0: []}
    for spread in sizes:
        for _ in range(200):
            means = spread * rng.standard_normal(8)
            found = contenders(additive(settings_by_seeds(rng, means, seeds)))
            held.append(found[np.argmax(means)])
            sizes[spread].append(found.sum())
    assert np.mean(held) >= 0.95
    assert np.mean(sizes[3.0]) < 0.7 * np.mean(sizes[0.3])


def test_equal_settings_stay_in_the_set_at_the_stated_rate():
    rng = np.random.default_rng(0)
    kept = [contenders(additive(settings_by_seeds(rng, np.zeros(4), 4)))[0] for _ in range(400)]
    assert 0.925 <= np.mean(kept) <= 0.985


def test_the_probability_of_being_best_is_calibrated_between_equals_and_certain_for_a_leader():
    rng = np.random.default_rng(2)
    equal = [compare_with_best(settings_by_seeds(rng, np.zeros(3), 4), higher_is_better=True).probability
             for _ in range(200)]  # fmt: skip
    assert np.mean(equal, axis=0) == pytest.approx([1 / 3] * 3, abs=0.06)
    lead = compare_with_best(settings_by_seeds(rng, np.array([0.0, 9.0, 0.0]), 4), higher_is_better=True)
    assert lead.probability[1] > 0.99 and lead.winner == 1 and lead.contenders.tolist() == [False, True, False]


def test_fresh_seeds_take_the_winners_curse_away():
    """Twelve equal settings, five seeds: the best mean is too high by .73 of a run's spread, fresh seeds are not."""
    rng = np.random.default_rng(3)
    chosen, confirmed = [], []
    for _ in range(800):
        y = rng.standard_normal((12, 10))
        winner = int(np.argmax(additive(y[:, :5]).setting))
        chosen.append(y[winner, :5].mean())
        confirmed.append(y[winner, 5:].mean())
    assert 0.65 < np.mean(chosen) < 0.8
    assert abs(np.mean(confirmed)) <= 0.1


def test_holes_are_filled_by_the_model():
    exact = np.array([1.0, 2.0, 4.0])[:, None] + np.array([0.0, 10.0, -3.0, 5.0])
    holed = exact.copy()
    holed[0, 1] = holed[2, 3] = math.nan
    assert additive(holed).setting == pytest.approx(exact.mean(axis=1))
    assert compare_with_best(holed, higher_is_better=True).means == pytest.approx(exact.mean(axis=1))


def test_lower_is_better_gives_the_lowest_its_own_sign():
    found = compare_with_best(np.array([[3.0, 3.1, 2.9], [1.0, 1.1, 0.9]]), higher_is_better=False)
    assert found.winner == 1 and found.means == pytest.approx([3, 1]) and found.contenders.tolist() == [False, True]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1.0], [2.0]]),
        np.array([[1.0, math.nan], [math.nan, 2.0]]),
        np.array([[1.0, 1.1, math.nan, math.nan], [math.nan, math.nan, 2.0, 2.1]]),
    ],
)
def test_without_seeds_in_common_nothing_is_tested(values):
    found = compare_with_best(values, higher_is_better=True)
    assert not found.tested and found.contenders.all() and np.isnan(found.probability).all()


def test_a_setting_without_a_finite_value_is_no_contender():
    values = np.array([[1.0, 1.2, 1.1], [math.nan] * 3, [1.0, 1.1, 1.2]])
    found = compare_with_best(values, higher_is_better=True)
    assert found.contenders.tolist() == [True, False, True] and math.isnan(found.means[1])
    with pytest.raises(ValueError, match="no finite value"):
        compare_with_best(np.full((2, 2), math.nan), higher_is_better=True)


def test_of_means_that_differ_in_rounding_alone_the_first_is_the_winner():
    assert compare_with_best(np.array([[0.3], [0.1 + 0.2], [0.0]]), higher_is_better=True).winner == 0
    assert compare_with_best(np.array([[0.3], [0.3 + 1e-6], [0.0]]), higher_is_better=True).winner == 1
