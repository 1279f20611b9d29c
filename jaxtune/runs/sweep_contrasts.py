"""Contrasts between the settings of a sweep: every value of an option against its first, all else equal."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.runs.sweeps import Measure, Setting, Sweep, key, task_measure
from jaxtune.science.contrasts import Contrast, contrast, family, over_seeds

MOST_AGAINST_FIRST = 24
"""Settings of a plain list that are each compared with its first; of more, a fitted surface says more than a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of settings, as contrast weights over the settings of the sweep."""

    axis: str
    """Option that is varied; empty where whole settings are compared."""
    value: str
    reference: str
    weights: Float[np.ndarray, " settings"]
    pairs: int
    """Pairs of settings, alike in all else, that the contrast is averaged over inside a seed."""


def questions(sweep: Sweep) -> list[Comparison]:
    """Every value of every option against the option's first; without such pairs, settings against the first one."""
    found = [axis_question(sweep, axis, value) for axis, values in sweep.axes.items() for value in values[1:]]
    found = [one for one in found if one.pairs]
    if found or len(sweep.settings) > MOST_AGAINST_FIRST:
        return found
    return [setting_question(sweep, index) for index in range(1, len(sweep.settings))]


def axis_question(sweep: Sweep, axis: str, value: str) -> Comparison:
    """Settings with `value` against those with the option's first value that agree in everything else."""
    reference = sweep.axes[axis][0]
    place = {key(setting): index for index, setting in enumerate(sweep.settings)}
    pairs = [
        (index, place[key({**setting, axis: reference})])
        for index, setting in enumerate(sweep.settings)
        if setting.get(axis) == value and key({**setting, axis: reference}) in place
    ]
    weights = np.zeros(len(sweep.settings))
    for new, old in pairs:
        weights[new] += 1 / len(pairs)
        weights[old] -= 1 / len(pairs)
    return Comparison(axis=axis, value=value, reference=reference, weights=weights, pairs=len(pairs))


def setting_question(sweep: Sweep, index: int) -> Comparison:
    """A whole setting against the first of the list."""
    weights = np.zeros(len(sweep.settings))
    weights[index], weights[0] = 1, -1
    name = lambda setting: sweep.name(setting)
    return Comparison(
        axis="", value=name(sweep.settings[index]), reference=name(sweep.settings[0]), weights=weights, pairs=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with the contrast of one measure."""

    question: Comparison
    measure: Measure
    contrast: Contrast


def answers(sweep: Sweep, measures: Sequence[Measure]) -> list[Answer]:
    """The contrasts of every question by every measure, adjusted as one family."""
    asked = [(question, measure) for question in questions(sweep) for measure in measures]
    found = family([contrast(sweep.matrix(measure.pick), question.weights) for question, measure in asked])
    return [
        Answer(question=question, measure=measure, contrast=one)
        for (question, measure), one in zip(asked, found, strict=True)
    ]


def task_answers(sweep: Sweep, axis: str, measure: Measure, tasks: Sequence[str]) -> list[Answer]:
    """The contrasts of one option task by task, adjusted as one family."""
    asked = [
        (question, task_measure(task, measure))
        for question in questions(sweep)
        if question.axis == axis
        for task in tasks
    ]
    found = family([contrast(sweep.matrix(one.pick), question.weights) for question, one in asked])
    return [Answer(question=q, measure=one, contrast=c) for (q, one), c in zip(asked, found, strict=True)]


def differs(sweep: Sweep, first: Setting, second: Setting, measure: Measure) -> Contrast:
    """`first - second` on the runs with fresh seeds."""
    side = lambda setting: {arm.seed: measure.pick(arm) for arm in sweep.confirmations if arm.setting == setting}
    new, old = side(first), side(second)
    by_seed = [new[seed] - old[seed] for seed in new if seed in old]
    return over_seeds([value for value in by_seed if math.isfinite(value)])
