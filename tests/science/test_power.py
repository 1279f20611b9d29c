import math

import numpy as np
import pytest
from scipy import stats

from jaxtune.science.power import detectable, power, seeds_needed


def test_power_is_the_share_of_simulated_tests_that_find_the_difference():
    rng = np.random.default_rng(0)
    found = np.asarray(stats.ttest_1samp(1.2 + rng.standard_normal((20_000, 6)), 0, axis=1))[1] < 0.05
    assert power(1.2, 1.0, 6) == pytest.approx(np.mean(found), abs=0.02)


@pytest.mark.parametrize(("seeds", "points"), [(5, 4.4), (10, 2.6), (3, 8.4), (2, 30)])
def test_runs_that_spread_by_eighteen_tenths_of_a_point_see_these_differences(seeds, points):
    """A paired difference of two runs with a spread of 1.8 points each has 1.8 * sqrt(2)."""
    assert detectable(seeds, 1.8 * math.sqrt(2)) == pytest.approx(points, rel=0.05)


@pytest.mark.parametrize("difference", [0.05, 0.3, 1.0, 5.0, -1.0])
def test_the_number_of_seeds_is_the_fewest(difference):
    seeds = seeds_needed(difference, 1.0)
    assert seeds is not None and power(difference, 1.0, seeds) >= 0.8
    assert seeds == 2 or power(difference, 1.0, seeds - 1) < 0.8


def test_what_no_number_of_seeds_sees_has_none():
    assert seeds_needed(1e-6, 1.0) is None and detectable(1, 1.0) == math.inf
    for bad in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="are needed"):
            seeds_needed(*bad)
