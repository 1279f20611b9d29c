"""The records of the seven built-in tasks: drawn problems, sorted into splits, no problem twice."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtune.tasks.builtin import (
    arithmetic,
    classification,
    open_ended,
    python_expressions,
    qa,
    summarization,
    translation,
)
from jaxtune.tasks.builtin.problem import Problem, Split, split_of
from jaxtune.tasks.builtin.stream import Stream

EVALUATION_SIZE = 60
"""Examples of each validation set and of each test set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One built-in task: how its problems are drawn, how they may be phrased, and how many are for training."""

    draw: Callable[[Stream], Problem]
    phrasings: tuple[str, ...]
    """Patterns of the first user turn; the placeholders are the problem's fields."""
    train_size: int


FAMILIES = {
    "qa": Family(draw=qa.draw, phrasings=qa.PHRASINGS, train_size=4500),
    "summarization": Family(draw=summarization.draw, phrasings=summarization.PHRASINGS, train_size=2400),
    "translation": Family(draw=translation.draw, phrasings=translation.PHRASINGS, train_size=1800),
    "classification": Family(draw=classification.draw, phrasings=classification.PHRASINGS, train_size=1500),
    "code": Family(draw=python_expressions.draw, phrasings=python_expressions.PHRASINGS, train_size=600),
    "math": Family(draw=arithmetic.draw, phrasings=arithmetic.PHRASINGS, train_size=300),
    "open_ended": Family(draw=open_ended.draw, phrasings=open_ended.PHRASINGS, train_size=900),
}


def draw_problems(task: str, split: Split, count: int) -> list[Problem]:
    """The first `count` different problems of a split.

    Problems differ in group or in fields when they are for training, in group (so in substance) otherwise.
    """
    problems: list[Problem] = []
    seen: set[Any] = set()
    attempt = 0
    while len(problems) < count:
        problem = FAMILIES[task].draw(Stream("builtin", task, split.value, attempt))
        attempt += 1
        identity = problem.group if split is not Split.TRAIN else (problem.group, *problem.fields.values())
        if split_of(task, problem.group) is split and identity not in seen:
            seen.add(identity)
            problems.append(problem)
    return problems


def records(task: str, split: Split) -> list[dict[str, Any]]:
    """The records of one split of one task: id, group, fields, answer, follow_ups, system."""
    count = FAMILIES[task].train_size if split is Split.TRAIN else EVALUATION_SIZE
    return [
        {"id": f"{task}-{split.value}-{i}", **dataclasses.asdict(problem)}
        for i, problem in enumerate(draw_problems(task, split, count))
    ]
