"""The records of the seven built-in tasks: drawn exercises, sorted into splits, none twice; and their phrasing."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import orjson

from jaxtune.chat import Conversation, Message
from jaxtune.tasks.builtin import (
    arithmetic,
    classification,
    open_ended,
    python_expressions,
    qa,
    summarization,
    translation,
)
from jaxtune.tasks.builtin.exercise import Exercise, Split, split_of
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.sources.base import RecordSource

EVALUATION_SIZE = 60
"""Examples of each validation set and of each test set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltinTask:
    """One built-in task: how its exercises are drawn, how they may be phrased, and how many are for training."""

    draw: Callable[[Stream], Exercise]
    phrasings: tuple[str, ...]
    """Patterns of the first user turn; the placeholders are the exercise's fields."""
    train_size: int
    evaluation_size: int = EVALUATION_SIZE
    """Examples of the validation set and of the test set."""
    world: str = ""
    """Tasks of one world draw the same exercises, group for group and split for split; empty: the task's own name."""


FAMILIES = {
    "qa": BuiltinTask(draw=qa.draw, phrasings=qa.PHRASINGS, train_size=4500),
    "summarization": BuiltinTask(draw=summarization.draw, phrasings=summarization.PHRASINGS, train_size=2400),
    "translation": BuiltinTask(draw=translation.draw, phrasings=translation.PHRASINGS, train_size=1800),
    "classification": BuiltinTask(draw=classification.draw, phrasings=classification.PHRASINGS, train_size=1500),
    "open_ended": BuiltinTask(draw=open_ended.draw, phrasings=open_ended.PHRASINGS, train_size=900),
    "code": BuiltinTask(draw=python_expressions.draw, phrasings=python_expressions.PHRASINGS, train_size=600),
    "math": BuiltinTask(draw=arithmetic.draw, phrasings=arithmetic.PHRASINGS, train_size=300),
}
"""Largest to smallest; 4500 : 300 is 15 : 1, and all together have 12,000 training examples."""


def draw_exercises(task: str, family: BuiltinTask, split: Split, count: int) -> list[Exercise]:
    """The first `count` different exercises of a split.

    For training, exercises differ in group or in fields; for validation and test they differ in group, so in substance.
    """
    world = family.world or task
    exercises: list[Exercise] = []
    seen: set[tuple[str, ...]] = set()
    attempt = 0
    while len(exercises) < count:
        exercise = family.draw(Stream("builtin", world, split.value, attempt))
        attempt += 1
        identity = (exercise.group, *(exercise.fields.values() if split is Split.TRAIN else ()))
        if split_of(world, exercise.group) is split and identity not in seen:
            seen.add(identity)
            exercises.append(exercise)
    return exercises


class GeneratedSource(RecordSource):
    """The records of one split of one task, drawn when they are first needed: always the same.

    A record has `id`, `group`, `fields`, `answer`, `follow_ups` and `system` (see `Exercise`), and `prompts`: the first
    user turn in every phrasing.
    """

    def __init__(self, task: str, family: BuiltinTask, split: Split):
        self.task, self.family, self.split = task, family, split
        self.name = f"builtin/{task}/{split.value}"

    @functools.cached_property
    def _records(self) -> list[dict[str, Any]]:
        phrasings = self.family.phrasings
        return [
            {
                "id": f"{self.task}-{self.split.value}-{i}",
                "prompts": [phrasing.format(**exercise.fields) for phrasing in phrasings],
                **dataclasses.asdict(exercise),
            }
            for i, exercise in enumerate(draw_exercises(self.task, self.family, self.split, len(self)))
        ]

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(b"\n".join(map(orjson.dumps, self._records))).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def origins(self) -> frozenset[str]:
        return frozenset((self.name,))

    def __len__(self) -> int:
        return self.family.train_size if self.split is Split.TRAIN else self.family.evaluation_size

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return dict(self._records[i])

    def __reduce__(self):
        return GeneratedSource, (self.task, self.family, self.split)

    def check_unchanged(self) -> None:
        """The records are a function of this code."""


def phrase(record: Mapping[str, Any], *, phrasing: int) -> Conversation:
    """A record as a conversation: system message if any, prompt in one phrasing, answer, and later turns."""
    turns = [(record["prompts"][phrasing], record["answer"]), *record["follow_ups"]]
    messages = [] if record["system"] is None else [Message("system", record["system"])]
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(messages=tuple(messages), id=record["id"])
