"""The page of a sweep: its grid, the settings that may be the best, differences with intervals, curves, runs."""

import math
from collections.abc import Sequence
from pathlib import Path

from jaxtune.reports import page
from jaxtune.reports.charts import Series, line_chart
from jaxtune.reports.forgetting import forgetting_section
from jaxtune.reports.harness import harness_section
from jaxtune.reports.heatmap import heatmap_png
from jaxtune.reports.leaving import leaving_section
from jaxtune.reports.memorisation import ladder_section
from jaxtune.reports.page import Column, Html, Section, Stat, tag
from jaxtune.reports.recommendation import recommendation_section
from jaxtune.reports.sweep_best import best_section, headline
from jaxtune.reports.sweep_contrasts import difference_section
from jaxtune.reports.sweep_grid import grid_section, sweep_grids, task_section
from jaxtune.reports.sweep_rungs import rungs_section
from jaxtune.reports.sweep_tasks import aggregates_section, scores_section
from jaxtune.reports.training import LOSS
from jaxtune.reports.transfer import PICTURE, transfer_png, transfer_section
from jaxtune.runs.history import Run
from jaxtune.runs.results import reached, when_and_where
from jaxtune.runs.sweeps import MATCH, Sweep, option_name
from jaxtune.runs.transfer import read_transfer
from jaxtune.storage.documents import replace_file
from jaxtune.terminal.numbers import decimal, duration, percent

CURVES = 120
"""Runs whose curves are drawn over one another."""


def write_sweep_report(sweep: Sweep) -> Path:
    """Write `report.html` and its picture into the sweep folder; returns the page's path.

    The picture is `heatmap.png` for a grid and `transfer.png` for a transfer sweep.
    """
    matrices = read_transfer(sweep)
    grids = [] if matrices else [grid for pair in sweep_grids(sweep) for grid in pair]
    if matrices:
        transfer_png(matrices, sweep.path / PICTURE)
    if grids:
        heatmap_png(grids, sweep.path / "heatmap.png")
    path = sweep.path / "report.html"
    replace_file(path, render_sweep(sweep).encode())
    return path


def render_sweep(sweep: Sweep) -> str:
    """The page of a sweep. A transfer sweep compares targets, not settings: no setting of it is the best."""
    transfer = transfer_section(sweep)
    compared = [
        grid_section(sweep),
        recommendation_section(sweep),
        best_section(sweep),
        difference_section(sweep),
        task_section(sweep),
        aggregates_section(sweep),
        rungs_section(sweep),
    ]
    sections = [*(compared if transfer is None else [transfer]), ladder_section(by_setting(sweep))]
    sections.insert(0, leaving_section(sweep))
    sections.append(forgetting_section([arm.run for arm in sweep.arms]))
    sections.append(harness_section([arm.run for arm in sweep.arms]))
    # The runs of a transfer sweep are named by their tasks; the weights that say the same would fill the table.
    arms = arms_section(sweep, list(sweep.axes) if transfer is None else [])
    sections += [scores_section(sweep), curves_section(sweep), arms]
    return page.page(
        sweep.path.name,
        kicker=" · ".join(["jaxtune sweep", *when_and_where([arm.run for arm in sweep.arms])]),
        lead=lead_text(sweep),
        top=sweep_stats(sweep) if transfer is None else "",
        sections=[section for section in sections if section is not None],
        foot=f"Written by jaxtune from the files in {sweep.place}",
    )


def by_setting(sweep: Sweep) -> dict[str, list[Run]]:
    """The runs of every setting, by its name."""
    found: dict[str, list[Run]] = {}
    for arm in sweep.arms:
        found.setdefault(sweep.name(arm.setting), []).append(arm.run)
    return found


def lead_text(sweep: Sweep) -> str:
    """Sentence about the size of the sweep."""
    varied = " × ".join(f"{len(values)} values of {option_name(axis)}" for axis, values in sweep.axes.items())
    shape = varied if sweep.is_grid and sweep.axes else f"{len(sweep.settings)} settings"
    many = len(sweep.seeds)
    lead = f"{shape} × {many} seed{'s' if many > 1 else ''}: {len(sweep.arms)} finished runs"
    lead += f", {len(sweep.confirmations)} more on fresh seeds" if sweep.confirmations else ""
    lead += f", {len(sweep.halved)} stopped at a rung" if sweep.halved else ""
    return lead + (f", {len(sweep.unfinished)} not finished." if sweep.unfinished else ".")


def sweep_stats(sweep: Sweep) -> Html:
    """The winner by each measure, where it began, and the time."""
    items = [headline(sweep, measure) for measure in sweep.measures]
    before = reached(sweep.arms[0].run, "before")
    if math.isfinite(before.exact_match):
        items.append(Stat("Before tuning", MATCH.form(before.exact_match), "exact match (%)"))
    runs = [*sweep.arms, *sweep.confirmations]
    seconds = math.fsum(float(arm.run.summary.get("seconds", 0.0)) for arm in runs)
    items.append(Stat("Time", duration(seconds), "all runs together"))
    return page.stats(items)


def curves_section(sweep: Sweep) -> Section | None:
    """Validation loss of every run over its steps, coloured by the first option's value."""
    axis = next(iter(sweep.axes), None)
    values = sweep.axes[axis] if axis else [""]
    series = []
    for arm in sweep.arms[:CURVES]:
        rows = [row for row in arm.run.evals if math.isfinite(row.macro_loss)]
        place = values.index(arm.setting.get(axis, "")) if axis and axis in arm.setting else 0
        if len(rows) > 1:
            x, y = [row.step for row in rows], [row.macro_loss for row in rows]
            series.append(Series(name=arm.name, x=x, y=y, colour=page.colour(place)))
    if not series:
        return None
    legend = [("stroke", page.colour(i), f"{option_name(axis)} {value}") for i, value in enumerate(values) if axis]
    drawing = lambda width: line_chart(series, width=width, height=300, y=LOSS)
    part = f" (the first {CURVES})" if len(sweep.arms) > CURVES else ""
    lead = f"Validation loss, mean of tasks, of every run{part}; logarithmic where it falls tenfold."
    return Section("curves", "Curves", lead, [page.legend(legend), page.wide_figure(drawing)])


def arms_section(sweep: Sweep, axes: Sequence[str]) -> Section:
    """Every run, with its page; `axes` are the options that have a column."""
    columns = [Column("run", number=False), *(Column(option_name(axis)) for axis in axes)]
    columns += [Column(name) for name in ("seed", "steps", "best step", "validation loss", "exact match", "time")]
    rows = [
        [
            run_link(sweep, arm.run.path, arm.tag or arm.name),
            *(arm.setting.get(axis, "–") for axis in axes),
            f"{arm.seed}{' (fresh)' if arm in sweep.confirmations else ''}",
            f"{arm.run.summary.get('steps', 0):,}",
            best_step(arm.run),
            decimal(arm.after.loss),
            percent(arm.after.exact_match),
            duration(float(arm.run.summary.get("seconds", math.nan))),
        ]
        for arm in (*sweep.arms, *sweep.confirmations)
    ]
    parts: list[object] = [page.table(columns, rows)]
    if sweep.unfinished:
        parts.append(tag("p", f"Not finished: {', '.join(sweep.unfinished)}.", class_="note"))
    return Section("runs", "Runs", "Validation loss and exact match are means over tasks.", parts)


def best_step(run: Run) -> str:
    """The step of the best validation; a dash for a run that had none."""
    step = run.summary.get("best", {}).get("step", -1)
    return f"{step:,}" if step >= 0 else "–"


def run_link(sweep: Sweep, folder: Path, name: str) -> object:
    """The run's name, as a link to its page where that lies in the sweep's folder."""
    if not folder.is_relative_to(sweep.path):
        return name
    return tag("a", name, href=f"{folder.relative_to(sweep.path).as_posix()}/report.html")
