"""Proxies: does a small model order settings as the large one does?"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtune.science.contrasts import ALPHA, contrast

BAR = 0.8
"""Decision accuracy that is usually asked of a proxy (arXiv 2504.11393)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of a small model's order of settings with a large one's."""

    accuracy: float
    """Share of the pairs told apart on the large model that the small one orders alike; NaN where none is."""
    pairs: int
    """Pairs told apart on the large model (paired t-test over seeds, 5 % each)."""
    tau: float
    """Kendall's tau of the settings' means."""
    low: float
    """Bounds of tau under resampled seeds (95 %)."""
    high: float


def agreement(
    small: Float[np.ndarray, "settings n"], large: Float[np.ndarray, "settings m"], *, draws: int = 1000, seed: int = 0
) -> Agreement:
    """Compare two tables of one measure over the same settings and their own seeds; NaN are holes.

    ValueError with fewer than two settings that both have.
    """
    kept = np.isfinite(small).any(axis=1) & np.isfinite(large).any(axis=1)
    if kept.sum() < 2:
        raise ValueError(f"{int(kept.sum())} settings that both sweeps have; two are needed")
    small, large = small[kept], large[kept]
    right, pairs = 0, 0
    means = np.nanmean(small, axis=1)
    for a, b in itertools.combinations(range(len(small)), 2):
        weights = np.zeros(len(large))
        weights[a], weights[b] = 1, -1
        found = contrast(large, weights)
        if found.p < ALPHA:
            pairs += 1
            right += (means[a] - means[b]) * found.mean > 0
    rng = np.random.default_rng(seed)
    drawn = [kendall(resampled(small, rng), resampled(large, rng)) for _ in range(draws)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Agreement(
        accuracy=right / pairs if pairs else math.nan, pairs=pairs, tau=kendall(small, large),
        low=float(low), high=float(high),
    )  # fmt: skip


def resampled(values: Float[np.ndarray, "settings seeds"], rng: np.random.Generator) -> Float[np.ndarray, "s k"]:
    """The same settings under seeds drawn anew, alike for all settings; only seeds that every setting has."""
    complete = np.flatnonzero(np.isfinite(values).all(axis=0))
    return values[:, rng.choice(complete, len(complete))] if len(complete) else values


def kendall(small: Float[np.ndarray, "settings n"], large: Float[np.ndarray, "settings m"]) -> float:
    """Kendall's tau of the settings' means."""
    return float(np.asarray(stats.kendalltau(np.nanmean(small, axis=1), np.nanmean(large, axis=1)))[0])
