"""Leaving a cluster of tasks out: how much of what its own data bring comes from the others (arXiv 2109.01652)."""

import numpy as np
from jaxtyping import Float

from jaxtune.science.contrasts import SEEDS_FOR_INTERVAL
from jaxtune.science.intervals import Estimate


def retained(
    base: Float[np.ndarray, " seeds"], without: Float[np.ndarray, " seeds"], everything: Float[np.ndarray, " seeds"],
    *, draws: int = 4000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """(loss of the base - loss without the cluster) / (loss of the base - loss with all), of a cluster's tasks.

    1: the others do as much for it as its own data; 0: nothing; below 0: they harm. A ratio of means over seeds, with a
    percentile interval of resampled seeds (95 %) from three seeds on.
    """
    kept = np.isfinite(base) & np.isfinite(without) & np.isfinite(everything)
    gained, possible = (base - without)[kept], (base - everything)[kept]
    n = int(kept.sum())
    if not n:
        return Estimate(mean=float("nan"), n=0)
    mean = float(gained.mean() / possible.mean())
    if n < SEEDS_FOR_INTERVAL:
        return Estimate(mean=mean, n=n)
    picked = np.random.default_rng(seed).integers(0, n, (draws, n))
    low, high = np.quantile(gained[picked].mean(axis=1) / possible[picked].mean(axis=1), (0.025, 0.975))
    return Estimate(mean=mean, low=float(low), high=float(high), n=n)
