"""Power of a paired comparison: seeds that a difference needs, and the difference that seeds can see."""

import math

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 10_000


def power(difference: float, sd: float, seeds: int) -> float:
    """Probability that a paired t-test over `seeds` finds `difference`; `sd` is the spread of paired differences."""
    if seeds < 2:
        return 0.0
    quantile = stats.t.ppf(1 - ALPHA / 2, seeds - 1)
    return float(stats.nct.sf(quantile, seeds - 1, abs(difference) * math.sqrt(seeds) / sd))


def seeds_needed(difference: float, sd: float, at_least: float = POWER) -> int | None:
    """Fewest seeds that see `difference` with probability `at_least`; None if more than 10,000.

    Raises ValueError unless both numbers are finite, `difference` is not 0 and `sd` is above 0.
    """
    if not (math.isfinite(difference) and difference) or not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"a difference other than 0 and a spread above 0 are needed, got {difference} and {sd}")
    low, high = 2, 2
    while power(difference, sd, high) < at_least:
        if high >= MOST_SEEDS:
            return None
        low, high = high + 1, min(2 * high, MOST_SEEDS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, sd, middle) >= at_least else (middle + 1, high)
    return low


def detectable(seeds: int, sd: float, at_least: float = POWER) -> float:
    """Smallest difference that `seeds` see with probability `at_least`; infinite with one seed."""
    if seeds < 2:
        return math.inf
    root = optimize.brentq(lambda d: power(d, 1.0, seeds) - at_least, 1e-3, 1e3)
    return sd * float(np.asarray(root))
