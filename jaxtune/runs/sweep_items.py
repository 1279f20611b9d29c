"""Answers to test questions across the runs of a sweep: differences item by item, under every seed."""

import math

import numpy as np
from jaxtyping import Float

from jaxtune.runs.sweep_contrasts import Comparison
from jaxtune.runs.sweeps import FinishedArm, Sweep, key
from jaxtune.science.crossed import Crossed, crossed

Item = tuple[str, str, str]
"""Task, id and prompt of a test question."""


def right_answers(arm: FinishedArm) -> dict[Item, float]:
    """1 or 0 for every test question of a run, after tuning."""
    return {
        (task, str(row["id"]), str(row.get("prompt", row["id"]))): float(bool(row["correct"]))
        for task, rows in arm.run.generations.get("after", {}).items()
        for row in rows
    }


def item_difference(sweep: Sweep, question: Comparison) -> Crossed | None:
    """A contrast as the mean over test questions, each weighing alike; one prompt asked twice counts once.

    None where runs that it needs have no answers, or no question in common.
    """
    used = {key(sweep.settings[i]): float(question.weights[i]) for i in np.flatnonzero(question.weights)}
    answers = {(key(arm.setting), arm.seed): right_answers(arm) for arm in sweep.arms if key(arm.setting) in used}
    seeds = [seed for seed in sweep.seeds if all((setting, seed) in answers for setting in used)]
    runs = [answers[setting, seed] for setting in used for seed in seeds]
    items = [item for item in runs[0] if all(item in run for run in runs)] if runs else []
    if not items:
        return None
    table = lambda setting: np.array([[answers[setting, seed][item] for item in items] for seed in seeds])
    difference: Float[np.ndarray, "seeds items"] = sum(
        (weight * table(setting) for setting, weight in used.items()), np.zeros((len(seeds), len(items)))
    )
    return crossed(difference, [(task, prompt) for task, _, prompt in items])


def has_halves(found: Crossed) -> bool:
    """Whether the intervals are known: two seeds and two questions at least."""
    return math.isfinite(found.half_new_seeds)
