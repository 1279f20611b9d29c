"""Sweeps with left-out clusters: how much of a cluster's own gain the other clusters bring."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.runs.history import Run
from jaxtune.runs.results import reached
from jaxtune.runs.sweeps import FinishedArm, Sweep
from jaxtune.science.intervals import Estimate
from jaxtune.science.leaving import retained

OPTION = "held-out"
EVERYTHING = "all clusters"
"""Tag of the setting that trains on every cluster."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One cluster."""

    cluster: str
    tasks: Sequence[str]
    retained: Estimate
    curve: Mapping[int, float]
    """By the number of other clusters trained on, the cluster's validation loss, mean over seeds (nats)."""
    base: float
    """Its loss before tuning."""


def clusters_of(run: Run) -> dict[str, list[str]]:
    """Tasks by the first part of their cluster, as the run's config names them."""
    found: dict[str, list[str]] = {}
    for task in run.config.get("tasks", []):
        if isinstance(task, Mapping) and task.get("cluster"):
            found.setdefault(str(task["cluster"]).split("/")[0], []).append(str(task["name"]))
    return found


def read_leaving(sweep: Sweep) -> list[LeftOut]:
    """Every cluster that some run left out beside runs on all of them; empty for any other sweep."""
    whole = {arm.seed: arm for arm in sweep.arms if arm.tag == EVERYTHING}
    if not whole:
        return []
    clusters = clusters_of(next(iter(whole.values())).run)
    found = []
    for cluster, tasks in clusters.items():
        by_number: dict[int, dict[int, FinishedArm]] = {}
        for arm in sweep.arms:
            out = [name for name in shlex.split(arm.setting.get(OPTION, "")) if name in clusters]
            if out and out[0] == cluster:
                by_number.setdefault(len(clusters) - len(out), {})[arm.seed] = arm
        if by_number:
            found.append(left_out(cluster, tasks, by_number, whole, list(sweep.seeds)))
    return found


def left_out(
    cluster: str,
    tasks: Sequence[str],
    by_number: Mapping[int, Mapping[int, FinishedArm]],
    whole: Mapping[int, FinishedArm],
    seeds: Sequence[int],
) -> LeftOut:
    """One cluster's numbers from the runs that leave it out, by how many others they train on."""
    numbers = lambda arms, when: np.array([loss_of(arms.get(seed), tasks, when) for seed in seeds])
    most = by_number.get(max(by_number), {})
    base = numbers(whole, "before")
    estimate = retained(base, numbers(most, "after"), numbers(whole, "after"))
    curve = {count: mean(numbers(arms, "after")) for count, arms in sorted(by_number.items())}
    return LeftOut(cluster=cluster, tasks=tasks, retained=estimate, curve=curve, base=mean(base))


def loss_of(arm: FinishedArm | None, tasks: Sequence[str], when: str) -> float:
    """Mean validation loss of some tasks; NaN where it was not measured."""
    losses = {} if arm is None else reached(arm.run, when).task_loss
    return math.fsum(losses[task] for task in tasks) / len(tasks) if all(task in losses for task in tasks) else math.nan


def mean(values: Float[np.ndarray, " n"]) -> float:
    """Mean of what is finite."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else math.nan
