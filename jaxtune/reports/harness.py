"""Tasks of lm-eval on a page: every metric before and after tuning, with its standard error."""

import math
from collections.abc import Sequence

from jaxtune.reports import page
from jaxtune.reports.page import Column, Section
from jaxtune.runs.harness import HarnessResult, harness_results
from jaxtune.runs.history import Run
from jaxtune.terminal.numbers import decimal, signed


def harness_section(runs: Sequence[Run]) -> Section | None:
    """Table of the tasks of every run; None where none was measured by lm-eval."""
    rows = [[run.name, *cells(one)] for run in runs for one in harness_results(run)]
    if not rows:
        return None
    columns = [Column("run", number=False), Column("task", number=False), Column("metric", number=False)]
    columns += [Column(name) for name in ("before", "after", "change", "questions")]
    lead = (
        "Measured by lm-eval on the model before and after tuning; ± is lm-eval's standard error, over questions and "
        "for one model. Every question is in lm_eval.json."
    )
    return Section("lm-eval", "lm-eval", lead, [page.table(columns, rows)])


def cells(one: HarnessResult) -> list[object]:
    """A metric's cells."""
    if one.failed:
        return [one.task, f"failed: {one.failed}", "", "", "", ""]
    side = lambda value, error: decimal(value) + (f" ± {decimal(error)}" if math.isfinite(error) else "")
    before, after = side(one.before, one.error_before), side(one.after, one.error_after)
    return [one.task, one.metric, before, after, signed(one.after - one.before, 3), f"{one.questions:,}"]
