"""Runs side by side: what they reached, their curves, their answers question by question."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.errors import UserError
from jaxtune.reports import page
from jaxtune.reports.bars import Whisker, whiskers
from jaxtune.reports.charts import Series, line_chart
from jaxtune.reports.drawing import XAxis, YAxis, shorten
from jaxtune.reports.heatmap import Grid, heat_table
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, plain_text, tag
from jaxtune.reports.training import LOSS, loss_series, subheading
from jaxtune.runs.harness import harness_columns
from jaxtune.runs.history import Run, TrainRow
from jaxtune.runs.results import reached, status, when_and_where
from jaxtune.runs.seal import read_unchanged
from jaxtune.science.intervals import Estimate, mean_of_estimates, paired_proportions
from jaxtune.storage.documents import Json, check_writable, dotted, replace_file
from jaxtune.terminal.numbers import decimal, percent, signed


def axis_name(axis: str) -> str:
    """The last part of an option's name, in words."""
    return axis.rpartition(".")[2].replace("-", " ").replace("_", " ")


def compare_table(runs: Sequence[Run]) -> list[Json]:
    """One row per run: name, the options in which the runs differ, and what was reached."""
    differing = differing_options([run.config for run in runs])
    rows = []
    for run in runs:
        flat, after = dotted(run.config), reached(run)
        row: Json = {"name": run.name, "status": run.summary.get("status", "not finished")}
        row |= {option: flat.get(option) for option in differing}
        row |= {"steps": run.summary.get("steps", run.train[-1].step if run.train else 0)}
        row |= {"macro_loss": after.loss, "macro_exact_match": after.exact_match}
        scored = after.flat(after.task_exact_match)
        row |= {name: value for name, value in scored.items() if not name.startswith("loss/")} | harness_columns(run)
        rows.append(row)
    return rows


def differing_options(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options that are not the same in all runs, in order of appearance."""
    flats = [dotted(config) for config in configs]
    names = dict.fromkeys(name for flat in flats for name in flat)
    return [name for name in names if any(flat.get(name) != flats[0].get(name) for flat in flats)]


def write_comparison(run_dirs: Sequence[Path | str], out: Path) -> Path:
    """Write one page over several runs; returns its path."""
    check_writable(out)
    runs = [read_unchanged(folder) for folder in run_dirs]
    if len(runs) < 2:
        raise UserError("a comparison takes at least two run folders; one alone has its own report")
    replace_file(out, render_comparison(runs).encode())
    return out


def render_comparison(runs: Sequence[Run]) -> str:
    """The page over several runs."""
    sections = [
        runs_section(runs),
        curves_section(runs),
        training_section(runs),
        against_first_section(runs),
    ]
    return page.page(
        " · ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        kicker=" · ".join(["jaxtune comparison", *when_and_where(runs)]),
        lead=f"{len(runs)} runs side by side; the first, {runs[0].name}, is the reference.",
        top="",
        sections=[section for section in sections if section is not None],
        foot="Written by jaxtune from " + ", ".join(run.place for run in runs),
    )


def runs_section(runs: Sequence[Run]) -> Section:
    """Section of the runs: the options that differ and the results, tasks as a shaded table."""
    differing = [name for name in differing_options([run.config for run in runs]) if name != "name"][:8]
    columns = [Column("Run", number=False), *(Column(axis_name(name), title=name) for name in differing)]
    columns += [Column("steps"), Column("validation loss"), Column("exact match"), Column("status", number=False)]
    rows = []
    for index, run in enumerate(runs):
        flat, after = dotted(run.config), reached(run)
        steps = run.summary.get("steps", run.train[-1].step if run.train else 0)
        rows.append(
            [page.swatch(index, run.name), *(plain_text(flat.get(name)) for name in differing), f"{steps:,}"]
            + [decimal(after.loss), percent(after.exact_match), status(run)]
        )
    tasks = list(dict.fromkeys(task for run in runs for task in reached(run).task_exact_match))[:TASKS_DRAWN]
    parts: list[object] = [page.table(columns, rows)]
    if not differing:
        parts.append(tag("p", "All options of these runs are the same:", class_="note"))
        flat = dotted(runs[0].config)
        shown = [(name, plain_text(value)) for name, value in flat.items() if not name.startswith("tasks")]
        parts.append(page.details(f"{len(shown)} options", page.facts(shown)))
    if tasks:
        scores = np.array([[reached(run).task_exact_match.get(task, math.nan) for task in tasks] for run in runs])
        grid = Grid(
            title="Exact match by task (%)",
            rows=[run.name for run in runs],
            columns=tasks,
            row_label="run",
            column_label="task",
            mean=scores,
            spread=np.full(scores.shape, math.nan),
            higher_is_better=True,
            framed=False,
            form=lambda value: f"{100 * value:.1f}",
        )
        parts.append(tag("div", page.figure(heat_table(grid), caption=grid.title), style="margin-top:24px"))
    lead = "Means over tasks. Columns after the name are the options in which the runs differ."
    return Section("runs", "Runs", lead, parts)


def line_of(index: int, count: int) -> str:
    """Colour and width of a run's line: the first ones are the widest, so that equal runs show beneath one another."""
    return f"{page.colour(index)};--width:{1.8 + 1.7 * max(0, min(count, 5) - 1 - index):g}"


def curves_section(runs: Sequence[Run]) -> Section | None:
    """Validation loss over steps, all runs in one chart, then task by task."""
    drawn = [(index, run) for index, run in enumerate(runs) if run.evals]
    if not drawn:
        return None
    overall = [
        Series(
            name=shorten(run.name, 24),
            x=[row.step for row in run.evals],
            y=[row.macro_loss if math.isfinite(row.macro_loss) else row.loss for row in run.evals],
            colour=line_of(index, len(runs)),
        )
        for index, run in drawn
    ]
    by_tokens = [
        dataclasses.replace(one, x=[tokens_at(run, step) for step in one.x])
        for one, (_, run) in zip(overall, drawn, strict=True)
    ]
    tasks = list(dict.fromkeys(task for _, run in drawn for row in run.evals for task in row.task_loss))[:TASKS_DRAWN]
    panels = []
    for task in tasks:
        series = []
        for index, run in drawn:
            rows = [row for row in run.evals if task in row.task_loss]
            losses = [row.task_loss[task] for row in rows]
            colour = line_of(index, len(runs))
            series.append(Series(name=run.name, x=[row.step for row in rows], y=losses, colour=colour))
        drawing = line_chart(series, width=250, height=150, x=XAxis(named=False), y=LOSS)
        panels.append(page.figure(Html(drawing), caption=task))
    entries = [("stroke", page.colour(index), run.name) for index, run in drawn]
    note = "nats per token; logarithmic where it falls tenfold"
    chart = lambda width: line_chart(overall, width=width, height=280, y=LOSS)
    parts = [page.legend(entries), page.wide_figure(chart, caption="Mean of tasks", note=note)]
    if any(run.train for _, run in drawn):
        chart = lambda width: line_chart(by_tokens, width=width, height=220, x=XAxis(label="tokens"), y=LOSS)
        parts.append(page.wide_figure(chart, caption="The same over the tokens trained on", note=note))
    parts += [subheading("By task", "each panel has its own scale"), tag("div", *panels, class_="grid4")]
    return Section(
        "curves", "Validation loss", "By step, on the same validation examples where the tasks are the same.", parts
    )


def tokens_at(run: Run, step: int | float) -> int:
    """Tokens that a run had trained on after so many steps."""
    return next((row.tokens for row in reversed(run.train) if row.step <= step), 0)


def training_section(runs: Sequence[Run]) -> Section | None:
    """Training loss, learning rate and throughput of all runs over one another."""
    drawn = [(index, run) for index, run in enumerate(runs) if run.train]
    if not drawn:
        return None
    entries = [("stroke", page.colour(index), run.name) for index, run in drawn]
    parts: list[object] = [page.legend(entries)]
    wide = lambda width: overlay(drawn, lambda row: row.loss, width=width, height=250, y=LOSS, smoothed=True)
    note = "nats per trained token of each run's own mixture, smoothed"
    parts.append(page.wide_figure(wide, caption="Training loss", note=note))
    small: list[tuple[str, str, Callable[[TrainRow], float], bool]] = [
        ("Learning rate", "", lambda row: row.learning_rate, False),
        ("Gradient norm", "before clipping", lambda row: row.grad_norm, True),
        ("Tokens per second", "all real ones", lambda row: row.tokens_per_s, True),
    ]
    panels = [
        page.figure(
            Html(overlay(drawn, value, width=336, height=150, y=YAxis(from_zero=True), smoothed=smoothed)),
            caption=caption, note=remark,
        )
        for caption, remark, value, smoothed in small
    ]  # fmt: skip
    parts.append(tag("div", *panels, class_="grid3", style="margin-top:24px"))
    return Section("training", "Training", "By step.", parts)


def overlay(
    drawn: Sequence[tuple[int, Run]], value: Callable[[TrainRow], float], *, width: int, height: int, y: YAxis,
    smoothed: bool,
) -> str:  # fmt: skip
    """A number of the train rows of several runs in one chart."""
    series = []
    for index, run in drawn:
        rows = run.train[1:] if len(run.train) > 1 else run.train  # the first step compiles
        raw, smooth = loss_series([row.step for row in rows], [value(row) for row in rows], [1.0] * len(rows))
        colour, line = line_of(index, len(drawn)), smooth.y if smoothed else raw.y
        series.append(dataclasses.replace(smooth, name=shorten(run.name, 24), y=line, colour=colour))
    return line_chart(series, width=width, height=height, x=XAxis(named=width >= page.NARROW), y=y)


def against_first_section(runs: Sequence[Run]) -> Section | None:
    """Exact match of each run against the first, paired by question where both kept the same questions."""
    rows = []
    for run in runs[1:]:
        estimates = question_differences(runs[0], run)
        if estimates:
            mean = mean_of_estimates(list(estimates.values()))
            note = f"{signed(mean.mean, 1, 100)} points, {mean.n:,} questions"
            rows.append(Whisker(name=run.name, mean=mean.mean, low=mean.low, high=mean.high, note=note))
    if not rows:
        return None
    drawing = lambda width: whiskers(rows, width=width, form=lambda value: f"{100 * value:g}", x_label="points")
    lead = (
        f"Exact match against {runs[0].name}, mean of tasks, paired by question (Agresti and Min 2005, 95%). "
        "The interval holds for these two models; it does not tell how another seed would do."
    )
    return Section("against", "Against the first run", lead, [page.wide_figure(drawing)])


def question_differences(first: Run, second: Run) -> dict[str, Estimate]:
    """By task, for tasks whose test questions are the same in both runs."""
    found = {}
    for task, rows in first.generations.get("after", {}).items():
        old = {row["id"]: bool(row["correct"]) for row in rows}
        new = {row["id"]: bool(row["correct"]) for row in second.generations.get("after", {}).get(task, [])}
        if old and old.keys() == new.keys():
            found[task] = paired_proportions(list(old.values()), [new[key] for key in old])
    return found
