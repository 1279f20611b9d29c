"""Mixture laws, proxies and left-out clusters against planted truth."""

import numpy as np
import pytest

from jaxtune.science.leaving import retained
from jaxtune.science.mixture_law import MixtureLaw, best_shares, capped, fit_law
from jaxtune.science.proxy import agreement


def planted(rng, tasks: int = 5) -> MixtureLaw:
    """Each task mostly helped by its own share, a little by others."""
    rates = rng.uniform(-0.4, 0.2, (tasks, tasks)) + np.diag(rng.uniform(-5.0, -2.5, tasks))
    floor = rng.uniform(0.3, 1.0, tasks)
    return MixtureLaw(floor=floor, rates=rates, r2=np.ones(tasks), rank=1.0)


def test_a_planted_law_gives_its_optimum_back():
    signs, errors, regrets = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        law = planted(rng)
        shares = rng.dirichlet(np.ones(5), 15)
        fit = fit_law(shares, law.losses(shares) + rng.normal(0, 0.016, (15, 5)))
        large = np.abs(law.centred) > 0.5
        signs.append((np.sign(fit.centred) == np.sign(law.centred))[large].mean())
        true, found = best_shares(law), best_shares(fit)
        errors.append(np.abs(true - found).max())
        regrets.append(law.losses(found[None]).mean() - law.losses(true[None]).mean())
        assert fit.rank > 0.7 and np.median(fit.r2) > 0.8
        trained = law.losses(shares).mean(axis=1).min() - law.losses(true[None]).mean()
        assert regrets[-1] < trained
    assert np.mean(signs) >= 0.95
    assert np.mean(errors) <= 0.06 and np.mean(regrets) <= 0.003


def test_too_few_mixtures_are_refused():
    shares = np.full((14, 5), 0.2)
    with pytest.raises(ValueError, match="at least 15"):
        fit_law(shares, shares)


def test_the_optimum_keeps_to_the_caps():
    law = planted(np.random.default_rng(0))
    free = best_shares(law)
    caps = np.where(np.arange(5) == np.argmax(free), free.max() / 2, 1.0)
    found = best_shares(law, caps)
    assert found.sum() == pytest.approx(1) and (found <= caps + 1e-9).all() and found[np.argmax(free)] > 0
    assert law.losses(found[None]).mean() >= law.losses(free[None]).mean() - 1e-9
    with pytest.raises(ValueError, match="leave no mixture"):
        best_shares(law, np.full(5, 0.1))
    assert capped(np.array([0.8, 0.1, 0.1]), np.array([0.5, 1, 1])) == pytest.approx([0.5, 0.25, 0.25])


def test_a_proxy_that_ranks_alike_and_one_that_does_not():
    rng = np.random.default_rng(0)
    level = np.linspace(1.0, 1.3, 8)
    large = level[:, None] + rng.normal(0, 0.01, (8, 5))
    alike = agreement(level[:, None] * 2 + rng.normal(0, 0.01, (8, 4)), large)
    assert alike.accuracy == 1 and alike.pairs > 20 and alike.tau > 0.9 and alike.low > 0.7
    against = agreement(-level[:, None] + rng.normal(0, 0.01, (8, 4)), large)
    assert against.accuracy < 0.1 and against.tau < -0.8
    noise = agreement(rng.normal(1, 0.01, (8, 5)), rng.normal(1, 0.01, (8, 5)))
    assert noise.pairs <= 6 and noise.low < 0 < noise.high
    with pytest.raises(ValueError, match="two are needed"):
        agreement(large, np.full((8, 5), np.nan))


def test_what_the_others_retain_of_a_cluster_is_found_with_its_interval():
    rng = np.random.default_rng(0)
    holds = []
    for _ in range(100):
        base = 3.0 + np.zeros(5)
        found = retained(base, 2.4 + rng.normal(0, 0.05, 5), 1.0 + rng.normal(0, 0.05, 5))
        holds.append(found.low <= 0.3 <= found.high)
        assert found.n == 5
    assert np.mean(holds) > 0.75  # five seeds: percentile intervals are somewhat narrow
    two = retained(np.array([3.0, 3.0]), np.array([3.0, 3.0]), np.array([1.0, 2.0]))
    assert two.mean == 0 and np.isnan(two.low) and retained(*np.full((3, 2), np.nan)).n == 0
