"""The splits of a task: sources of their own, or shares of its records."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.values import type_name

TRAIN, VALIDATION, TEST = "train", "validation", "test"
"""Names of the splits that are trained on, watched while training, and asked before and after; no other is read."""

OTHER_NAMES = {
    TRAIN: ("training", "trn"),
    VALIDATION: ("valid", "val", "dev", "development", "eval", "evaluation", "validate"),
    TEST: ("testing", "tst", "tests"),
}
"""By split: what others call it."""


def meant(name: str) -> str | None:
    """The split that a name is another word for; None where it is none of them."""
    word = name.strip().lower()
    return next((split for split, names in OTHER_NAMES.items() if word in (split, *names)), None)


def complete_splits(task: str, records: RecordSource | None, splits: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a task by name, each a source or a share, with the rest of `records` as train; or `UserError`."""
    if not isinstance(splits, Mapping):
        what = f"{type_name(splits)}" if not isinstance(splits, RecordSource) else f"the source {splits.name!r}"
        raise UserError(f"task {task}: splits must map names to sources, {{'train': from_jsonl(...)}}; got {what}")
    if records is not None and not isinstance(records, RecordSource):
        raise UserError(f"task {task}: records must be a source of records; {_as_source(records)}")
    for split, value in splits.items():
        _check_name(task, split, splits)
        if not isinstance(value, RecordSource) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(
                f"task {task}: split {split!r} must be a source or a share of `records`; {_as_source(value)}"
            )
    if not splits and records is None:
        raise UserError(f"task {task} has no data: give splits={{'train': from_jsonl(...)}} or records=")
    shares = {split: value for split, value in splits.items() if not isinstance(value, RecordSource)}
    if records is not None:
        return _with_rest(task, splits, shares)
    if shares:
        raise UserError(f"task {task}: splits {sorted(shares)} are shares of `records`, but `records` is not given")
    return dict(splits)


def _check_name(task: str, split: Any, splits: Mapping[str, Any]) -> None:
    """Raises `UserError` for a split that nothing would read while the one that it means is missing."""
    if not isinstance(split, str) or not split:
        raise UserError(f"task {task}: a split is called by a string such as 'train', got {split!r}")
    wanted = meant(split)
    if wanted is not None and wanted not in splits:
        raise UserError(f"task {task}: nothing reads a split called {split!r}; call it {wanted!r}")


def _as_source(value: Any) -> str:
    """What was given in the place of a source, and what was probably meant."""
    opened = f"from_jsonl({value!r})" if isinstance(value, str) else "from_list(...)"
    if isinstance(value, str) and value.endswith(".parquet"):
        opened = f"from_parquet({value!r})"
    shown = repr(value) if isinstance(value, str | int | float) else type_name(value)
    return f"got {shown}; write {opened}"


def _with_rest(task: str, splits: Mapping[str, Any], shares: dict[str, Any]) -> dict[str, Any]:
    """Shares and sources, with what is left of the records as train."""
    given = shares.pop(TRAIN, None)
    if TRAIN in splits and given is None:
        raise UserError(f"task {task}: with records=, the train split is what the others leave; remove it from splits=")
    for split, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"task {task}: split {split!r} must be a source or a share between 0 and 1, got {share!r}")
    rest = 1 - math.fsum(float(share) for share in shares.values())
    if rest <= 0:
        raise UserError(
            f"task {task}: the splits {sorted(shares)} take {1 - rest:g} of the records; leave some to train"
        )
    if given is not None and not math.isclose(given, rest):
        raise UserError(
            f"task {task}: train={given!r} with {shares} does not add up to 1; leave train out: it is the rest"
        )
    own = {split: value if isinstance(value, RecordSource) else float(value) for split, value in splits.items()}
    return own | {TRAIN: rest}
