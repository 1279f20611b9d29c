import math

import numpy as np
import pytest
from scipy import stats

from jaxtune.science.intervals import (
    Estimate,
    independent_proportions,
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
