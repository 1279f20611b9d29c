"""The mixture law of a sweep of mixtures: fitted losses by shares, and the best shares under the config's caps."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.errors import UserError
from jaxtune.runs.history import TaskShare
from jaxtune.runs.sweeps import FinishedArm, Sweep, key
from jaxtune.science.mixture_law import best_shares, fit_law
from jaxtune.storage.documents import Json

RECORD = "mixture_law.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixtures:
    """Settings of a sweep as shares of the tasks, with losses averaged over seeds."""

    tasks: Sequence[str]
    targets: Sequence[str]
    names: Sequence[str]
    shares: Float[np.ndarray, "arms tasks"]
    losses: Float[np.ndarray, "arms targets"]
    caps: Float[np.ndarray, " tasks"]
    """Largest share of each task under the config's limit of repeats."""


def read_mixtures(sweep: Sweep) -> Mixtures:
    """The settings of a sweep that differ in shares; UserError where there are none or losses are missing."""
    by_setting: dict[tuple, list[FinishedArm]] = {}
    for arm in sweep.arms:
        by_setting.setdefault(key(arm.setting), []).append(arm)
    tasks = [one.task for one in sweep.arms[0].run.tasks]
    targets = [task for task in tasks if all(task in arm.after.task_loss for arm in sweep.arms)]
    if len(tasks) < 2 or not targets:
        raise UserError(f"{sweep.path}: a mixture law takes runs over two tasks with validation data")
    rows = [arms[0].run.tasks for arms in by_setting.values()]
    shares = np.array([shares_of(row, tasks) for row in rows])
    if len(np.unique(np.round(shares, 3), axis=0)) < 3 * len(tasks):
        raise UserError(
            f"{sweep.path} has {len(np.unique(np.round(shares, 3), axis=0))} different mixtures; a law of {len(tasks)} "
            f"tasks takes {3 * len(tasks)}: jaxtune sweep --mixtures {3 * len(tasks)}"
        )
    losses = [
        [float(np.mean([arm.after.task_loss[t] for arm in arms])) for t in targets] for arms in by_setting.values()
    ]
    names = [sweep.name(arms[0].setting) for arms in by_setting.values()]
    return Mixtures(
        tasks=tasks, targets=targets, names=names, shares=shares, losses=np.array(losses),
        caps=caps_of(sweep.arms[0], tasks),
    )  # fmt: skip


def shares_of(rows: Sequence[TaskShare], tasks: Sequence[str]) -> list[float]:
    """Shares of the planned examples."""
    counts = {one.task: one.count for one in rows}
    total = sum(counts.values())
    return [counts.get(task, 0) / total for task in tasks]


def caps_of(arm: FinishedArm, tasks: Sequence[str]) -> Float[np.ndarray, " tasks"]:
    """R * usable / budget by task, at most 1."""
    limit = arm.run.config.get("mixture", {}).get("max_repeats")
    budget = sum(one.count for one in arm.run.tasks)
    usable = {one.task: one.usable or one.size for one in arm.run.tasks}
    limits = limit if isinstance(limit, dict) else dict.fromkeys(tasks, limit)
    repeats = {task: float(value) for task, value in limits.items() if isinstance(value, int | float)}
    return np.array([min(1.0, repeats.get(task, math.inf) * usable[task] / budget) for task in tasks])


def law_of(sweep: Sweep) -> Json:
    """The law of a sweep and what follows from it, as plain JSON."""
    mixtures = read_mixtures(sweep)
    law = fit_law(mixtures.shares, mixtures.losses)
    best = best_shares(law, mixtures.caps)
    measured = mixtures.losses.mean(axis=1)
    first = int(np.argmin(measured))
    tasks, targets = mixtures.tasks, mixtures.targets
    found: Json = {
        "tasks": list(tasks), "mixtures": len(mixtures.shares), "rank_left_out": law.rank,
        "targets": {
            target: {
                "floor": float(law.floor[i]), "r2_left_out": float(law.r2[i]),
                "rates_centred": dict(zip(tasks, map(float, law.centred[i]), strict=True)),
            }
            for i, target in enumerate(targets)
        },
        "best": {
            "shares": dict(zip(tasks, (round(float(value), 4) for value in best), strict=True)),
            "caps": dict(zip(tasks, map(float, mixtures.caps), strict=True)),
            "expected_loss": float(law.losses(best[None]).mean()),
        },
        "best_trained": {"name": mixtures.names[first], "loss": float(measured[first])},
    }  # fmt: skip
    return found
