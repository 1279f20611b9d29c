"""Record shapes: telling them apart by their fields, and fields under other names."""

import collections
import enum
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.errors import UserError
from jaxtune.tasks.marks import MARKS
from jaxtune.tasks.problems import Finding, Problem, RecordError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.token_records import WEIGHT_FIELDS


class Shape(enum.Enum):
    """Shape of a record: the fields that spell a conversation."""

    MESSAGES = "messages"
    """{"messages": [{"role": ..., "content": ...}, ...]}, or the same under `conversations`"""
    SHAREGPT = "sharegpt"
    """{"conversations": [{"from": "human", "value": ...}, ...]}"""
    ALPACA = "alpaca"
    """{"instruction": ..., "input": ..., "output": ...}; `input`, `system` and `history` may be absent"""
    PROMPT_COMPLETION = "prompt_completion"
    """{"prompt": ..., "completion": ...}: two strings, or two lists of messages; `system` may be given"""
    TOKENS = "tokens"
    """{"tokens": [...], "loss_weights": [...]}: ids that are trained as they are"""
    FIELDS = "fields"
    """Named fields that the task's templates turn into a conversation"""


CANONICAL_FIELDS = frozenset(
    ("id", "messages", "conversations", "instruction", "input", "output", "history", "prompt", "completion")
    + ("system", "tools", "tokens", "attention_mask", *WEIGHT_FIELDS, *MARKS)
)
"""Names that a column map may give to columns."""


def shape_of(record: Mapping[str, Any]) -> Shape | None:
    """The shape that a record's field names show; None when they show none."""
    if "messages" in record:
        return Shape.MESSAGES
    if "conversations" in record:
        turns = untransposed(record["conversations"])
        openai = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]
        return Shape.MESSAGES if openai else Shape.SHAREGPT
    if "tokens" in record or "input_ids" in record:
        return Shape.TOKENS
    if "instruction" in record and "output" in record:
        return Shape.ALPACA
    if "prompt" in record and ("completion" in record or "response" in record):
        return Shape.PROMPT_COMPLETION
    return None


def detect(source: RecordSource, columns: Mapping[str, str] | None = None, *, sample: int = 100) -> Shape:
    """The shape of most of a source's first `sample` readable records; raises when none has a known shape."""
    unreadable: list[Problem] = []
    records: list[Mapping[str, Any]] = []
    for i in range(min(sample, len(source))):
        try:
            records.append(source[i])
        except RecordError as error:
            unreadable.extend(error.problems)
    if unreadable and not records:
        raise RecordError(unreadable[:20])
    return majority(records, source.name, columns)


def majority(records: Sequence[Mapping[str, Any]], name: str, columns: Mapping[str, str] | None = None) -> Shape:
    """The shape of most of some records; raises `RecordError` about the file `name` when none has a known one."""
    if not records:
        raise RecordError([Problem(rule="empty-file", message="there is no record", file=name)])
    seen = collections.Counter(shape_of(rename(record, columns)[0]) for record in records)
    known = [shape for shape, _ in seen.most_common() if shape is not None]
    if known:
        return known[0]
    fields = sorted(set(itertools.chain.from_iterable(records)))
    message = f"no record shape is known with the fields {fields}"
    raise RecordError([Problem(rule="unknown-shape", message=message, file=name)])


def rename(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> tuple[Mapping[str, Any], list[Finding]]:
    """The record with canonical field names: `columns` maps canonical name -> column; a.b reaches into objects."""
    if not columns:
        return record, []
    found: dict[str, Any] = {}
    findings: list[Finding] = []
    for field, column in columns.items():
        try:
            found[field] = look_up(record, column)
        except KeyError:
            findings.append(("missing-field", f"no column {column!r} (mapped to {field}); it has {sorted(record)}"))
    return {**record, **found}, findings


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Raises `UserError` when a column map names a field that no shape has."""
    unknown = sorted(set(columns or ()) - CANONICAL_FIELDS)
    if unknown:
        raise UserError(
            f"columns= maps {unknown}, which no record shape has; its keys are among {sorted(CANONICAL_FIELDS)}, "
            "its values are your columns"
        )


def look_up(record: Mapping[str, Any], path: str) -> Any:
    """The value at a field name, or at a dotted path of them; raises KeyError. A name with a dot in it comes first."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def record_id(record: Any, columns: Mapping[str, str] | None = None) -> str | None:
    """The record's id as text, where it has a usable one."""
    if not isinstance(record, Mapping):
        return None
    try:
        value = look_up(record, (columns or {}).get("id", "id"))
    except KeyError:
        return None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def untransposed(value: Any) -> Any:
    """{"role": [a, b], "content": [c, d]}, as TFDS and Arrow store a list of objects, as that list of objects."""
    columns = isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values())
    if not columns or len({len(column) for column in value.values()}) != 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
