"""Marks of what trains: fields of messages and records that say how much an answer weighs in the loss."""

import difflib
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxtune.tasks.problems import Finding
from jaxtune.tasks.values import type_name

MARKS = ("weight", "train", "trainable", "loss", "loss_mask")
"""Fields that are read as a weight, on a message or on a whole record: true or false, or a number."""

LEAST, MOST = 1e-6, 1e6
"""Weights above 0 that are taken; beyond them a loss in float32 has no digits left for the other examples."""

_STEMS = ("train", "learn", "loss", "mask", "weight", "supervis", "ignor", "backprop", "exclud", "finetun")
_ENDINGS = ("", "s", "es", "e", "ed", "ing", "able", "ion", "ings", "ables")
_MARKING = frozenset(stem + ending for stem in _STEMS for ending in _ENDINGS) | {"skip", "skipped", "grad", "grads"}
_FILLER_WORDS = (
    "do does no not dont never non is in on to the this that of for be should must has have with without only "
    "include included compute computed calculate calculated require requires required detail details eot eos eod "
    "use used apply per turn turns message messages msg example "
    "examples sample samples record records token tokens answer answers response responses assistant completion "
    "output flag value out from as it scale scaling factor coefficient multiplier un non re fine"
)
_FILLERS = frozenset(_FILLER_WORDS.split())
_SWITCH_WORDS = (
    "label labels labelled labeled target targets include included keep kept drop dropped omit omitted freeze frozen "
    "detach detached predict predicted importance tune tuned gradient gradients optimise optimised optimize optimized"
)
_SWITCHES = _MARKING | frozenset(_SWITCH_WORDS.split())
_BESIDE_SWITCHES = _FILLERS | frozenset(["input", "inputs", "prompt", "prompts", "role", "roles", "history"])
"""Words that speak of what trains where a field's value is a switch or a number: `label`, `mask_history`."""


_LONGEST = 32
"""Letters of a word that may be several words written as one."""


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


def check_unknown(record: Mapping[str, Any], known: Collection[str]) -> list[Finding]:
    """A finding for each field of a record that is none of ours and sounds like a mark: none is ignored in silence.

    A `label` of a record is often that of a classification: only true and false make it a mark, as of preference data,
    whose rejected answers nobody wants to train.
    """
    marks = [field for field, value in record.items() if field not in known and is_unknown_mark(field, value)]
    return [("unknown-mark", f"{field} sounds like a mark of what trains, and is not known") for field in marks]


def is_unknown_mark(field: str, value: Any) -> bool:
    """Whether a record's field, if it is none of ours, is a mark in words that are not known (see `check_unknown`)."""
    return value is not None and (sounds_like_mark(field) or (isinstance(value, bool) and is_switch(field)))


@functools.lru_cache(maxsize=65536)
def sounds_like_mark(field: str) -> bool:
    """Whether a field's name, in whatever spelling, speaks of what trains and of nothing else.

    `Train`, `loss-mask`, `lossMask`, `no_loss`, `do_train`, `learn`, `masked`, `ignore` do; `train_split`, `weight_kg`
    and `ignore_case` speak of something else as well. The marks themselves, spelt right, do not.
    """
    if field in MARKS:
        return False
    parts = [_parts(word) for word in _words(field)]
    spoken = [part for of_word in parts for part in of_word]
    return all(parts) and bool(_MARKING.intersection(spoken))


def meant_as_mark(field: str, value: Any) -> bool:
    """Whether an unknown field of a message that is true, false or a number is a mark in other words.

    By a slip of the pen (`wieght`), or because its words say what is learnt (`label`, `is_target`, `mask_history`).
    """
    near = difflib.get_close_matches(field.lower(), MARKS, n=1, cutoff=0.8)
    slip = bool(near) and field not in MARKS
    return isinstance(value, bool | int | float) and (slip or is_switch(field))


@functools.lru_cache(maxsize=65536)
def is_switch(field: str) -> bool:
    """Whether a field's name says what is learnt, so that true, false or a number in it is a mark."""
    if field in MARKS:
        return False
    spoken = _words(field)
    return bool(_SWITCHES.intersection(spoken)) and (_SWITCHES | _BESIDE_SWITCHES).issuperset(spoken)


def _words(field: str) -> list[str]:
    """`doNotTrain`, `do_not_train` and `do-not-train` as their words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", field)]


def _parts(word: str) -> list[str]:
    """The known words that a word is or consists of (`donottrain`: do, not, train); empty where it does not."""
    if word in _MARKING or word in _FILLERS:
        return [word]
    if len(word) > _LONGEST:
        return []
    for end in range(len(word) - 1, 0, -1):
        if (word[:end] in _MARKING or word[:end] in _FILLERS) and (rest := _parts(word[end:])):
            return [word[:end], *rest]
    return []
