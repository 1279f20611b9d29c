"""Successive halving of settings: who goes on at a rung, and how far rungs rank as the end does (arXiv 1810.05934)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

FEWEST = 3
"""Things below which a rank correlation says nothing."""


def survivors(losses: Float[np.ndarray, "settings seeds"], factor: float) -> Bool[np.ndarray, " settings"]:
    """Settings that go on: the best 1 / `factor` of them, rounded up, by their mean over seeds, lower being better.

    So does every one whose mean is within a standard error of the best, that of the paired difference: seeds are
    shared, so their own effect cancels. A loss that is not finite is worse than any other.
    """
    means = np.where(np.isfinite(losses), losses, math.inf).mean(axis=1)
    best = int(np.argmin(means))
    kept = np.zeros(len(means), bool)
    kept[np.argsort(means, kind="stable")[: math.ceil(len(means) / factor)]] = True
    if losses.shape[1] < 2 or not math.isfinite(means[best]):
        return kept
    finite = np.isfinite(means)
    error = np.std(losses[finite] - losses[best], axis=1, ddof=1) / math.sqrt(losses.shape[1])
    kept[finite] |= means[finite] - means[best] <= error
    return kept


def rank_agreement(
    rung: Float[np.ndarray, "settings seeds"], final: Float[np.ndarray, "settings seeds"]
) -> tuple[float, int]:
    """Kendall's tau, from -1 to 1, between losses at a rung and at the end, and over how many things it was taken.

    Those are means of settings; of fewer than three settings it is the runs, each less the mean of its seed, among
    which a run's own noise looks like agreement. NaN for fewer than three runs.
    """
    if len(rung) >= FEWEST:
        first, last = rung.mean(axis=1), final.mean(axis=1)
    else:
        first, last = ((table - table.mean(axis=0)).reshape(-1) for table in (rung, final))
    if len(rung) < 2 or len(first) < FEWEST:
        return math.nan, len(first)
    tau: Any = stats.kendalltau(first, last)
    return float(tau.statistic), len(first)
