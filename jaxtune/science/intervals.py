"""Differences and means with their 95 % intervals."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import stdtrit

Number = int | float
NORMAL = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval; the bounds are NaN where the data give none."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int
    """Measurements behind it."""

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[Number]) -> Estimate:
    """Mean with Student's t interval over independent measurements (seeds, paired differences); NaN is left out.

    mean ± t(0.975, n - 1) * s / sqrt(n). One measurement has no interval.
    """
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return Estimate(mean=math.nan, n=0)
    mean = math.fsum(kept) / len(kept)
    if len(kept) == 1:
        return Estimate(mean=mean, n=1)
    half = float(stdtrit(len(kept) - 1, 0.975)) * float(np.std(kept, ddof=1)) / math.sqrt(len(kept))
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=len(kept))


def mean_in_clusters(values: Sequence[Number], groups: Sequence[Hashable]) -> Estimate:
    """Mean of items of which those of one group (a passage, a source) are not independent.

    For G groups and n items the half-width is t(0.975, G - 1) * sqrt(G / (G - 1) * sum over groups of (sum of
    residuals)^2) / n (Miller 2024, arXiv 2411.00640); with every item alone it is Student's. For values of 0 and 1 it
    is Wilson's (1927) interval with n divided by the design effect of the groups (Kish 1965); where all are equal, no
    residual shows that effect, and G stands for n. One group gives no interval.
    """
    n, sizes = len(values), {}
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items")
    if not n:
        return Estimate(mean=math.nan, n=0)
    mean = math.fsum(values) / n
    for value, group in zip(values, groups, strict=True):
        sizes[group] = sizes.get(group, 0.0) + (value - mean)
    clusters = len(sizes)
    if clusters < 2 or not math.isfinite(mean):
        return Estimate(mean=mean, n=n)
    variance = clusters / (clusters - 1) * math.fsum(rest**2 for rest in sizes.values()) / n**2
    if all(value in (0, 1) for value in values):
        independent = mean * (1 - mean) / (n if clusters < n else n - 1)
        effective = n * independent / variance if variance > 0 and independent > 0 else float(clusters)
        low, high = wilson(mean, min(max(effective, 1.0), float(n)))
        return Estimate(mean=mean, low=low, high=high, n=n)
    half = float(stdtrit(clusters - 1, 0.975)) * math.sqrt(variance)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n)


def jackknife_half(values: Sequence[Number]) -> float:
    """Half-width of a 95 % interval from a statistic of the data without each of g blocks (Efron and Tibshirani 1993).

    t(0.975, g - 1) * sqrt((g - 1) / g * sum of squared deviations from their mean).
    """
    g, mean = len(values), math.fsum(values) / len(values)
    variance = (g - 1) / g * math.fsum((value - mean) ** 2 for value in values)
    return float(stdtrit(g - 1, 0.975)) * math.sqrt(variance)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of `n` items."""
    z2 = NORMAL**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_proportions(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Difference of two shares measured on the same items, `after` minus `before`.

    Agresti and Min (2005): with b items gained and c lost, half an item is added to each of the four cells, and
    d ± z * sqrt((b + c) - (b - c)^2 / n) / n is taken on the new cells. It does not collapse when no item changed.
    """
    assert len(before) == len(after) > 0
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    n, b, c = len(before) + 2, gained + 0.5, lost + 0.5
    centre, half = (b - c) / n, NORMAL * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Estimate(
        mean=(gained - lost) / len(before), low=max(-1.0, centre - half), high=min(1.0, centre + half), n=len(before)
    )


def independent_proportions(before: Number, after: Number, n: int) -> Estimate:
    """Difference of two shares measured on `n` items each, item by item unknown, `after` minus `before`.

    Agresti and Caffo (2000): one right and one wrong answer are added to each side, then the Wald interval.
    """
    p, q = (before * n + 1) / (n + 2), (after * n + 1) / (n + 2)
    half = NORMAL * math.sqrt((p * (1 - p) + q * (1 - q)) / (n + 2))
    return Estimate(mean=after - before, low=max(-1.0, q - p - half), high=min(1.0, q - p + half), n=n)


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates: half-widths add in quadrature."""
    if not estimates:
        return Estimate(mean=math.nan, n=0)
    count = len(estimates)
    mean = math.fsum(one.mean for one in estimates) / count
    low = mean - math.sqrt(math.fsum((one.mean - one.low) ** 2 for one in estimates)) / count
    high = mean + math.sqrt(math.fsum((one.high - one.mean) ** 2 for one in estimates)) / count
    return Estimate(mean=mean, low=low, high=high, n=sum(one.n for one in estimates))
