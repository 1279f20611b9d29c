"""Results of lm-eval in a run: its metrics before and after tuning."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxtune.runs.history import Run
from jaxtune.runs.results import measured
from jaxtune.storage.documents import number

ERROR = "_stderr"
"""Part of a metric's name that makes it the metric's standard error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessResult:
    """A metric of a task of lm-eval before and after tuning; NaN where it was not measured."""

    task: str
    metric: str
    before: float
    after: float
    error_before: float
    error_after: float
    questions: int
    failed: str = ""
    """Why the task could not be measured; it then has no metric."""


def harness_results(run: Run) -> list[HarnessResult]:
    """Every metric of every task of lm-eval, in the order of the run."""
    before, after = (measured(run, when).get("lm_eval", {}) for when in ("before", "after"))
    found = []
    for task in dict.fromkeys([*before, *after]):
        old, new = before.get(task, {}), after.get(task, {})
        questions = int(new.get("n", old.get("n", 0)))
        failed = str(new.get("error") or old.get("error") or "")
        names = metrics_of(old | new)
        for metric in names or [""] * bool(failed):
            values = {
                f"{name}{side}": number(scores.get(key))
                for name, key in (("", metric), ("error_", error_name(metric)))
                for side, scores in (("before", old), ("after", new))
            }
            result = HarnessResult(
                task=task, metric=metric, questions=questions, failed="" if metric else failed, **values
            )
            found.append(result)
    return found


def metrics_of(scores: Mapping[str, Any]) -> list[str]:
    """Names of a task's metrics: neither errors nor counts."""
    return [name for name in scores if ERROR not in name and name not in ("n", "error")]


def error_name(metric: str) -> str:
    """Name of the standard error of a metric: that of `exact_match (flexible)` is `exact_match_stderr (flexible)`."""
    name, space, filtered = metric.partition(" ")
    return f"{name}{ERROR}{space}{filtered}"


def harness_columns(run: Run) -> dict[str, float]:
    """Metrics after tuning as columns of a table: `lm_eval/TASK/METRIC`."""
    found = [one for one in harness_results(run) if one.metric and math.isfinite(one.after)]
    return {f"lm_eval/{one.task}/{one.metric}": one.after for one in found}
