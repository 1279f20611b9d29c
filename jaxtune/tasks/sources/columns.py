"""Rows of columnar files as records: what Arrow's tables say of themselves, and what their rows are as plain values."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxtune.errors import first_line
from jaxtune.tasks.problems import Finding, Problem, RecordError
from jaxtune.tasks.sources.jsonl import TOO_DEEP
from jaxtune.tasks.values import MAX_DEPTH


def without_nulls(value: Any) -> Any:
    """A value without the null fields of its objects, at all depths.

    Arrow gives every object of a column the same fields and fills those that were absent with null: tool-call
    arguments {"city": "Rome"} and {"x": 1} in one column come back as {"city": "Rome", "x": null} and
    {"city": null, "x": 1}. Taking the nulls out restores them.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns Arrow's errors about a file's content into a `RecordError` that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError([Problem(rule="damaged-file", message=first_line(error), file=name)]) from error


def check_schema(schema: Any, name: str) -> None:
    """Raises `RecordError` when two columns, or two fields of one object, share a name, or objects nest too deeply."""
    findings = list(_schema_findings(list(schema), "", 1))
    if findings:
        raise RecordError(Problem(rule=rule, message=message, file=name) for rule, message in findings)


def _schema_findings(fields: list[Any], path: str, depth: int) -> Iterator[Finding]:
    if depth > MAX_DEPTH:
        yield TOO_DEEP
        return
    names = [field.name for field in fields]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "duplicate-key", f"{names.count(name)} columns are called {path + name!r}"
    for field in fields:
        inner = [field.type.field(k) for k in range(field.type.num_fields)]
        yield from _schema_findings(inner, f"{path}{field.name}.", depth + 1)


def row(table: Any, i: int, file: str, line: int) -> dict[str, Any]:
    """Row i of a table or record batch; `file` and `line` are for messages."""
    try:
        (record,) = table.slice(i, 1).to_pylist()
    except UnicodeDecodeError as error:
        problem = Problem(rule="not-utf-8", message=f"a text column: {error}", file=file, line=line)
        raise RecordError([problem]) from error
    except (ValueError, OverflowError, KeyError) as error:  # a date beyond the year 9999, a time zone that is none
        message = f"a value has no form in Python: {first_line(error)}"
        raise RecordError([Problem(rule="wrong-type", message=message, file=file, line=line)]) from error
    return without_nulls(record)
