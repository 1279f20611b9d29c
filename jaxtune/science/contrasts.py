"""Contrasts between settings with the seed as the unit of inference, and Holm's adjustment over a family of them.

Runs of one seed share their data order and their start, so they are never independent of one another: a contrast is
first averaged inside each seed, and only its spread over seeds is used.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

ALPHA = 0.05
"""Family-wise error rate that decides what is called clear."""
SEEDS_FOR_INTERVAL = 3
"""With two seeds Student's quantile is 12.7: an interval of that width says nothing, so none is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """Weighted sum of settings, weights adding to 0, over seeds; in the unit of the values it was made from."""

    mean: float
    by_seed: tuple[float, ...]
    """The contrast inside each complete seed."""
    low: float = math.nan
    """Lower bound of Student's 95 % interval over seeds; NaN with fewer than three seeds."""
    high: float = math.nan
    p: float = math.nan
    """Two-sided p-value of "no difference"; NaN with fewer than three seeds."""
    adjusted: float = math.nan
    """p after Holm's adjustment over the family; NaN for a contrast that is in none."""

    @property
    def n(self) -> int:
        """Seeds behind the contrast."""
        return len(self.by_seed)

    @property
    def clear(self) -> bool:
        """Whether the difference survives Holm's adjustment at the 5 % level."""
        return self.adjusted < ALPHA


def contrast(values: Float[np.ndarray, "settings seeds"], weights: Float[np.ndarray, " settings"]) -> Contrast:
    """d_s = sum_a c_a y[a, s] over complete seeds; mean d ± t(.975, S - 1) sd(d) / sqrt(S).

    A seed in which a weighted setting has no finite value is left out. ValueError if the weights do not add to 0.
    """
    if not math.isclose(math.fsum(weights), 0.0, abs_tol=1e-9):
        raise ValueError(f"the weights of a contrast add to 0, these to {math.fsum(weights):g}")
    used = weights != 0
    part = values[used]
    complete = np.isfinite(part).all(axis=0)
    return over_seeds((weights[used] @ part[:, complete]).tolist())


def over_seeds(differences: Sequence[float]) -> Contrast:
    """A contrast from its value inside each seed."""
    n = len(differences)
    mean = math.fsum(differences) / n if n else math.nan
    if n < SEEDS_FOR_INTERVAL:
        return Contrast(mean=mean, by_seed=tuple(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    return Contrast(mean=mean, by_seed=tuple(differences), low=mean - half, high=mean + half, p=p_value(mean, error, n))


def p_value(mean: float, error: float, n: int) -> float:
    """Student's two-sided p. Without any spread (scores are counts, so ties happen) that of the sign-flip test."""
    if error <= 1e-12 * max(abs(mean), 1.0):
        return 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - n)
    return float(2 * stdtr(n - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values (Holm 1979): the error rate of the whole family stays at the level of each.

    NaN (no test possible) stays NaN and does not count as a member.
    """
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def family(members: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts of one table or page, each with its Holm-adjusted p."""
    adjusted = holm([one.p for one in members])
    return [dataclasses.replace(one, adjusted=p) for one, p in zip(members, adjusted, strict=True)]
