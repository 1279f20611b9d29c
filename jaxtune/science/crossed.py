"""Differences measured item by item under several seeds: how far they hold for new seeds and for new items."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossed:
    """Mean difference over seeds x items with two half-widths (95 %); NaN where one seed or one item gives none."""

    mean: float
    seeds: int
    clusters: int
    """Independent items: those of one source count once."""
    half_new_seeds: float
    """For new seeds and these very questions."""
    half_new_items: float
    """For new seeds and new questions of the same kind."""


def crossed(difference: Float[np.ndarray, "seeds items"], groups: Sequence[Hashable] | None = None) -> Crossed:
    """Two-way random-effects interval of a mean difference.

    Var(mean) = (MS_S + MS_I - MS_SI) / (S n) for new seeds and new items with Satterthwaite's degrees of freedom, and
    MS_S / (S n) for new seeds on the same items. Items of one group (a shared passage or source) are averaged first
    (Miller 2024, arXiv 2411.00640). Groups of unequal size then weigh alike.
    """
    table = difference if groups is None else cluster_means(difference, groups)
    seeds, items = table.shape
    mean = float(table.mean())
    if seeds < 2 or items < 2:
        nan = math.nan
        return Crossed(mean=mean, seeds=seeds, clusters=items, half_new_seeds=nan, half_new_items=nan)
    by_seed, by_item = table.mean(axis=1), table.mean(axis=0)
    ms_s = items * float(np.var(by_seed, ddof=1))
    ms_i = seeds * float(np.var(by_item, ddof=1))
    rest = table - by_seed[:, None] - by_item[None, :] + mean
    ms_si = float(np.sum(rest**2)) / ((seeds - 1) * (items - 1))
    # A component of variance that comes out negative is 0.
    both = max(ms_s - ms_si, 0.0) + max(ms_i - ms_si, 0.0) + ms_si
    pieces = ms_s**2 / (seeds - 1) + ms_i**2 / (items - 1) + ms_si**2 / ((seeds - 1) * (items - 1))
    df = both**2 / pieces if pieces > 0 else math.inf
    total = seeds * items
    return Crossed(
        mean=mean,
        seeds=seeds,
        clusters=items,
        half_new_seeds=float(stdtrit(seeds - 1, 0.975)) * math.sqrt(ms_s / total),
        half_new_items=float(stdtrit(max(df, 1.0), 0.975)) * math.sqrt(both / total),
    )


def cluster_means(values: Float[np.ndarray, "seeds items"], groups: Sequence[Hashable]) -> Float[np.ndarray, "seeds c"]:
    """Means over the items of each group, groups in the order of their first item."""
    if len(groups) != values.shape[1]:
        raise ValueError(f"{len(groups)} groups for {values.shape[1]} items")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.zeros((len(groups), len(number)))
    member[np.arange(len(groups)), [number[group] for group in groups]] = 1
    return values @ (member / member.sum(axis=0))
