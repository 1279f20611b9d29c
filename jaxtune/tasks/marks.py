"""Marks of what trains: fields of messages and records that say how much an answer weighs in the loss."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtune.tasks.problems import Finding
from jaxtune.tasks.values import type_name

MARKS = ("weight", "train", "trainable", "loss", "loss_mask")
"""Fields that are read as a weight, on a message or on a whole record: true or false, or a number."""

LEAST, MOST = 1e-6, 1e6
"""Weights above 0 that are taken; beyond them a loss in float32 has no digits left for the other examples."""

_STEMS = ("train", "learn", "loss", "mask", "weight", "supervis", "ignor", "backprop", "untrain", "exclud")
_ENDINGS = ("", "s", "es", "e", "ed", "ing", "able", "ion", "ings", "ables")
_MARKING = frozenset(stem + ending for stem in _STEMS for ending in _ENDINGS) | {"skip", "skipped", "grad", "grads"}
_FILLER_WORDS = (
    "do does no not dont never non is in on to the this that of for be should must has have with without only "
    "include included compute computed calculate calculated require requires required detail details eot eos eod "
    "use used apply per turn turns message messages msg example "
    "examples sample samples record records token tokens answer answers response responses assistant completion "
    "output flag value out from as it"
)
_FILLERS = frozenset(_FILLER_WORDS.split())


def is_weight(value: Any) -> bool:
    """Whether a value can be a loss weight: 0, or a number in [`LEAST`, `MOST`]; true and false are 1 and 0."""
    return isinstance(value, int | float) and (value == 0 or LEAST <= value <= MOST)


def given_marks(holder: Mapping[str, Any]) -> dict[str, Any]:
    """The marks of a message or record that are there and not null."""
    return {name: holder[name] for name in MARKS if holder.get(name) is not None}


def weight_of(holder: Mapping[str, Any]) -> float | None:
    """The weight that a message or record without a wrong mark states; None where it states none."""
    return next((float(value) for value in given_marks(holder).values()), None)


def check_marks(holder: Mapping[str, Any], where: str) -> list[Finding]:
    """Problems in the marks of a message or record, which messages call `where` ("messages[1].")."""
    found = given_marks(holder)
    wrong = [
        ("bad-weight", f"{where}{name} is {_shown(value)}") for name, value in found.items() if not is_weight(value)
    ]
    if not wrong and len(set(map(float, found.values()))) > 1:
        stated = ", ".join(f"{where}{name} is {value!r}" for name, value in found.items())
        return [("bad-weight", f"{stated}: marks that contradict each other")]
    return wrong


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, int | float) else type_name(value)


def check_unknown(fields: Iterable[str], where: str) -> list[Finding]:
    """A finding for each field that is none of ours and sounds like a mark: it must not be ignored in silence."""
    return [
        ("unknown-mark", f"{where}{field} sounds like a mark of what trains, and is not known")
        for field in fields
        if sounds_like_mark(field)
    ]


@functools.lru_cache(maxsize=65536)
def sounds_like_mark(field: str) -> bool:
    """Whether a field's name, in whatever spelling, speaks of what trains and of nothing else.

    `Train`, `loss-mask`, `lossMask`, `no_loss`, `do_train`, `learn`, `masked`, `ignore` do; `train_split`, `weight_kg`
    and `ignore_case` speak of something else as well. The marks themselves, spelt right, do not.
    """
    if field in MARKS:
        return False
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", field)
    spoken = [word.lower() for word in words]
    joined = "".join(spoken)
    if joined in {mark.replace("_", "") for mark in MARKS}:
        return True
    return bool(_MARKING.intersection(spoken)) and _MARKING.union(_FILLERS).issuperset(spoken)


def misspelt_mark(field: str, value: Any) -> bool:
    """Whether a message's field is a mark with a slip of the pen (`wieght`), going by its name and kind of value."""
    near = difflib.get_close_matches(field.lower(), MARKS, n=1, cutoff=0.8)
    return bool(near) and field not in MARKS and isinstance(value, bool | int | float)
