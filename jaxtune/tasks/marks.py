"""Marks of what trains: fields of messages and records that say how much an answer weighs in the loss."""

import difflib
import functools
import re
import unicodedata
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
_MARKING = frozenset(stem + ending for stem in _STEMS for ending in _ENDINGS) | {
    *("skip", "skipped", "grad", "grads", "learnt", "trainability", "backpropagate", "backpropagation"),
}
_FILLER_WORDS = (
    "do does no not dont never non is in on to the this that of for be should must has have with without only "
    "include included compute computed calculate calculated require requires required detail details eot eos eod "
    "use used apply per turn turns message messages msg example "
    "examples sample samples record records token tokens answer answers response responses assistant completion "
    "output flag value out from as it scale scaling factor coefficient multiplier un non re fine can allow allowed "
    "disable disabled enable enabled role roles"
)
_FILLERS = frozenset(_FILLER_WORDS.split())
_SWITCH_WORDS = (
    "label labels labelled labeled target targets include included keep kept drop dropped omit omitted freeze frozen "
    "detach detached predict predicted importance tune tuned gradient gradients optimise optimised optimize optimized "
    "discard discarded reject rejected chosen preferred backward prop sft"
)
_SWITCHES = _MARKING | frozenset(_SWITCH_WORDS.split())
_BESIDE_SWITCHES = _FILLERS | {
    *("input", "inputs", "prompt", "prompts", "role", "roles", "history", "stop", "back"),
}
"""Words that speak of what trains where a field's value is a switch or a number: `label`, `mask_history`."""
_BESIDE_NUMBERS = _FILLERS | {
    *("label", "labels", "target", "targets", "importance", "input", "inputs", "prompt", "prompts", "step", "steps"),
    *("ce", "nll", "coef"),
}
"""Words beside those of `_MARKING` that leave a record's field of numbers one of weights: `label_mask`."""


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
    whose rejected answers nobody wants to train. Where a record has no mark of its own, neither may be hidden in an
    object beside its messages (`"metadata": {"train": false}`).
    """
    marks = [field for field, value in record.items() if field not in known and is_unknown_mark(field, value)]
    if not given_marks(record):
        marks += [name for field, value in record.items() for name in switches_inside(field, value)]
    return [("unknown-mark", f"{field} sounds like a mark of what trains, and is not known") for field in marks]


def switches_inside(field: str, value: Any) -> list[str]:
    """Paths of the marks, in whatever words, that are true or false in an object under a field."""
    inside = value.items() if isinstance(value, Mapping) else ()
    return [
        f"{field}.{name}"
        for name, switch in inside
        if isinstance(switch, bool) and isinstance(name, str) and (name in MARKS or sounds_like_mark(name))
    ]


def is_unknown_mark(field: str, value: Any) -> bool:
    """Whether a record's field, if it is none of ours, is a mark in words that are not known (see `check_unknown`)."""
    if value is None or sounds_like_mark(field):
        return value is not None
    if isinstance(value, bool) and is_switch(field):
        return True
    return _is_numeric(value) and (_weighs(field) or (not isinstance(value, list) and is_slip(field)))


def may_be_mark(field: str) -> bool:
    """Whether some value makes a field of a record a mark, known or not."""
    return field in MARKS or sounds_like_mark(field) or is_switch(field) or _weighs(field) or is_slip(field)


def _is_numeric(value: Any) -> bool:
    """Whether a value is a number, true or false, or a list of them."""
    return isinstance(value, int | float) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)
    )


@functools.lru_cache(maxsize=65536)
def sounds_like_mark(field: str) -> bool:
    """Whether a field's name, in whatever spelling, speaks of what trains and of nothing else.

    `Train`, `loss-mask`, `lossMask`, `no_loss`, `do_train`, `learn`, `masked`, `ignore` do; `train_split`, `weight_kg`
    and `ignore_case` speak of something else as well. The marks themselves, spelt right, do not.
    """
    if field in MARKS:
        return False
    parts = [_parts(word) for word in name_words(field)]
    spoken = [part for of_word in parts for part in of_word]
    return all(parts) and bool(_MARKING.intersection(spoken))


def meant_as_mark(field: str, value: Any) -> bool:
    """Whether an unknown field of a message that is true, false, a number or a list of them is a mark in other words.

    By a slip of the pen (`wieght`), because its words say what is learnt (`label`, `is_target`, `mask_history`), or
    because one of them is of training (`roles_to_train`): messages have no other use for such a switch.
    """
    if field in MARKS:
        return False
    of_training = bool(_MARKING.intersection(name_words(field)))
    if isinstance(value, list):
        return of_training
    near = difflib.get_close_matches(field.lower(), MARKS, n=1, cutoff=0.8)
    return isinstance(value, int | float) and (bool(near) or of_training or is_switch(field))


@functools.lru_cache(maxsize=65536)
def is_slip(field: str) -> bool:
    """Whether a field's name is a mark with two neighbouring letters exchanged: `trian`, `wieght`.

    A record may have fields of any name, and one letter more, fewer or another makes a word of many a mark (`height`,
    `rain`, `trait`).
    """
    return field not in MARKS and any(_exchanged(field.lower(), mark) for mark in MARKS)


def _exchanged(word: str, mark: str) -> bool:
    """Whether two neighbouring letters of a mark, exchanged, give the word."""
    swapped = (mark[:i] + mark[i + 1] + mark[i] + mark[i + 2 :] for i in range(len(mark) - 1))
    return word != mark and word in swapped


@functools.lru_cache(maxsize=65536)
def _weighs(field: str) -> bool:
    """Whether a field's name says that numbers in it are weights or a mask of what trains."""
    if field in MARKS:
        return False
    spoken = name_words(field)
    return bool(_MARKING.intersection(spoken)) and (_MARKING | _BESIDE_NUMBERS).issuperset(spoken)


@functools.lru_cache(maxsize=65536)
def is_switch(field: str) -> bool:
    """Whether a field's name says what is learnt, so that true, false or a number in it is a mark."""
    if field in MARKS:
        return False
    spoken = name_words(field)
    return bool(_SWITCHES.intersection(spoken)) and (_SWITCHES | _BESIDE_SWITCHES).issuperset(spoken)


def name_words(field: str) -> list[str]:
    """`doNotTrain`, `do_not_train` and `do-not-train` as their words, wide letters as plain ones."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", field) if c.isprintable() and c not in "'\u2019")
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", plain)]


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
