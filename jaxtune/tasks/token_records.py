"""Records of token ids: which of them are padding, which train, and what is wrong with them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.batch import Example
from jaxtune.tasks.marks import MARKS, check_marks, is_unknown_mark, is_weight, name_words, weight_of
from jaxtune.tasks.problems import Finding

WEIGHT_FIELDS = ("loss_weights", "weights", "loss_mask", "labels", "completion_mask", "assistant_masks")
"""Fields with one number per token; in `labels`, -100 is weight 0 and all else weight 1. The last two are TRL's."""

MASKS_OF_ELSE = ("attention_mask", "special_tokens_mask")
"""Masks beside them that a record of token ids may have; the second says nothing of padding or training."""
NUMBERED = {
    *("segmentid", "segmentids", "sequenceid", "sequenceids", "seqid", "seqids", "seqidx"),
    *("docid", "docids", "documentid", "documentids"),
}
"""Fields, without what is no letter, that give each token the number of its example in a row of several."""
COUNTED = ("seqlengths", "seqlens", "sequencelengths", "sequencelens")
"""Fields that list the lengths of the examples in a row; in those that begin with `cu_seq` they are summed up."""

LARGEST_ID = 2**31 - 1


def example_of(record: Mapping[str, Any]) -> Example:
    """The ids and weights of a record that `check_tokens` found free of errors, without its padding."""
    kept = [i for i, flag in enumerate(_attended(record)) if flag]
    weights = np.asarray(_weights(record, _weight_fields(record)[0]), np.float32)[kept]
    scale = weight_of(_own_marks(record))
    return Example(
        tokens=np.asarray(tokens_of(record), np.int32)[kept],
        loss_weights=weights if scale is None else weights * np.float32(scale),
    )


def tokens_of(record: Mapping[str, Any]) -> Any:
    """The ids, under either of their names."""
    return record["tokens"] if "tokens" in record else record["input_ids"]


def check_tokens(record: Mapping[str, Any]) -> list[Finding]:
    """Problems of a record of token ids."""
    fields = _weight_fields(record)
    if unknown := _unknown_masks(record):
        known = f"padding is told by attention_mask, what trains by {', '.join(WEIGHT_FIELDS)}"
        return [("unknown-mark", f"{name} is a mask that is not known: {known}") for name in unknown]
    if record.get("tokens") is not None and record.get("input_ids", record["tokens"]) not in (None, record["tokens"]):
        return [("bad-tokens", "tokens and input_ids are not the same ids; keep one of them")]
    if not fields:
        return [("missing-field", f"tokens without weights; give one of {', '.join(WEIGHT_FIELDS)}")]
    tokens = tokens_of(record)
    lists = [*fields, *(name for name in ("attention_mask", "position_ids") if record.get(name) is not None)]
    if not isinstance(tokens, list) or not all(isinstance(record[name], list) for name in lists):
        return [("wrong-type", f"tokens and {', '.join(lists)} must be lists of numbers")]
    for name in lists:
        if len(record[name]) != len(tokens):
            return [("bad-tokens", f"{len(tokens)} tokens, but {len(record[name])} numbers in {name}")]
    attended = _attended(record)
    if not all(type(flag) in (int, bool) and flag in (0, 1) for flag in attended):
        return [("bad-tokens", "attention_mask holds something other than 0 and 1")]
    kept = [i for i, flag in enumerate(attended) if flag]
    if not all(type(tokens[i]) is int and 0 <= tokens[i] <= LARGEST_ID for i in kept):
        return [("bad-tokens", "a token is not an integer from 0 to 2^31 - 1")]
    return check_marks(_own_marks(record), "") or _check_weights(record, fields, kept) or _check_positions(record, kept)


def _check_weights(record: Mapping[str, Any], fields: Sequence[str], kept: Sequence[int]) -> list[Finding]:
    tokens = tokens_of(record)
    labels = record["labels"] if "labels" in fields else []
    wrong = [i for i in kept if labels and labels[i] != -100 and labels[i] != tokens[i]]
    if wrong:
        label, token = labels[wrong[0]], tokens[wrong[0]]
        return [("bad-tokens", f"label {label} stands at token {token}; labels are the tokens or -100")]
    stated = {name: [_weights(record, name)[i] for i in kept] for name in fields}
    for name, weights in stated.items():
        if not all(map(is_weight, weights)):
            return [("bad-weight", f"{name} holds a number that is not finite, below 0, or beyond all measure")]
    first, *others = stated
    for name in others:
        if stated[name] != stated[first]:
            return [("bad-tokens", f"{first} and {name} say different things of what trains; keep one of them")]
    if weight_of(_own_marks(record)) == 0 or not any(stated[first][1:]):
        return [("no-trained-token", "no token after the first has a weight above 0")]
    return []


def _check_positions(record: Mapping[str, Any], kept: Sequence[int]) -> list[Finding]:
    """Several examples in one record, by whatever field tells of them, would see each other."""
    own = "give each packed example as a record of its own"
    for name, value in record.items():
        if isinstance(value, list) and (num := _num_packed(name, value, kept)) > 1:
            return [("bad-tokens", f"{name} tells of {num} examples: {own}")]
    if record.get("position_ids") is None:
        return []
    positions = [record["position_ids"][i] for i in kept]
    if positions == [positions[0] + k for k in range(len(positions))]:
        return []
    return [("bad-tokens", f"position_ids do not count up by one: {own}")]


def _num_packed(field: str, numbers: Sequence[Any], kept: Sequence[int]) -> int:
    """Examples that a field of a row tells of; 1 for a field that tells of none, and where only padding is apart."""
    letters = re.sub("[^a-z]", "", field.lower())
    if letters in NUMBERED and len(numbers) > max(kept):
        return len({repr(numbers[i]) for i in kept})
    if letters.startswith("cuseq"):
        return len(numbers) - 1
    return len(numbers) if letters in COUNTED else 1


def _unknown_masks(record: Mapping[str, Any]) -> list[str]:
    """Fields with a number per token that are named a mask, and are none that is read."""
    length = len(tokens) if isinstance(tokens := tokens_of(record), list) else 0
    return [
        name
        for name, value in record.items()
        if name not in (*WEIGHT_FIELDS, *MARKS, *MASKS_OF_ELSE) and {"mask", "masks"}.intersection(name_words(name))
        if isinstance(value, list) and len(value) == length and not is_unknown_mark(name, value)
    ]


def _weight_fields(record: Mapping[str, Any]) -> list[str]:
    return [name for name in WEIGHT_FIELDS if record.get(name) is not None and not _is_mark(name, record[name])]


def _is_mark(name: str, value: Any) -> bool:
    """Whether a field speaks of the record: of the marks, `loss_mask` may speak of its tokens."""
    return name in MARKS and not (name in WEIGHT_FIELDS and isinstance(value, list))


def _own_marks(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if _is_mark(name, value)}


def _weights(record: Mapping[str, Any], field: str) -> Sequence[Any]:
    values = record[field]
    return [float(label != -100) for label in values] if field == "labels" else values


def _attended(record: Mapping[str, Any]) -> Sequence[Any]:
    mask = record.get("attention_mask")
    return [1] * len(tokens_of(record)) if mask is None else mask
