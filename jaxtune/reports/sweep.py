"""A sweep folder's runs: the grid, paired differences, task by task, with intervals."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxtune.errors import UserError
from jaxtune.reports import charts as figures
from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style
from jaxtune.reports.comparison import axis_name, transfer_section
from jaxtune.reports.heatmap import Grid, heat_table, heatmap_png
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, Stat, change, decimals, join, share, signed, tag
from jaxtune.runs.history import Json, Run, read_json, read_run, replace_file
from jaxtune.runs.results import Outcome, reached
from jaxtune.science.intervals import Estimate, mean_interval
from jaxtune.terminal.progress import duration

Pick = Callable[["Arm"], float]
"""A number of an arm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One finished run of a sweep."""

    name: str
    overrides: Mapping[str, str]
    seed: int
    run: Run
    after: Outcome

    def at(self, axes: Sequence[str]) -> tuple[str, ...]:
        """The arm's values on these axes."""
        return tuple(str(self.overrides[axis]) for axis in axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep folder, read. Arms that did not finish are only counted."""

    path: Path
    axes: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    arms: Sequence[Arm]
    unfinished: Sequence[str]

    @property
    def tasks(self) -> list[str]:
        """Tasks that any arm was evaluated on."""
        return list(dict.fromkeys(task for arm in self.arms for task in arm.run.task_names))

    def values(self, pick: Pick, setting: Mapping[str, str]) -> list[float]:
        """A number of every arm with this setting, seed by seed."""
        return [pick(arm) for arm in self.arms if all(str(arm.overrides[axis]) == v for axis, v in setting.items())]


def is_sweep(folder: Path | str) -> bool:
    """Whether the folder is a sweep's."""
    return (Path(folder) / "sweep.json").is_file()


def read_sweep(sweep_dir: Path | str) -> Sweep:
    """Read `sweep.json` and its finished runs; without a finished run there is nothing to report."""
    path = Path(sweep_dir)
    record = read_json(path / "sweep.json")
    missing = [key for key in ("axes", "seeds", "runs") if key not in record]
    if missing:
        raise UserError(f"{path / 'sweep.json'} has no {', '.join(missing)}; `jaxtune sweep` writes such a file")
    arms, unfinished = [], []
    for entry in record["runs"]:
        folder = path / entry["dir"]
        run = read_run(folder) if (folder / "summary.json").is_file() else None
        if run is None or run.summary.get("status") not in ("finished", "early_stopped"):
            unfinished.append(entry["name"])
            continue
        arms.append(
            Arm(name=entry["name"], overrides=entry["overrides"], seed=entry["seed"], run=run, after=reached(run))
        )
    if not arms:
        raise UserError(f"{path}: none of its {len(record['runs'])} runs is finished; run the sweep's command again")
    axes = {axis: [str(value) for value in values] for axis, values in record["axes"].items()}
    return Sweep(path=path.resolve(), axes=axes, seeds=record["seeds"], arms=arms, unfinished=unfinished)


def sweep_table(sweep_dir: Path | str) -> list[Json]:
    """One flat row per finished run, for a CSV file: setting, seed, outcome over all and per task."""
    sweep = read_sweep(sweep_dir)
    rows = []
    for arm in sweep.arms:
        summary = arm.run.summary
        row: Json = {"name": arm.name, **arm.overrides, "seed": arm.seed, "status": summary.get("status")}
        row |= {"steps": summary.get("steps"), "best_step": summary.get("best", {}).get("step")}
        row |= {"macro_loss": arm.after.loss, "macro_exact_match": arm.after.exact_match}
        row |= {f"loss/{task}": arm.after.task_loss.get(task, math.nan) for task in sweep.tasks}
        row |= {f"exact_match/{task}": arm.after.task_exact_match.get(task, math.nan) for task in sweep.tasks}
        rows.append(row | {"seconds": summary.get("seconds")})
    return rows


def write_sweep_report(sweep_dir: Path | str) -> Path:
    """Write `report.html` and, next to it, `heatmap.png` into the sweep folder; returns the page's path."""
    sweep = read_sweep(sweep_dir)
    grids = [grid for pair in sweep_grids(sweep) for grid in pair]
    heatmap_png(grids, sweep.path / "heatmap.png")
    path = sweep.path / "report.html"
    replace_file(path, render_sweep(sweep).encode())
    return path


def render_sweep(sweep: Sweep) -> str:
    """The page of a sweep."""
    sections = [
        grid_section(sweep),
        difference_section(sweep),
        task_section(sweep),
        transfer_section([arm.run for arm in sweep.arms]),
        arms_section(sweep),
    ]
    varied = " × ".join(f"{len(values)} values of {axis_name(axis)}" for axis, values in sweep.axes.items())
    many = len(sweep.seeds)
    lead = f"{varied} × {many} seed{'s' if many > 1 else ''}: {len(sweep.arms)} finished runs"
    lead += f", {len(sweep.unfinished)} not finished." if sweep.unfinished else "."
    return page.page(
        sweep.path.name,
        kicker="jaxtune sweep",
        lead=lead,
        top=sweep_stats(sweep),
        sections=[section for section in sections if section is not None],
        foot=f"Written by jaxtune from the files in {sweep.path}",
    )


def setting_name(setting: Mapping[str, str]) -> str:
    """A setting in words."""
    return ", ".join(f"{axis_name(axis)} {value}" for axis, value in setting.items())


def settings(sweep: Sweep) -> list[dict[str, str]]:
    """Every combination of values that has a finished arm, in the grid's order."""
    every = (dict(zip(sweep.axes, values, strict=True)) for values in itertools.product(*sweep.axes.values()))
    return [one for one in every if sweep.values(lambda arm: 0.0, one)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that arms are compared by."""

    title: str
    pick: Pick
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 3
    unit: str = ""

    def form(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}" if math.isfinite(value) else "–"


LOSS = Measure(
    title="Validation loss, mean of tasks", pick=lambda arm: arm.after.loss, higher_is_better=False, unit="nats"
)
MATCH = Measure(
    title="Exact match, mean of tasks (%)",
    pick=lambda arm: arm.after.exact_match,
    higher_is_better=True,
    scale=100.0,
    digits=1,
    unit="points",
)


def measures(sweep: Sweep) -> list[Measure]:
    """Those that the arms have: exact match first, it decides."""
    return [one for one in (MATCH, LOSS) if any(math.isfinite(one.pick(arm)) for arm in sweep.arms)]


def sweep_grids(sweep: Sweep) -> list[list[Grid]]:
    """Heatmaps over the first two axes, all measures side by side; one list per setting of the further axes."""
    axes = list(sweep.axes)
    rest = [
        dict(zip(axes[2:], values, strict=True)) for values in itertools.product(*(sweep.axes[a] for a in axes[2:]))
    ]
    return [[grid_of(sweep, measure, axes[:2], fixed) for measure in measures(sweep)] for fixed in rest]


def grid_of(sweep: Sweep, measure: Measure, axes: Sequence[str], fixed: Mapping[str, str]) -> Grid:
    """One heatmap: mean and standard deviation over seeds."""
    row_axis, column_axis = axes[0], axes[1] if len(axes) > 1 else None
    rows, columns = list(sweep.axes[row_axis]), list(sweep.axes[column_axis]) if column_axis else [""]
    mean, spread = np.full((len(rows), len(columns)), math.nan), np.full((len(rows), len(columns)), math.nan)
    for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
        setting = {**fixed, row_axis: row} | ({column_axis: column} if column_axis else {})
        values = [value for value in sweep.values(measure.pick, setting) if math.isfinite(value)]
        if values:
            mean[r, c] = np.mean(values)
        if len(values) > 1:
            spread[r, c] = np.std(values, ddof=1)
    title = measure.title + (f" · {setting_name(fixed)}" if fixed else "")
    return Grid(
        title=title,
        rows=rows,
        columns=columns,
        row_label=axis_name(row_axis),
        column_label=axis_name(column_axis) if column_axis else "",
        mean=mean,
        spread=spread,
        higher_is_better=measure.higher_is_better,
        form=measure.form,
    )


def sweep_stats(sweep: Sweep) -> Html:
    """The best setting and how far it leads."""
    items = []
    for measure in measures(sweep):
        ranked = ranking(sweep, measure)
        best, values = ranked[0]
        spread = f" ± {measure.form(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
        value = join([measure.form(float(np.mean(values))), tag("span", spread, class_="unit")])
        items.append(Stat(f"Best {measure.title[0].lower()}{measure.title[1:]}", value, f"at {setting_name(best)}"))
    before = [reached(arm.run, "before") for arm in sweep.arms[:1]]
    if before and math.isfinite(before[0].exact_match):
        items.append(Stat("Before tuning", MATCH.form(before[0].exact_match), "exact match (%)"))
    seconds = math.fsum(float(arm.run.summary.get("seconds", 0.0)) for arm in sweep.arms)
    items.append(Stat("Time", duration(seconds), "all runs together"))
    return page.stats(items)


def ranking(sweep: Sweep, measure: Measure) -> list[tuple[dict[str, str], list[float]]]:
    """Settings from the best mean to the worst, with their values by seed."""
    scored = [(one, [v for v in sweep.values(measure.pick, one) if math.isfinite(v)]) for one in settings(sweep)]
    sign = -1 if measure.higher_is_better else 1
    return sorted((pair for pair in scored if pair[1]), key=lambda pair: sign * float(np.mean(pair[1])))


def grid_section(sweep: Sweep) -> Section:
    """The heatmaps and the best setting's lead."""
    parts: list[object] = []
    for pair in sweep_grids(sweep):
        tables = [tag("div", page.figure(heat_table(grid), caption=grid.title)) for grid in pair]
        parts.append(tag("div", *tables, class_="grid2"))
    parts += [tag("p", lead_over_next(sweep, measure), class_="note") for measure in measures(sweep)]
    lead = "Mean over seeds ± standard deviation; the stronger the colour the better, the best cell is framed."
    return Section("grid", "Grid", lead, parts)


def lead_over_next(sweep: Sweep, measure: Measure) -> str:
    """The difference between the best setting and the next one, paired by seed."""
    ranked = ranking(sweep, measure)
    name = measure.title.split(",")[0].lower()
    if len(ranked) < 2:
        return f"By {name}, only one setting is finished."
    (best, _), (second, _) = ranked[:2]
    estimate = mean_interval(paired(sweep, measure.pick, second, best))
    ahead = f"{signed(estimate.mean, measure.digits, measure.scale)} {measure.unit}"
    text = f"By {name}, {setting_name(best)} is ahead of {setting_name(second)}: {ahead}"
    if not math.isfinite(estimate.low):
        return f"{text}; one seed gives no interval."
    low, high = (signed(bound, measure.digits, measure.scale) for bound in (estimate.low, estimate.high))
    verdict = (
        "the interval leaves out zero" if estimate.clear else "the interval holds zero, so the order of the two is open"
    )
    return f"{text} (95% interval {low} to {high} over {estimate.n} seeds: {verdict})."


def paired(sweep: Sweep, pick: Pick, reference: Mapping[str, str], other: Mapping[str, str]) -> list[float]:
    """Differences `other - reference` between arms that agree in everything else, seed included."""
    free = [axis for axis in sweep.axes if axis not in reference]
    matches = lambda arm, setting: all(str(arm.overrides[axis]) == value for axis, value in setting.items())
    base = {(arm.at(free), arm.seed): pick(arm) for arm in sweep.arms if matches(arm, reference)}
    pairs = [(base.get((arm.at(free), arm.seed)), pick(arm)) for arm in sweep.arms if matches(arm, other)]
    return [new - old for old, new in pairs if old is not None]


def difference_section(sweep: Sweep) -> Section | None:
    """Each value of each axis against the axis' first value, over arms alike in all else."""
    parts: list[object] = []
    for axis, values in sweep.axes.items():
        if len(values) < 2:
            continue
        charts = []
        for measure in measures(sweep):
            rows = [difference_row(sweep, measure, axis, values[0], value) for value in values[1:]]
            drawing = figures.whiskers(rows, width=500, form=lambda v, m=measure: f"{m.scale * v:g}", x_label="")
            charts.append(tag("div", page.figure(Html(drawing), caption=measure.title)))
        parts += [tag("h3", f"{axis_name(axis)}, against {values[0]}"), tag("div", *charts, class_="grid2")]
        parts.append(task_difference_table(sweep, axis))
    if not parts:
        return None
    lead = (
        "Differences between runs that agree in seed and in every other option, with Student's t intervals (95%). "
        "Pairs that share a seed are not wholly independent; read the intervals as a guide."
    )
    return Section("differences", "Paired differences", lead, parts)


def difference_row(sweep: Sweep, measure: Measure, axis: str, reference: str, value: str) -> figures.Whisker:
    estimate = mean_interval(paired(sweep, measure.pick, {axis: reference}, {axis: value}))
    note = f"{signed(estimate.mean, measure.digits, measure.scale)} {measure.unit}, {estimate.n} pairs"
    return figures.Whisker(name=value, mean=estimate.mean, low=estimate.low, high=estimate.high, note=note)


def task_difference_table(sweep: Sweep, axis: str) -> Html:
    """Mean paired difference task by task: exact match where there is any, else loss."""
    scored = MATCH in measures(sweep)
    values = sweep.axes[axis]
    tasks = sweep.tasks[:TASKS_DRAWN]
    columns = [Column(axis_name(axis), number=False), *(Column(task) for task in tasks)]
    rows = []
    for value in values[1:]:
        row: list[object] = [value]
        for task in tasks:
            estimate = mean_interval(paired(sweep, task_pick(task, scored), {axis: values[0]}, {axis: value}))
            row.append(difference_cell(estimate, scored))
        rows.append(row)
    what = "Exact match, change in points by task" if scored else "Validation loss, change in nats by task"
    return tag("div", page.figure(page.table(columns, rows), caption=what), style="margin-top:20px")


def difference_cell(estimate: Estimate, scored: bool) -> Html:
    digits, scale, better = (1, 100.0, 1) if scored else (3, 1.0, -1)
    cell = change(estimate.mean, digits, better=better, scale=scale, clear=estimate.clear)
    if not math.isfinite(estimate.low):
        return cell
    low, high = signed(estimate.low, digits, scale), signed(estimate.high, digits, scale)
    return tag("span", cell, title=f"95% interval {low} to {high}, {estimate.n} pairs")


def task_pick(task: str, scored: bool) -> Pick:
    """A task's exact match or loss."""
    if scored:
        return lambda arm: arm.after.task_exact_match.get(task, math.nan)
    return lambda arm: arm.after.task_loss.get(task, math.nan)


def task_section(sweep: Sweep) -> Section:
    """Each task over the first axis, one line per value of the second."""
    axes = list(sweep.axes)
    lines = list(sweep.axes[axes[1]]) if len(axes) > 1 else [""]
    parts: list[object] = []
    if len(axes) > 1:
        entries = [("stroke", page.colour(i), f"{axis_name(axes[1])} {value}") for i, value in enumerate(lines)]
        parts.append(page.legend(entries))
    for scored, title in ((True, "Exact match"), (False, "Validation loss")):
        if (MATCH if scored else LOSS) not in measures(sweep):
            continue
        panels = [task_panel(sweep, task, scored, axes, lines) for task in sweep.tasks[:TASKS_DRAWN]]
        parts += [tag("h3", f"{title} by {axis_name(axes[0])}"), tag("div", *panels, class_="grid4")]
    return Section("tasks", "Task by task", "Mean over seeds; whiskers are one standard deviation.", parts)


def task_panel(sweep: Sweep, task: str, scored: bool, axes: Sequence[str], lines: Sequence[str]) -> Html:
    values = sweep.axes[axes[0]]
    places = [float(index) for index in range(len(values))]
    series = []
    for index, line in enumerate(lines):
        means, spreads = [], []
        for value in values:
            setting = {axes[0]: value} | ({axes[1]: line} if len(axes) > 1 else {})
            kept = [v for v in sweep.values(task_pick(task, scored), setting) if math.isfinite(v)]
            means.append(float(np.mean(kept)) if kept else math.nan)
            spreads.append(float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan)
        name = f"{axis_name(axes[1])} {line}" if len(axes) > 1 else task
        colour = page.colour(index)
        series.append(Series(name=name, x=places, y=means, colour=colour, style=Style.POINTS, spread=spreads))
    drawing = figures.line_chart(
        series,
        width=250,
        height=150,
        x_label=axis_name(axes[0]),
        x_ticks=list(zip(places, values, strict=True)),
        y_format=figures.percent if scored else None,
    )
    return page.figure(Html(drawing), caption=task)


def arms_section(sweep: Sweep) -> Section:
    """Every run."""
    columns = [Column(axis_name(axis)) for axis in sweep.axes]
    columns += [Column(name) for name in ("seed", "steps", "best step", "validation loss", "exact match", "time")]
    rows = [
        [
            *(str(arm.overrides[axis]) for axis in sweep.axes),
            str(arm.seed),
            f"{arm.run.summary.get('steps', 0):,}",
            f"{arm.run.summary.get('best', {}).get('step', -1):,}",
            decimals(arm.after.loss),
            share(arm.after.exact_match),
            duration(float(arm.run.summary.get("seconds", math.nan))),
        ]
        for arm in sweep.arms
    ]
    parts: list[object] = [page.table(columns, rows)]
    if sweep.unfinished:
        parts.append(tag("p", f"Not finished: {', '.join(sweep.unfinished)}.", class_="note"))
    return Section("runs", "Runs", "Validation loss and exact match are means over tasks.", parts)
