"""Aggregates of a sweep over tasks and over test questions, on a page."""

import math
from collections.abc import Sequence

import numpy as np

from jaxtune.reports import page
from jaxtune.reports.page import Column, Html, Section, tag
from jaxtune.runs.sweep_contrasts import Comparison, questions
from jaxtune.runs.sweep_items import has_halves, item_difference
from jaxtune.runs.sweeps import MATCH, FinishedArm, Measure, Sweep, option_name, task_measure
from jaxtune.science.aggregates import Scores, interquartile_mean, probability_of_improvement, stratified_bootstrap
from jaxtune.science.intervals import Estimate, mean_interval
from jaxtune.terminal.numbers import decimal, percent, signed

SHOWN = 24
"""Settings listed; the rest are counted."""
DRAWS = 500
"""Bootstrap samples of an interval."""


def aggregates_section(sweep: Sweep) -> Section | None:
    """Settings by the mean and the middle half of tasks and seeds, and differences by question; None with one task."""
    parts = [part for measure in sweep.measures for part in measure_parts(sweep, measure)]
    rows = item_rows(sweep, questions(sweep))
    if rows:
        columns = [Column("difference", number=False), Column("seeds"), Column("questions"), Column("points")]
        columns += [Column("± new seeds, these questions"), Column("± new seeds, new questions")]
        parts += [tag("h3", "Exact match by question"), page.table(columns, rows)]
    if not parts:
        return None
    lead = (
        "IQM is the mean of the middle half of all (task, seed) numbers, which one failed run or one odd task does not "
        "move, with a 95% bootstrap interval over seeds within tasks; P(better) is the probability that a run does "
        "better than one of the first setting on a task drawn at random (arXiv 2108.13264). Differences by question "
        "weigh every test question alike: the first interval is for new seeds on these very questions, the second for "
        "new questions of the kind as well."
    )
    return Section("aggregates", "Over tasks and questions", lead, parts)


def scores_section(sweep: Sweep) -> Section | None:
    """Settings by every metric beside exact match, mean over seeds; None where there is none."""
    found = [(task, metric) for task in sweep.tasks for metric in metrics_of(sweep, task)]
    if not found:
        return None
    columns = [Column("setting", number=False)]
    columns += [Column(f"{task}: {page.words(metric)}") for task, metric in found]
    table = np.stack([sweep.matrix(lambda arm, at=at: score_of(arm, *at)) for at in found], axis=-1)
    rows = []
    for setting, values in list(zip(sweep.settings, table, strict=True))[:SHOWN]:
        cells = [mean_interval(column.tolist()) for column in values.T]
        rows.append([sweep.name(setting), *map(estimate_cell, cells)])
    lead = "Scores of the test answers by task and metric: mean over seeds, with Student's 95% interval over them."
    return Section("scores", "Other metrics", lead, [page.table(columns, rows)])


def metrics_of(sweep: Sweep, task: str) -> list[str]:
    """Metrics of a task beside exact match."""
    return list(dict.fromkeys(name for arm in sweep.arms for name in arm.after.task_scores.get(task, {})))


def score_of(arm: FinishedArm, task: str, metric: str) -> float:
    """A metric of a run's task; NaN where it was not measured."""
    return arm.after.task_scores.get(task, {}).get(metric, math.nan)


def estimate_cell(estimate: Estimate) -> str:
    """A mean with half of its interval."""
    half = f" ± {decimal(estimate.half)}" if math.isfinite(estimate.half) else ""
    return decimal(estimate.mean) + half


def measure_parts(sweep: Sweep, measure: Measure) -> list[Html]:
    """The table of a measure with its title; nothing where fewer than two tasks are measured in all runs."""
    scores = {index: found for index in range(len(sweep.settings)) if (found := scores_of(sweep, index, measure)).size}
    if len(scores) < 2 or 0 not in scores or len(scores[0]) < 2:
        return []
    columns = [Column("setting", number=False), Column("mean"), Column("IQM"), Column("95%"), Column("P(better)")]
    rows = [setting_row(sweep, index, scores, measure) for index in list(scores)[:SHOWN]]
    hidden = len(scores) - len(rows)
    note = [tag("p", f"{hidden} more settings are in results.csv.", class_="note")] if hidden else []
    return [tag("h3", measure.title), page.table(columns, rows), *note]


def scores_of(sweep: Sweep, index: int, measure: Measure) -> Scores:
    """Numbers [tasks, seeds] of a setting, tasks and seeds with a gap left out."""
    by_task = np.stack([sweep.matrix(task_measure(task, measure).pick)[index] for task in sweep.tasks])
    by_task = by_task[:, np.isfinite(by_task).any(axis=0)]
    return by_task[np.isfinite(by_task).all(axis=1)]


def setting_row(sweep: Sweep, index: int, scores: dict[int, Scores], measure: Measure) -> list[object]:
    """Mean, interquartile mean and probability of improvement of a setting."""
    own, first = scores[index], scores[0]
    interval: object = "–"
    if own.shape[1] > 1:
        low, high = stratified_bootstrap(own[None], lambda drawn: interquartile_mean(drawn[0]), draws=DRAWS)
        interval = f"{measure.form(low)} to {measure.form(high)}"
    better = math.nan
    if index and len(own) == len(first):
        sign = 1 if measure.higher_is_better else -1
        better = probability_of_improvement(sign * own, sign * first)
    name = sweep.name(sweep.settings[index])
    return [name, measure.form(float(own.mean())), measure.form(interquartile_mean(own)), interval, percent(better)]


def item_rows(sweep: Sweep, asked: Sequence[Comparison]) -> list[list[object]]:
    """Differences by question, for contrasts whose runs all kept their answers under two seeds or more."""
    rows: list[list[object]] = []
    for question in asked[:SHOWN]:
        found = item_difference(sweep, question)
        if found is None or not has_halves(found):
            continue
        name = f"{option_name(question.axis)} {question.value} against {question.reference}".strip()
        halves = (MATCH.form(half) for half in (found.half_new_seeds, found.half_new_items))
        rows.append([name, found.seeds, found.clusters, signed(found.mean, MATCH.digits, MATCH.scale), *halves])
    return rows
