"""One exercise of a built-in task, before it is phrased; and the split that it belongs to."""

import dataclasses
import enum
from collections.abc import Mapping

from jaxtune.storage.fingerprints import hash64


class Split(enum.Enum):
    """Split in which an exercise may appear."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


HELD_OUT_PERCENT = 6
"""Percent of all groups of exercises that belong to the test split, and again as many to the validation split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exercise:
    """A question with its one right answer.

    `group` names what it is about whatever the wording; a group lives in one split only. `fields` fill the placeholders
    of the task's phrasings. `follow_ups` are later turns: pairs of question and answer about the same fields.
    """

    group: str
    fields: Mapping[str, str]
    answer: str
    follow_ups: tuple[tuple[str, str], ...] = ()
    system: str | None = None


def split_of(task: str, group: str) -> Split:
    """The split of a group: a hash of task and group, so no list of held-out exercises needs to be kept."""
    bucket = hash64(f"split/{task}/{group}".encode()) % 100
    if bucket < HELD_OUT_PERCENT:
        return Split.TEST
    return Split.VALIDATION if bucket < 2 * HELD_OUT_PERCENT else Split.TRAIN
