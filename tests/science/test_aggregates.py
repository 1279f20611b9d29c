import numpy as np
import pytest
from scipy import stats

from jaxtune.science.aggregates import interquartile_mean, probability_of_improvement, stratified_bootstrap


def test_the_interquartile_mean_shrugs_off_a_failed_run():
    scores = np.linspace(0.4, 0.6, 20).reshape(4, 5)
    failed = scores.copy()
    failed[0, 0] = -1e6
    assert interquartile_mean(failed) == pytest.approx(interquartile_mean(scores)) == pytest.approx(0.5)


def test_the_probability_of_improvement_is_the_mean_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (7, 5)).astype(float), rng.integers(0, 6, (7, 4)).astype(float)
    expected = np.mean([stats.mannwhitneyu(a, b).statistic / 20 for a, b in zip(x, y, strict=True)])
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


def test_the_bootstrap_keeps_arms_paired_and_covers_a_mean():
    rng = np.random.default_rng(1)
    shared = 5 * rng.standard_normal((1, 4, 8))
    paired = np.concatenate([shared, shared + 0.3])
    gain = lambda arms: float((arms[1] - arms[0]).mean())
    assert stratified_bootstrap(paired, gain, draws=50) == pytest.approx((0.3, 0.3))
    held = []
    for _ in range(100):
        low, high = stratified_bootstrap(rng.standard_normal((1, 6, 10)), lambda s: float(s.mean()), draws=200)
        held.append(low <= 0 <= high)
    assert 0.86 <= np.mean(held) <= 0.99
