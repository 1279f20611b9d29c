import math

import numpy as np
import pytest
from scipy import stats

from jaxtune.science.intervals import (
    Estimate,
    independent_proportions,
    mean_in_clusters,
    mean_interval,
    mean_of_estimates,
    paired_proportions,
)


def test_mean_interval_is_students_t():
    values = [0.61, 0.58, 0.66, 0.7]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    estimate = mean_interval([*values, math.nan])
    assert (estimate.low, estimate.high, estimate.n) == (pytest.approx(low), pytest.approx(high), 4)
    assert estimate.half == pytest.approx((high - low) / 2)


def test_one_measurement_has_no_interval_and_none_has_no_mean():
    assert math.isnan(mean_interval([0.5]).low) and not mean_interval([0.5]).clear
    assert math.isnan(mean_interval([math.nan]).mean)


def test_paired_proportions_count_gains_minus_losses():
    before, after = [True, True, False, False, False], [True, False, True, True, False]
    estimate = paired_proportions(before, after)
    assert estimate.mean == pytest.approx(1 / 5)
    assert estimate.low < 0 < estimate.high and not estimate.clear


def test_paired_proportions_do_not_collapse_when_nothing_changed():
    estimate = paired_proportions([True] * 30, [True] * 30)
    assert estimate.mean == 0.0 and estimate.low < -0.01 and estimate.high > 0.01


def coverage(estimates, truth):
    return np.mean([one.low <= truth <= one.high for one in estimates])


def test_paired_intervals_hold_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(2000):
        before = rng.random(60) < 0.3
        after = np.where(before, rng.random(60) < 0.9, rng.random(60) < 0.4)
        estimates.append(paired_proportions(before.tolist(), after.tolist()))
    assert 0.935 < coverage(estimates, 0.7 * 0.4 - 0.3 * 0.1) < 0.975


def test_independent_intervals_hold_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(1)
    draws = zip(rng.binomial(40, 0.05, 2000) / 40, rng.binomial(40, 0.5, 2000) / 40, strict=True)
    assert 0.935 < coverage([independent_proportions(p, q, 40) for p, q in draws], 0.45) < 0.985


def test_the_mean_of_equal_independent_estimates_is_narrower_by_the_square_root():
    one = Estimate(mean=0.4, low=0.3, high=0.5, n=60)
    mean = mean_of_estimates([one] * 4)
    assert (mean.mean, mean.low, mean.high, mean.n) == (
        pytest.approx(0.4),
        pytest.approx(0.35),
        pytest.approx(0.45),
        240,
    )


def test_items_alone_have_students_interval_and_shares_wilsons():
    values = [0.1, 0.5, 0.7, 0.2]
    alone, usual = mean_in_clusters(values, "abcd"), mean_interval(values)
    assert (alone.low, alone.high) == (pytest.approx(usual.low), pytest.approx(usual.high))
    share = mean_in_clusters([1, 1, 1, 0, 0], range(5))
    exact = stats.binomtest(3, 5).proportion_ci(0.95, "wilson")
    assert (share.low, share.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    all_right = mean_in_clusters([1, 1, 1, 1], "aabb")  # two sources, not four questions
    assert all_right.low == pytest.approx(stats.binomtest(2, 2).proportion_ci(0.95, "wilson").low)
    assert math.isnan(mean_in_clusters([0.5, 0.25], "aa").low) and math.isnan(mean_in_clusters([], "").mean)


def test_the_error_of_a_mean_in_clusters_is_the_published_one():
    """Miller (2024), equation 4: the variance of the mean plus that of pairs in one cluster; here with G / (G - 1)."""
    values, groups = np.array([0.3, 0.9, 0.4, 0.8, 0.1, 0.35]), [0, 0, 1, 1, 2, 2]
    rest = values - values.mean()
    same = np.equal.outer(groups, groups)
    error = math.sqrt(3 / 2 * float((np.outer(rest, rest) * same).sum())) / len(values)
    found = mean_in_clusters(values.tolist(), groups)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * error)


@pytest.mark.parametrize("binary", [False, True])
def test_intervals_in_clusters_hold_the_truth_about_19_times_in_20(binary):
    rng, groups, found = np.random.default_rng(0), np.repeat(np.arange(40), 5), []
    for _ in range(300):
        quantile = stats.norm.cdf((rng.normal(size=40)[groups] + rng.normal(size=200)) / math.sqrt(2))
        values = (quantile > 0.4).astype(int) if binary else quantile
        found.append(mean_in_clusters(values.tolist(), groups.tolist()))
    assert 0.91 <= coverage(found, 0.6 if binary else 0.5) <= 0.98
