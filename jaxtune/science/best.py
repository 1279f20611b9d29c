"""The best of several settings: which cannot be told from it, and how likely each is to be it.

The difference between the best setting and the runner-up, both chosen from the same data, has no honest interval. What
can be said: the set of settings that holds the best one 95 times in 100 (Hsu's multiple comparisons with the best), and
the probability of each under the same model. The number of a winner comes from seeds that did not choose it.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Float

DRAWS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Additive:
    """Least-squares fit of y[a, s] = setting a + seed s + residual."""

    setting: Float[np.ndarray, " settings"]
    """Mean of each setting over the seeds, with holes filled in by the model."""
    covariance: Float[np.ndarray, "settings settings"]
    """Covariance of the settings' means in units of the residual variance."""
    residual: float
    """Standard deviation of the residual."""
    df: int
    """Degrees of freedom of the residual; 0 where nothing can be tested: one seed, one setting, or settings that share
    no seed, even by way of others."""


def additive(values: Float[np.ndarray, "settings seeds"]) -> Additive:
    """Two-way fit; cells without a finite value are holes. Every setting and every seed needs one finite cell."""
    settings, seeds = values.shape
    a, s = np.nonzero(np.isfinite(values))
    if len(set(a)) < settings or len(set(s)) < seeds:
        raise ValueError("every setting and every seed needs a finite value")
    # Seed effects add to 0 (the last is minus the others' sum), so a setting's coefficient is its mean over seeds.
    effects = np.vstack([np.eye(seeds - 1), -np.ones((1, seeds - 1))])
    design = np.hstack([np.eye(settings)[a], effects[s]])
    y = values[a, s]
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    connected = int(rank) == settings + seeds - 1
    df = len(y) - int(rank) if connected else 0
    residual = math.sqrt(float(np.sum((y - design @ beta) ** 2)) / df) if df else math.nan
    covariance = np.linalg.pinv(design.T @ design)[:settings, :settings]
    return Additive(setting=beta[:settings], covariance=covariance, residual=residual, df=df)


@functools.lru_cache(maxsize=256)
def dunnett_quantile(comparisons: int, df: int, level: float = 0.95) -> float:
    """One-sided quantile of the largest of `comparisons` t statistics of mutual correlation 1/2, by 100,000 draws."""
    rng = np.random.default_rng(comparisons * 100_003 + df)
    shared, largest = rng.standard_normal(DRAWS), np.full(DRAWS, -np.inf)
    for _ in range(comparisons):
        largest = np.maximum(largest, rng.standard_normal(DRAWS))
    scale = np.sqrt(rng.chisquare(df, DRAWS) / df)
    return float(np.quantile((largest + shared) / math.sqrt(2) / scale, level))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """Settings compared with the best of them."""

    means: Float[np.ndarray, " settings"]
    contenders: Bool[np.ndarray, " settings"]
    """Settings that cannot be told from the best (95 %): the best one is among them. All of them where nothing can be
    tested."""
    probability: Float[np.ndarray, " settings"]
    """Probability of being the best; NaN where nothing can be tested."""
    winner: int
    """Setting of the best mean."""
    tested: bool
    """Whether there were seeds enough for a test."""


def compare_with_best(values: Float[np.ndarray, "settings seeds"], *, higher_is_better: bool) -> Best:
    """Hsu's set (1984): a stays if mean_a - mean_b > -q s sqrt(var(a - b)) for every other b; and P(best) by draws.

    `values`: one number a setting and seed, NaN where there is none; settings and seeds without any number have none.
    """
    settings = np.asarray(np.isfinite(values).any(axis=1))
    seeds = np.asarray(np.isfinite(values).any(axis=0))
    if not settings.any():
        raise ValueError("no finite value")
    signed = values if higher_is_better else -values
    fit = additive(signed[np.ix_(settings, seeds)])
    spread = lambda part, empty: _scatter(part, settings, empty)
    winner = int(np.nonzero(settings)[0][np.argmax(np.round(fit.setting, 12))])  # the first of equal means
    means = spread(fit.setting if higher_is_better else -fit.setting, math.nan)
    if fit.df == 0:
        nothing = np.full(len(values), math.nan)
        return Best(means=means, contenders=settings, probability=nothing, winner=winner, tested=False)
    return Best(
        means=means,
        contenders=np.asarray(spread(contenders(fit).astype(float), 0.0) > 0),
        probability=spread(probability_best(fit), math.nan),
        winner=winner,
        tested=True,
    )


def _scatter(part: Float[np.ndarray, " kept"], kept: Bool[np.ndarray, " all"], empty: float) -> Float[np.ndarray, " a"]:
    whole = np.full(len(kept), empty)
    whole[kept] = part
    return whole


def contenders(fit: Additive) -> Bool[np.ndarray, " settings"]:
    """Hsu's set of a fit in which higher is better."""
    count = len(fit.setting)
    if count == 1:
        return np.ones(1, bool)
    diagonal = np.diag(fit.covariance)
    variance = diagonal[:, None] + diagonal[None, :] - 2 * fit.covariance
    margin = dunnett_quantile(count - 1, fit.df) * fit.residual * np.sqrt(np.maximum(variance, 0))
    ahead = fit.setting[:, None] - fit.setting[None, :] >= -margin
    return np.asarray((ahead | np.eye(count, dtype=bool)).all(axis=1))


def probability_best(fit: Additive, draws: int = 4_000) -> Float[np.ndarray, " settings"]:
    """Share of draws of the settings' means (multivariate t) in which each is the highest."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(fit.covariance + 1e-12 * np.eye(len(fit.setting)))
    noise = rng.standard_normal((draws, len(fit.setting))) @ root.T
    scale = fit.residual / np.sqrt(rng.chisquare(fit.df, draws) / fit.df)
    highest = np.argmax(fit.setting + scale[:, None] * noise, axis=1)
    return np.bincount(highest, minlength=len(fit.setting)) / draws
