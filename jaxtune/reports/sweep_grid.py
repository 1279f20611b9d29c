"""Heatmaps of a sweep over its first two options, and each task by option and value."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style, line_chart
from jaxtune.reports.drawing import XAxis, YAxis
from jaxtune.reports.heatmap import Grid, heat_table
from jaxtune.reports.page import TASKS_DRAWN, Html, Section, tag
from jaxtune.runs.sweeps import MATCH, Measure, Setting, Sweep, by_size, option_name, task_measure
from jaxtune.terminal.numbers import axis_percent


def setting_name(setting: Setting) -> str:
    """A setting in words."""
    return ", ".join(f"{option_name(axis)} {value}" for axis, value in setting.items())


def sweep_grids(sweep: Sweep) -> list[list[Grid]]:
    """Heatmaps over the first two options, all measures side by side; one list per setting of the further options."""
    if not sweep.axes or not sweep.is_grid:
        return []
    axes = list(sweep.axes)
    rest = [
        dict(zip(axes[2:], values, strict=True)) for values in itertools.product(*(sweep.axes[a] for a in axes[2:]))
    ]
    every = [[grid_of(sweep, measure, axes[:2], fixed) for measure in sweep.measures] for fixed in rest]
    measured = [[grid for grid in grids if np.isfinite(grid.mean).any()] for grids in every]
    return [grids for grids in measured if grids]


def grid_of(sweep: Sweep, measure: Measure, axes: Sequence[str], fixed: Setting) -> Grid:
    """One heatmap: mean and standard deviation over seeds, every cell with the pages of its runs."""
    row_axis, column_axis = axes[0], axes[1] if len(axes) > 1 else None
    rows, columns = by_size(sweep.axes[row_axis]), by_size(sweep.axes[column_axis]) if column_axis else [""]
    mean, spread = np.full((len(rows), len(columns)), math.nan), np.full((len(rows), len(columns)), math.nan)
    links: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
        setting = {**fixed, row_axis: row} | ({column_axis: column} if column_axis else {})
        values = [value for value in sweep.values(measure.pick, setting) if math.isfinite(value)]
        if values:
            mean[r, c] = np.mean(values)
        if len(values) > 1:
            spread[r, c] = np.std(values, ddof=1)
        links[r, c] = run_links(sweep, setting)
    return Grid(
        title=measure.title + (f" · {setting_name(fixed)}" if fixed else ""),
        rows=rows,
        columns=columns,
        row_label=option_name(row_axis),
        column_label=option_name(column_axis) if column_axis else "",
        mean=mean,
        spread=spread,
        higher_is_better=measure.higher_is_better,
        form=measure.form,
        links=links,
    )


def run_links(sweep: Sweep, setting: Setting) -> list[tuple[str, str]]:
    """(seed, address of the run's page relative to the sweep's folder) of every run of a setting."""
    return [
        (f"{arm.seed}", f"{arm.run.path.relative_to(sweep.path).as_posix()}/report.html")
        for arm in sweep.arms
        if setting.items() <= arm.setting.items() and arm.run.path.is_relative_to(sweep.path)
    ]


def grid_section(sweep: Sweep) -> Section | None:
    """The heatmaps; None for a sweep that is no grid."""
    parts = []
    for grids in sweep_grids(sweep):
        tables = [
            tag("div", page.figure(heat_table(grid), caption=grid.title, note=colour_span(grid))) for grid in grids
        ]
        parts.append(tag("div", *tables, class_="grids"))
    lead = (
        "Mean over seeds ± standard deviation of a run. The stronger the colour the better; the best mean is framed, "
        "which does not say that it is better than the others: see below."
    )
    return Section("grid", "Grid", lead, parts) if parts else None


def colour_span(grid: Grid) -> str:
    """Sentence about the values that the palest and the strongest colour stand for."""
    low, high = float(np.nanmin(grid.mean)), float(np.nanmax(grid.mean))
    worst, best = (low, high) if grid.higher_is_better else (high, low)
    return f"colours from {grid.form(worst)} to {grid.form(best)}"


def task_section(sweep: Sweep) -> Section | None:
    """Each task over the first option, one line per value of the second."""
    if not sweep.axes or not sweep.is_grid:
        return None
    axes = list(sweep.axes)
    lines = by_size(sweep.axes[axes[1]]) if len(axes) > 1 else [""]
    parts: list[object] = []
    if len(axes) > 1:
        entries = [("stroke", page.colour(i), f"{option_name(axes[1])} {value}") for i, value in enumerate(lines)]
        parts.append(page.legend(entries))
    for measure in sweep.measures:
        panels = [task_panel(sweep, task_measure(task, measure), axes, lines) for task in sweep.tasks[:TASKS_DRAWN]]
        title = measure.title.split(",")[0]
        parts += [tag("h3", f"{title} by {option_name(axes[0])}"), tag("div", *panels, class_="grid4")]
    lead = (
        "Mean over seeds; whiskers are one standard deviation of a run, not an interval of the mean. Each panel "
        "has its own scale."
    )
    return Section("tasks", "Task by task", lead, parts)


def task_panel(sweep: Sweep, measure: Measure, axes: Sequence[str], lines: Sequence[str]) -> Html:
    """One task."""
    values = by_size(sweep.axes[axes[0]])
    places = [float(index) for index in range(len(values))]
    series = []
    for index, line in enumerate(lines):
        spots = [{axes[0]: value} | ({axes[1]: line} if len(axes) > 1 else {}) for value in values]
        means, spreads = zip(*(mean_and_spread(sweep, measure, spot) for spot in spots), strict=True)
        name = f"{option_name(axes[1])} {line}" if len(axes) > 1 else measure.title
        series.append(
            Series(name=name, x=places, y=means, colour=page.colour(index), style=Style.POINTS, spread=spreads)
        )
    drawing = line_chart(
        series,
        width=250,
        height=150,
        x=XAxis(label=option_name(axes[0]), ticks=list(zip(places, values, strict=True))),
        y=YAxis(form=axis_percent, within=(0.0, 1.0)) if measure.scale == MATCH.scale else YAxis(),
    )
    return page.figure(Html(drawing), caption=measure.title)


def mean_and_spread(sweep: Sweep, measure: Measure, setting: Mapping[str, str]) -> tuple[float, float]:
    """Mean and standard deviation of the runs that agree with a setting; NaN where there are too few."""
    kept = [value for value in sweep.values(measure.pick, setting) if math.isfinite(value)]
    return (
        float(np.mean(kept)) if kept else math.nan,
        float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan,
    )
