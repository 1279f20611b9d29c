"""Stages of a run: where each ends, its mixture, and the counts of all together."""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import Allocation
from jaxtune.mixture.apportion import normalised
from jaxtune.mixture.settings import MixtureConfig, OnCap, Strategy


def stage_ends(steps: int, stages: int) -> list[int]:
    """Updates after which each stage ends: as even as whole updates allow. Raises UserError for too few updates."""
    if steps < stages:
        raise UserError(f"mixture.stages={stages} is more than the {steps} steps of the run; give fewer stages")
    return [steps * (number + 1) // stages for number in range(stages)]


def shares_by_stage(config: MixtureConfig, tasks: Sequence[str]) -> list[dict[str, float]]:
    """Shares of the second stage, the third and so on, as far as they are known."""
    flat, count = config.stage_shares, len(tasks)
    if len(flat) % count or len(flat) // count >= config.stages:
        raise UserError(
            f"mixture.stage_shares holds {len(flat)} numbers; it takes one for each of the {count} trained tasks "
            f"({', '.join(tasks)}) and for each stage after the first, of which there are {config.stages - 1}"
        )
    rows = [flat[start : start + count] for start in range(0, len(flat), count)]
    return [dict(zip(tasks, map(float, row), strict=True)) for row in rows]


def stage_mixture(config: MixtureConfig, shares: Mapping[str, float]) -> MixtureConfig:
    """The mixture of a stage with these shares: those rates, under the caps of the whole."""
    on_cap = OnCap.REDISTRIBUTE if config.strategy is Strategy.UNIMAX else config.on_cap
    return dataclasses.replace(config, strategy=Strategy.WEIGHTS, weights=dict(shares), groups={}, on_cap=on_cap)


def with_stage(before: Allocation, stage: Allocation, means: Mapping[str, Fraction | int]) -> Allocation:
    """The allocation of a run with one more stage; `means`: mixing units of an example of each task."""
    counts = {task: n + stage.counts[task] for task, n in before.counts.items()}
    met = normalised({task: count * Fraction(means[task]) for task, count in counts.items()})
    budget = sum(counts.values())
    return dataclasses.replace(
        before,
        requested=budget,
        budget=budget,
        counts=counts,
        realised={task: float(share) for task, share in met.items()},
        epochs={task: count / max(before.usable[task], 1) for task, count in counts.items()},
        capped={task: before.caps[task] is not None and count == before.caps[task] for task, count in counts.items()},
    )
