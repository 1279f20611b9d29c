"""Aggregates over tasks and seeds: interquartile mean, probability of improvement, bootstrap (arXiv 2108.13264)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, "tasks seeds"]


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all (task, seed) scores: robust to a failed run, unlike the mean over tasks."""
    values = np.sort(scores, axis=None)
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(x: Float[np.ndarray, "tasks n"], y: Float[np.ndarray, "tasks m"]) -> float:
    """P(X > Y) for a run of each on a task drawn at random: (#{x > y} + #{x = y} / 2) / (n m), mean over tasks."""
    above = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    return float(above.mean())


def stratified_bootstrap(
    scores: Float[np.ndarray, "arms tasks seeds"],
    statistic: Callable[[Float[np.ndarray, "arms tasks seeds"]], float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval (95 %) of a statistic: seeds are drawn anew within each task, the same for every arm."""
    _, tasks, seeds = scores.shape
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        picked = rng.integers(0, seeds, (tasks, seeds))
        values.append(statistic(np.take_along_axis(scores, picked[None], axis=2)))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
