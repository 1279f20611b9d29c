"""Halving on simulated curves whose final order is known: cost, survival of the best, regret, the warning's number."""

import math

import numpy as np
import pytest

from jaxtune.science.halving import rank_agreement, survivors

SETTINGS, SEEDS, SPREAD, NOISE, SHARES = 16, 3, 0.03, 0.016, (0.25, 0.5)


def simulated(rng, correlation: float, noise: float = NOISE) -> tuple[float, bool, float, float, float]:
    """Cost as a share of the grid, whether the true best survives, regret in nats, that of the whole grid, and the tau.

    Each rung ranks with errors of its own, and with a run's noise of its own; seeds' effects are those of the end.
    """
    truth = rng.standard_normal(SETTINGS)
    seeds = 0.01 * rng.standard_normal(SEEDS)

    def measured(ranks):
        return SPREAD * ranks[:, None] + seeds + noise * rng.standard_normal((SETTINGS, SEEDS))

    final = measured(truth)
    alive, cost, before, rung = np.arange(SETTINGS), 0.0, 0.0, final
    for share in SHARES:
        cost, before = cost + len(alive) * (share - before), share
        rung = measured(correlation * truth + math.sqrt(1 - correlation**2) * rng.standard_normal(SETTINGS))
        alive = alive[survivors(rung[alive], 3)]
    cost += len(alive) * (1 - before)
    winner, of_all = alive[np.argmin(final[alive].mean(axis=1))], np.argmin(final.mean(axis=1))
    tau = rank_agreement(rung[alive], final[alive])[0]
    regret, whole = SPREAD * (truth[winner] - truth.min()), SPREAD * (truth[of_all] - truth.min())
    return cost / SETTINGS, bool(np.argmin(truth) in alive), regret, whole, tau


@pytest.mark.parametrize(("correlation", "survival"), [(1.0, 0.93), (0.9, 0.8)])
def test_the_best_of_a_grid_survives_at_less_than_half_of_its_cost(correlation, survival):
    rng = np.random.default_rng(0)
    costs, alive, regrets, whole, _ = np.array([simulated(rng, correlation) for _ in range(2000)]).T
    assert costs.mean() <= 0.45
    assert alive.mean() >= survival
    assert regrets.mean() <= 0.003
    assert regrets.mean() <= whole.mean() + 0.001, "the whole grid, too, takes a run's noise for the best"


def test_rungs_that_rank_otherwise_cost_regret_and_show_in_the_rank_agreement():
    rng = np.random.default_rng(1)
    _, alive, regrets, _, taus = np.array([simulated(rng, 0.6) for _ in range(400)]).T
    assert alive.mean() < 0.7 and regrets.mean() > 0.005
    assert np.nanmedian(taus) < 0.5
    faithful = np.array([simulated(rng, 1.0)[4] for _ in range(400)])
    assert np.nanmedian(faithful) > np.nanmedian(taus), "near ties among those that finish rank by noise, yet less so"
    exact = np.array([simulated(rng, 1.0, noise=0.0)[4] for _ in range(100)])
    assert np.all(exact > 0.99), "rungs that rank as the end does are never warned of where runs have no noise"


def test_whoever_is_within_a_standard_error_of_the_best_goes_on():
    shared = np.array([0.0, 1.0, -1.0])
    losses = np.array([[1.0], [1.001], [1.05], [2.0], [3.0], [4.0]]) + shared
    assert survivors(losses, 6).tolist() == [True] + [False] * 5, "a shared seed effect is no noise of a difference"
    losses[1] += [0.01, -0.01, 0.0]
    assert survivors(losses, 6).tolist() == [True, True, False, False, False, False]
    assert survivors(losses, 3).sum() == 2 and survivors(losses, 2).sum() == 3


def test_runs_that_failed_never_go_on_while_others_do():
    losses = np.array([[math.inf, 1.0], [math.nan, math.nan], [2.0, 2.0], [5.0, 5.0]])
    assert survivors(losses, 4).tolist() == [False, False, True, False]
    assert survivors(losses[:, :1], 2).sum() == 2


def test_rank_agreement_is_kendalls_over_settings_or_else_over_runs():
    seeds = np.array([0.0, 5.0])
    rung, final = (np.array(rows)[:, None] + seeds for rows in ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]))
    assert rank_agreement(rung, final) == (pytest.approx(2 / 3), 4)
    assert rank_agreement(rung[:2], final[:2]) == (pytest.approx(1.0), 4)
    assert math.isnan(rank_agreement(rung[:1], final[:1])[0])
    assert math.isnan(rank_agreement(rung[:2, :1], final[:2, :1])[0])
