"""Transfer between tasks: what training on one changes on another, from losses of runs on chosen sets of tasks.

Losses are nats per token; every estimate is positive where the source helps the target. The seed is the unit.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from jaxtune.science.contrasts import Contrast, family, over_seeds

RIDGE = 0.1
"""Penalty of the effects of a subset design, in runs: with 20 runs an effect shrinks by about 2 %."""

Pairs = dict[tuple[int, int], Contrast]
"""(source, target) -> estimate."""


def co_training(alone: Float[np.ndarray, "tasks seeds"], joint: Float[np.ndarray, "tasks tasks seeds"]) -> Pairs:
    """C[a -> b] = loss of b trained alone - loss of b trained with a, adjusted as one family (arXiv 2111.10952).

    `joint[a, b]` is the loss of b after training on a and b; NaN where there is no such run.
    """
    return _pairs(alone[None, :, :] - joint)


def direct(baseline: Float[np.ndarray, "tasks seeds"], alone: Float[np.ndarray, "tasks tasks seeds"]) -> Pairs:
    """D[a -> b] = loss of b after a neutral task - loss of b after a alone, a != b, adjusted as one family.

    `alone[a, b]` is the loss of b after training on a; `baseline[b]` that of b after the neutral task.
    """
    return _pairs(baseline[None, :, :] - alone)


def own_gains(baseline: Float[np.ndarray, "tasks seeds"], alone: Float[np.ndarray, "tasks seeds"]) -> list[Contrast]:
    """Loss of each task after a neutral one - its loss after its own data, adjusted as one family."""
    return family([over_seeds(_finite(row)) for row in baseline - alone])


def _pairs(gain: Float[np.ndarray, "tasks tasks seeds"]) -> Pairs:
    """The off-diagonal pairs that have a number, each over its complete seeds."""
    count = len(gain)
    found = {(a, b): _finite(gain[a, b]) for a in range(count) for b in range(count) if a != b}
    kept = {pair: values for pair, values in found.items() if values}
    return dict(zip(kept, family([over_seeds(values) for values in kept.values()]), strict=True))


def _finite(values: Float[np.ndarray, " seeds"]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def balanced_subsets(tasks: int, count: int, *, seed: int = 0) -> Bool[np.ndarray, "count tasks"]:
    """Random subsets of the tasks, no two alike and none empty; each task is in half of them.

    ValueError where there are fewer than `count` such subsets, or where `count` is below 3 a task, too few to tell
    the tasks' effects apart.
    """
    if count < 3 * tasks or count > (2**tasks - 1) // 2:
        most = (2**tasks - 1) // 2
        raise ValueError(f"{count} subsets of {tasks} tasks; at least {3 * tasks} and at most {most} make sense")
    rng = np.random.default_rng(seed)
    half = np.arange(count) < count // 2
    for _ in range(100):
        drawn = _mended(np.stack([rng.permutation(half) for _ in range(tasks)], axis=1), rng)
        if drawn is not None:
            return drawn
    raise ValueError(f"no {count} different subsets of {tasks} tasks were found")


def _mended(drawn: Bool[np.ndarray, "count tasks"], rng: np.random.Generator) -> Bool[np.ndarray, "count tasks"] | None:
    """The subsets with repeated and empty ones changed by swaps inside a task's column; None if that fails."""
    drawn = drawn.copy()
    for _ in range(20 * len(drawn)):
        seen: dict[bytes, int] = {}
        bad = [i for i, row in enumerate(drawn) if not row.any() or seen.setdefault(row.tobytes(), i) != i]
        if not bad:
            return drawn
        task = int(rng.integers(drawn.shape[1]))
        others = np.flatnonzero(drawn[:, task] != drawn[bad[0], task])
        swap = int(rng.choice(others))
        drawn[[bad[0], swap], task] = drawn[[swap, bad[0]], task]
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetFit:
    """Effects of the tasks in a subset design on one target."""

    effects: Sequence[Contrast]
    """By source: how much its presence lowers the target's loss, nats; not yet adjusted."""
    r2: float
    """Share of the variation between runs of one seed that the sum of effects explains."""
    largest_residual: float
    """Largest mean residual of the runs that hold a pair of tasks, nats: what the pair does beyond the sum."""
    pair: tuple[int, int]
    """That pair."""


def subset_effects(present: Bool[np.ndarray, "runs tasks"], losses: Float[np.ndarray, "runs seeds"]) -> SubsetFit:
    """Fit loss = mu_s - sum_a effect_a present_a by ridge inside each seed; effects over seeds (arXiv 2305.13256).

    Runs without a finite loss are left out. ValueError where a seed has fewer runs than effects.
    """
    fits, residuals, total = [], np.full(losses.shape, math.nan), 0.0
    for s in range(losses.shape[1]):
        there = np.isfinite(losses[:, s])
        if there.sum() <= present.shape[1]:
            raise ValueError(f"{int(there.sum())} runs of a seed for {present.shape[1]} effects")
        z, y = present[there].astype(float), losses[there, s]
        z, y = z - z.mean(axis=0), y - y.mean()
        theta = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ y)
        fits.append(-theta)
        residuals[there, s] = y - z @ theta
        total += float(y @ y)
    explained = 1 - float(np.nansum(residuals**2)) / total if total else math.nan
    by_run = np.nanmean(residuals, axis=1)
    count = present.shape[1]
    beyond = {
        (a, b): float(by_run[both].mean())
        for a in range(count)
        for b in range(a + 1, count)
        if (both := present[:, a] & present[:, b]).any()
    }
    pair = max(beyond, key=lambda one: abs(beyond[one]))
    effects = [over_seeds([float(fit[a]) for fit in fits]) for a in range(count)]
    return SubsetFit(effects=effects, r2=explained, largest_residual=beyond[pair], pair=pair)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """Tasks joined by average linkage: those that help one another most are joined first."""

    merges: Float[np.ndarray, "merges 4"]
    """As of `scipy.cluster.hierarchy.linkage`; distances count from that of the closest possible pair."""
    order: Sequence[int]
    """Tasks in the order of the tree's leaves."""


def linkage(gain: Float[np.ndarray, "tasks tasks"]) -> Tree:
    """Average linkage on the negative gain, averaged over both directions; a missing pair counts as no gain."""
    both = np.nan_to_num((gain + gain.T) / 2)
    np.fill_diagonal(both, 0.0)
    distance = np.asarray(max(float(both.max()), 0.0)) - both
    np.fill_diagonal(distance, 0.0)
    merges = hierarchy.linkage(squareform(distance, checks=False), method="average")
    return Tree(merges=merges, order=[int(leaf) for leaf in hierarchy.leaves_list(merges)])
