"""One run folder as one self-contained page, `report.html`; it reads only the files of the folder."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune import figures, page
from jaxtune.figures import Series, Style
from jaxtune.intervals import Estimate, independent_proportions, mean_of_estimates, paired_proportions
from jaxtune.page import Column, Html, Section, Stat, join, tag
from jaxtune.progress import duration, quantity
from jaxtune.tracking import Json, Run, TrainRow, number, read_run, replace_file

REPORT = "report.html"
TASKS_DRAWN = 24
"""Tasks that get a panel or a card of their own; the tables hold them all."""
ANSWERS_OPEN, ANSWERS_SHOWN = 3, 12


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into the run folder; returns its path."""
    run = read_run(run_dir)
    path = run.path / REPORT
    replace_file(path, render(run).encode())
    return path


def render(run: Run) -> str:
    """The page of a run."""
    sections = [
        results_section(run),
        training_section(run),
        mixture_section(run),
        examples_section(run),
        answers_section(run),
        facts_section(run),
    ]
    return page.page(
        str(run.config.get("name", run.name)),
        kicker=f"jaxtune run · {run.name} · {status(run)}",
        lead=headline(run),
        top=headline_stats(run),
        sections=[section for section in sections if section is not None],
        foot=f"Written by jaxtune from the files in {run.path}",
    )


# Numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task before and after tuning; NaN where it was not measured."""

    task: str
    loss_before: float
    loss_after: float
    score_before: float
    score_after: float
    difference: Estimate | None
    """Change in exact match; None without scores on both sides."""
    others: Mapping[str, tuple[float, float]]
    """Further metrics, before and after."""


def measured(run: Run, when: str) -> Json:
    """Losses and scores `before` or `after` tuning: the summary's, or for an unfinished run its first or last rows."""
    recorded = run.summary.get(when)
    if recorded:
        return recorded
    at = 0 if when == "before" else -1
    evals = [row for row in run.evals if when == "after" or row.step == 0]
    scores = [row for row in run.scores if (row.step > 0) == (when == "after")]
    found: Json = {}
    if evals:
        found |= {"loss": evals[at].loss, "macro_loss": evals[at].macro_loss, "task_loss": evals[at].task_loss}
    if scores:
        found |= {"task_score": scores[at].task_score, "macro_exact_match": scores[at].macro_exact_match}
    return found


def task_results(run: Run) -> list[TaskResult]:
    """Every task that was evaluated, in the run's order."""
    before, after = measured(run, "before"), measured(run, "after")
    results = []
    for task in run.task_names:
        old, new = (side.get("task_score", {}).get(task, {}) for side in (before, after))
        others = {
            metric: (number(old.get(metric)), number(new.get(metric)))
            for metric in {**old, **new}
            if metric not in ("exact_match", "n")
        }
        results.append(
            TaskResult(
                task=task,
                loss_before=number(before.get("task_loss", {}).get(task)),
                loss_after=number(after.get("task_loss", {}).get(task)),
                score_before=number(old.get("exact_match")),
                score_after=number(new.get("exact_match")),
                difference=score_difference(run, task, old, new),
                others=others,
            )
        )
    return results


def score_difference(run: Run, task: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate | None:
    """Change in exact match: paired by question where every answer of both sides was kept, else as two samples."""
    if "exact_match" not in before or "exact_match" not in after:
        return None
    n = int(after.get("n", 0))
    old, new = (
        {row["id"]: bool(row["correct"]) for row in run.generations.get(side, {}).get(task, [])}
        for side in ("before", "after")
    )
    if n and old.keys() == new.keys() and len(old) == n:
        return paired_proportions(list(old.values()), [new[key] for key in old])
    if n and n == int(before.get("n", 0)):
        return independent_proportions(float(before["exact_match"]), float(after["exact_match"]), n)
    return Estimate(mean=float(after["exact_match"]) - float(before["exact_match"]), n=n)


def macro_mean(values: Sequence[float]) -> float:
    """Mean over tasks of what was measured."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def status(run: Run) -> str:
    """How the run ended, in words."""
    words = {
        "finished": "finished",
        "early_stopped": "stopped early: validation no longer improved",
        "stopped": "stopped before its end",
        "failed": "failed",
    }
    step = run.train[-1].step if run.train else 0
    recorded = run.summary.get("status")
    return words.get(str(recorded), str(recorded)) if recorded else f"not finished, at step {step:,}"


# Formats


def decimals(value: float, digits: int = 3) -> str:
    """A fixed number of decimals; a dash where there is no number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def share(value: float, digits: int = 1) -> str:
    """A percentage; a dash where there is no number."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "–"


def signed(value: float, digits: int, scale: float = 1.0) -> str:
    """A difference with its sign (a true minus)."""
    if not math.isfinite(value):
        return "–"
    return f"{scale * value:+.{digits}f}".replace("-", "−")


def change(value: float, digits: int, *, better: int, scale: float = 1.0, clear: bool = True) -> Html:
    """A signed difference, coloured when it is an improvement or a loss (`better` is the good direction, +1 or -1)."""
    text = signed(value, digits, scale)
    zero = float(f"{scale * value:.{digits}f}") == 0 if math.isfinite(value) else True
    if zero or not clear:
        return tag("span", text)
    return tag("span", text, class_="good" if value * better > 0 else "bad")


def points_interval(estimate: Estimate | None) -> str:
    """An interval of a share, in percentage points."""
    if estimate is None or not math.isfinite(estimate.low):
        return "–"
    return f"{signed(estimate.low, 1, 100)} to {signed(estimate.high, 1, 100)}"


def from_to(before: float, after: float, form: Callable[[float], str]) -> Html:
    """`before → after` for a headline figure."""
    if not math.isfinite(before):
        return tag("span", form(after))
    return join([tag("span", f"{form(before)} → ", class_="from"), form(after)])


# Head


def headline(run: Run) -> str:
    """What was tuned, on what, for how long, in one sentence."""
    model = run.config.get("model", {})
    path = str(model.get("path", "a model")) if isinstance(model, dict) else str(model)
    base = "The built-in base model" if path == "builtin" else Path(path).name
    mixed = run.mixture
    parts = [f"{base} tuned on {len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}" if run.tasks else base]
    if mixed.get("budget"):
        parts.append(f"{mixed['budget']:,} examples in {mixed.get('steps', run.summary.get('total_steps', 0)):,} steps")
    if mixed.get("strategy") == "temperature":
        parts.append(f"mixed at temperature {number(mixed.get('temperature')):g}")
    elif mixed.get("strategy"):
        parts.append(f"mixing strategy {mixed['strategy']}")
    capped = sum(one.capped for one in run.tasks)
    if capped:
        parts.append(f"{capped} task{'s' if capped > 1 else ''} at the repetition cap")
    return ", ".join(parts) + "."


def headline_stats(run: Run) -> Html:
    """The figures under the heading."""
    before, after = measured(run, "before"), measured(run, "after")
    results = task_results(run)
    items = []
    scored = [one.difference for one in results if one.difference is not None]
    if scored:
        old = macro_mean([one.score_before for one in results])
        new = macro_mean([one.score_after for one in results])
        under = (
            f"mean of {len(scored)} tasks, {scored[0].n} test questions each" if len({s.n for s in scored}) == 1 else ""
        )
        items.append(Stat("Exact match", from_to(old, new, share), under or f"mean of {len(scored)} tasks"))
    if "loss" in after:
        loss = from_to(number(before.get("loss")), number(after["loss"]), decimals)
        items.append(Stat("Validation loss", loss, "nats per token, over all tasks"))
    if run.summary.get("best", {}).get("step", -1) >= 0:
        best = run.summary["best"]
        items.append(
            Stat(
                "Best checkpoint", f"step {best['step']:,}", f"of {run.summary['steps']:,}, by {words(best['metric'])}"
            )
        )
    if run.train:
        last = run.train[-1]
        trained = last.loss_tokens / last.tokens if last.tokens else math.nan
        items.append(Stat("Tokens", quantity(last.tokens), f"{share(trained)} carry loss"))
    if run.summary.get("seconds"):
        memory = run.summary.get("peak_memory_mb")
        under = f"peak memory {memory / 1024:.1f} GiB" if memory else ""
        items.append(Stat("Time", duration(float(run.summary["seconds"])), under))
    return page.stats(items)


def words(name: object) -> str:
    """An option's name in words."""
    return str(name).replace("_", " ")


# Results


def results_section(run: Run) -> Section | None:
    """Before and after, task by task."""
    results = task_results(run)
    if not any(math.isfinite(one.loss_after) or math.isfinite(one.score_after) for one in results):
        return None
    scored = any(one.difference is not None for one in results)
    others = sorted({name for one in results for name in one.others})
    columns = [
        Column("Task", number=False),
        Column("before"),
        Column("after"),
        Column("change", title="After minus before, nats per token; lower is better"),
    ]
    groups = [("", 1), ("Validation loss", 3)]
    if scored:
        columns += [
            Column("before"),
            Column("after"),
            Column("change", title="Percentage points"),
            Column("95% interval"),
        ]
        columns += [Column("0 to 100%", number=False)]
        groups += [("Exact match on test questions", 5)]
    columns += [Column(words(name), title="Before → after") for name in others]
    groups += [("Other metrics", len(others))] if others else []
    held = {one.task for one in run.tasks}
    rows = [result_row(run, one, index, scored, others, held) for index, one in enumerate(results)]
    parts: list[object] = [page.table(columns, rows, total=total_row(results, scored, others), groups=groups)]
    parts += [tag("p", note, class_="note") for note in result_notes(run, results, held)]
    lead = "The base model and the exported checkpoint on the same validation and test examples."
    return Section("results", "Before and after", lead, parts)


def result_row(
    run: Run, one: TaskResult, index: int, scored: bool, others: Sequence[str], held: set[str]
) -> list[object]:
    name = page.swatch(index, one.task)
    if held and one.task not in held:
        name = join([name, " ", tag("span", "not trained on", class_="tag")])
    row: list[object] = [name, decimals(one.loss_before), decimals(one.loss_after)]
    row.append(change(one.loss_after - one.loss_before, 3, better=-1))
    if scored:
        row += score_cells(one.score_before, one.score_after, one.difference, page.colour(index))
    return row + [other_cell(one.others.get(name)) for name in others]


def score_cells(before: float, after: float, difference: Estimate | None, colour: str) -> list[object]:
    clear = difference is not None and (difference.clear or not math.isfinite(difference.low))
    bar = Html(figures.change_bar(before, after, colour=colour))
    step = change(after - before, 1, better=1, scale=100, clear=clear)
    return [share(before), share(after), step, points_interval(difference), bar]


def other_cell(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{decimals(pair[0])} → {decimals(pair[1])}"


def total_row(results: Sequence[TaskResult], scored: bool, others: Sequence[str]) -> list[object]:
    old, new = macro_mean([one.loss_before for one in results]), macro_mean([one.loss_after for one in results])
    row: list[object] = ["Mean of tasks", decimals(old), decimals(new), change(new - old, 3, better=-1)]
    if scored:
        both = [one for one in results if one.difference is not None]
        estimate = mean_of_estimates([one.difference for one in both if one.difference is not None])
        before, after = macro_mean([one.score_before for one in both]), macro_mean([one.score_after for one in both])
        row += score_cells(before, after, estimate, "--c:var(--soft)")
    return row + [""] * len(others)


def result_notes(run: Run, results: Sequence[TaskResult], held: set[str]) -> list[str]:
    """What the table's numbers are made of, and signs of overfitting."""
    notes = []
    if any(one.difference is not None for one in results):
        notes.append(
            "Intervals are paired by question where all answers were kept (Agresti and Min 2005). Changes are coloured "
            "when the interval leaves out zero. Ring: before; disc: after."
        )
    rising = overfitting(run)
    if rising:
        listed = ", ".join(
            f"{task} (lowest {low:.3f} at step {step:,}, last {last:.3f})" for task, step, low, last in rising
        )
        notes.append(f"Validation loss rose again before the end: {listed}.")
    return notes


def overfitting(run: Run, by: float = 0.02) -> list[tuple[str, int, float, float]]:
    """Tasks whose last validation loss is more than the share `by` above their lowest: task, step, lowest, last."""
    found = []
    for task in run.task_names:
        curve = [(row.task_loss[task], row.step) for row in run.evals if task in row.task_loss]
        if len(curve) > 1:
            low, step = min(curve)
            if curve[-1][0] > (1 + by) * low:
                found.append((task, step, low, curve[-1][0]))
    return found


# Training


def training_section(run: Run) -> Section | None:
    """Loss curves over all and per task, and how the optimizer and the machine did."""
    if not run.train:
        return None
    best = run.summary.get("best", {})
    marks = [(float(best["step"]), f"best, step {best['step']:,}")] if best.get("step", -1) >= 0 else []
    entries = [
        ("stroke", "--c:var(--accent)", "training, smoothed"),
        ("ring", "--c:var(--ink)", "validation"),
    ]
    overall = figures.line_chart(
        loss_series([row.step for row in run.train], [row.loss for row in run.train], [1.0] * len(run.train))
        + [validation_series(run, None)],
        width=1040,
        height=290,
        marks=marks,
    )
    parts: list[object] = [
        page.legend(entries),
        page.figure(Html(overall), caption="Loss, all tasks", note="nats per trained token", wide=True),
    ]
    panels = [task_panel(run, task, index, marks) for index, task in enumerate(run.task_names[:TASKS_DRAWN])]
    if len(run.task_names) > 1:
        parts += [subheading("Loss by task", "by step"), tag("div", *panels, class_="grid4")]
    if len(run.task_names) > TASKS_DRAWN:
        rest = len(run.task_names) - TASKS_DRAWN
        parts.append(tag("p", f"The curves of {rest:,} more tasks are in metrics.jsonl.", class_="note"))
    parts += [subheading("Optimizer and throughput", "by step"), tag("div", *machine_panels(run), class_="grid3")]
    parts += trouble(run)
    lead = (
        "Training loss is that of the sampled mixture, validation loss that of the validation sets; "
        "compare each with itself over time."
    )
    return Section("training", "Training", lead, parts)


def subheading(text: str, note: str) -> Html:
    """A heading inside a section, with a quiet remark."""
    return tag("h3", text, " ", tag("span", note, class_="dim"))


def loss_series(
    steps: Sequence[int], losses: Sequence[float], weights: Sequence[float], colour: str = "--c:var(--accent)"
) -> list[Series]:
    """A raw curve and its smoothed one."""
    half_life = max(1.0, len(steps) / 40)
    smoothed = figures.smooth(np.asarray(losses, float), np.asarray(weights, float), half_life)
    return [
        Series(name="training, raw", x=steps, y=losses, colour=colour, style=Style.RAW),
        Series(name="training", x=steps, y=smoothed.tolist(), colour=colour),
    ]


def validation_series(run: Run, task: str | None) -> Series:
    """Validation loss over all tasks, or of one."""
    rows = [row for row in run.evals if task is None or task in row.task_loss]
    losses = [row.loss if task is None else row.task_loss[task] for row in rows]
    return Series(name="validation", x=[row.step for row in rows], y=losses, colour="--c:var(--ink)", style=Style.DOTS)


def task_panel(run: Run, task: str, index: int, marks: Sequence[tuple[float, str]]) -> Html:
    """One task's curves."""
    rows = [row for row in run.train if task in row.task_loss]
    series = [validation_series(run, task)]
    if rows:
        weights = [max(row.task_tokens.get(task, 1.0), 0.0) for row in rows]
        losses = [row.task_loss[task] for row in rows]
        series = loss_series([row.step for row in rows], losses, weights, page.colour(index)) + series
    bare = [(step, "") for step, _ in marks]
    drawing = figures.line_chart(series, width=250, height=150, marks=bare, x_named=False)
    return page.figure(Html(drawing), caption=page.swatch(index, task))


def machine_panels(run: Run) -> list[Html]:
    """Learning rate, gradient norm, speed, padding and whatever else was logged of the machine."""
    percent = figures.percent
    speed: list[Curve] = [("all", lambda row: row.tokens_per_s), ("trained", lambda row: row.loss_tokens_per_s)]
    panels = [
        panel(run, "Learning rate", [("rate", lambda row: row.learning_rate)], smoothed=False),
        panel(run, "Gradient norm", [("norm", lambda row: row.grad_norm)], note="before clipping"),
        panel(run, "Tokens per second", speed, labels=True),
        panel(run, "Padding", [("padding", lambda row: row.padding)], form=percent, note="share of slots"),
        panel(run, "Waiting for data", [("waiting", extra("data_wait"))], form=percent, note="share of time"),
        panel(run, "Share of peak", [("MFU", extra("mfu"))], form=percent, note="of the matrix-multiply rate"),
    ]
    return [one for one in panels if one is not None]


Curve = tuple[str, Callable[[TrainRow], float]]
"""A name, and the number of a train row that it stands for."""


def extra(name: str) -> Callable[[TrainRow], float]:
    """A number that only some runs log."""
    return lambda row: number(row.extra.get(name))


def panel(
    run: Run,
    caption: str,
    curves: Sequence[Curve],
    *,
    smoothed: bool = True,
    form: figures.Format | None = None,
    note: str = "",
    labels: bool = False,
) -> Html | None:
    """A small chart of numbers of the train rows; None if none was logged."""
    steps = [row.step for row in run.train]
    series: list[Series] = []
    for (name, value), colour in zip(curves, ("--c:var(--accent)", "--c:var(--soft)"), strict=False):
        values = [value(row) for row in run.train]
        if not any(math.isfinite(one) for one in values):
            continue
        pair = loss_series(steps, values, [1.0] * len(values), colour)
        drawn = pair if smoothed else [dataclasses.replace(pair[1], y=values)]
        series += [dataclasses.replace(one, name=one.name.replace("training", name)) for one in drawn]
    if not series:
        return None
    drawing = figures.line_chart(
        series, width=336, height=150, from_zero=True, y_format=form, x_named=False, end_labels=labels
    )
    return page.figure(Html(drawing), caption=caption, note=note)


def trouble(run: Run) -> list[object]:
    """Skipped updates, loss spikes and other events, if there were any."""
    skipped = [row.step for row in run.train if row.skipped]
    parts: list[object] = []
    if skipped:
        listed = ", ".join(f"{step:,}" for step in skipped[:12]) + (" …" if len(skipped) > 12 else "")
        parts.append(tag("p", f"{len(skipped):,} updates were skipped: steps {listed}.", class_="note"))
    if run.events:
        columns = [
            Column("Step"),
            Column("Event", number=False),
            Column("Loss"),
            Column("Examples of the step", number=False),
        ]
        rows = [
            [
                f"{event['step']:,}",
                words(event["kind"]),
                decimals(number(event.get("loss"))),
                figures.shorten(", ".join(map(str, event.get("examples", []))), 120),
            ]
            for event in run.events[:20]
        ]
        parts += [tag("h3", "Events"), page.table(columns, rows)]
        if len(run.events) > 20:
            parts.append(tag("p", f"{len(run.events) - 20:,} more are in metrics.jsonl.", class_="note"))
    return parts


# Mixture


def mixture_section(run: Run) -> Section | None:
    """Natural against sampled shares, and what each task contributed."""
    if not run.tasks:
        return None
    mixed = run.mixture
    entries = [
        ("fill", "--c:var(--natural)", "natural share: the task's part of all usable examples"),
        ("fill", page.colour(0), "sampled share: its part of the examples trained on"),
    ]
    parts: list[object] = [
        page.legend(entries),
        page.figure(Html(figures.paired_bars(share_bars(run), width=1040)), wide=True),
        tag("div", mixture_table(run), style="margin-top:22px"),
    ]
    about = []
    if mixed.get("effective_tasks") is not None:
        about.append(
            f"{number(mixed['effective_tasks']):.2f} effective tasks (exponential of the entropy of the shares)"
        )
    if mixed.get("total_variation") is not None:
        about.append(f"caps and rounding moved {share(number(mixed['total_variation']))} of the run between tasks")
    if mixed.get("fill") is not None:
        about.append(f"rows of {mixed.get('seq_len', '?')} tokens are {share(number(mixed['fill']))} full")
    if about:
        parts.append(tag("p", ". ".join(text[0].upper() + text[1:] for text in about) + ".", class_="note"))
    return Section("mixture", "Mixture", mixture_lead(run), parts)


def mixture_lead(run: Run) -> str:
    mixed = run.mixture
    total, drawn = (
        sum(one.usable or one.size for one in run.tasks),
        mixed.get("budget") or sum(t.count for t in run.tasks),
    )
    text = f"{total:,} usable examples; the plan draws {drawn:,}"
    if mixed.get("strategy") == "temperature":
        text += f" with shares proportional to size^(1/{number(mixed.get('temperature')):g})"
    repeats = run.config.get("mixture", {}).get("max_repeats")
    if isinstance(repeats, int | float):
        text += f", each at most {repeats:g} times"
    return text + "."


def share_bars(run: Run) -> list[figures.PairedBar]:
    total = sum(one.usable or one.size for one in run.tasks)
    bars = []
    for index, one in enumerate(run.tasks[:TASKS_DRAWN]):
        realised = one.realised if math.isfinite(one.realised) else one.probability
        size = one.usable or one.size
        title = f"{one.task}: {size:,} usable examples, {one.count:,} drawn, nominal share {share(one.probability)}"
        note = f"{one.epochs:.2f} epochs{', capped' if one.capped else ''}" if math.isfinite(one.epochs) else ""
        bars.append(
            figures.PairedBar(
                name=one.task, first=size / total, second=realised, colour=page.colour(index), note=note, title=title
            )
        )
    return bars


def mixture_table(run: Run) -> Html:
    columns = [
        Column("Task", number=False),
        Column("size", title="Examples in the source"),
        Column(
            "usable", title="After the length policy, the filter for examples without trained tokens, and max_examples"
        ),
        Column("nominal", title="Share that the mixture asks for"),
        Column("sampled", title="Share that the plan holds"),
        Column("drawn", title="Examples trained on, repeats included"),
        Column("epochs", title="Drawn / usable"),
        Column("prompt tokens"),
        Column("response tokens"),
        Column("trained tokens"),
        Column("of all trained", title="The task's share of all trained tokens"),
    ]
    rows = []
    for index, one in enumerate(run.tasks):
        capped = [" ", tag("span", "cap", class_="tag", title="At its repetition cap")] if one.capped else []
        rows.append(
            [
                page.swatch(index, one.task),
                f"{one.size:,}",
                f"{one.usable:,}",
                share(one.probability),
                share(one.realised),
                f"{one.count:,}",
                join([f"{one.epochs:.2f}", *capped]),
                f"{one.prompt_tokens:,}",
                f"{one.response_tokens:,}",
                f"{one.loss_tokens:,}",
                share(one.loss_token_share),
            ]
        )
    sums = {name: sum(getattr(one, name) for one in run.tasks) for name in ("size", "usable", "count", "loss_tokens")}
    prompt, response = sum(one.prompt_tokens for one in run.tasks), sum(one.response_tokens for one in run.tasks)
    epochs = f"{sums['count'] / sums['usable']:.2f}" if sums["usable"] else "–"
    total = ["All", f"{sums['size']:,}", f"{sums['usable']:,}", "", "", f"{sums['count']:,}", epochs]
    total += [f"{prompt:,}", f"{response:,}", f"{sums['loss_tokens']:,}", ""]
    return page.table(columns, rows, total=total)


# Examples and answers


def examples_section(run: Run) -> Section | None:
    """Examples of each task with the trained tokens marked."""
    if not run.samples:
        return None
    order = {task: index for index, task in enumerate(run.task_names)}
    parts = []
    for task, samples in list(run.samples.items())[:TASKS_DRAWN]:
        cards = [
            page.example_card(
                page.swatch(order.get(task, 0), task), str(one.get("id", "")), one["tokens"], one["weights"]
            )
            for one in samples
        ]
        more = [page.details(f"{len(cards) - 1} more of {task}", *cards[1:])] if len(cards) > 1 else []
        parts.append(tag("div", *cards[:1], *more))
    lead = "As the model sees them. Marked tokens carry loss (hover for the weight); all others are context only."
    return Section("examples", "What is trained", lead, [tag("div", *parts, class_="grid2")])


def answers_section(run: Run) -> Section | None:
    """Answers to the same test questions before and after."""
    before, after = run.generations.get("before", {}), run.generations.get("after", {})
    if not before and not after:
        return None
    order = {task: index for index, task in enumerate(run.task_names)}
    parts: list[object] = []
    for task in list({**before, **after})[:TASKS_DRAWN]:
        old = {row["id"]: row for row in before.get(task, [])}
        new = {row["id"]: row for row in after.get(task, [])}
        keys = list({**old, **new})
        rows = [answer_row(old.get(key), new.get(key)) for key in keys[:ANSWERS_SHOWN]]
        parts += [tag("h3", page.swatch(order.get(task, 0), task)), answer_table(rows[:ANSWERS_OPEN])]
        if len(rows) > ANSWERS_OPEN:
            parts.append(page.details(f"{len(rows) - ANSWERS_OPEN} more of {task}", answer_table(rows[ANSWERS_OPEN:])))
    lead = "The first test questions of each task, answered greedily by the base model and by the tuned one."
    return Section("answers", "Answers before and after", lead, parts)


def answer_table(rows: Sequence[Sequence[object]]) -> Html:
    columns = [Column(name, number=False) for name in ("Question", "Reference", "Before", "After")]
    return page.table(columns, rows, class_="answers")


def answer_row(before: Json | None, after: Json | None) -> list[object]:
    known = after or before or {}
    texts = [str(known.get("prompt", "")), str(known.get("reference", ""))]
    return [*(figures.shorten(text, 400) for text in texts), answer_cell(before), answer_cell(after)]


def answer_cell(row: Json | None) -> Html:
    if row is None:
        return Html("–")
    right = bool(row["correct"])
    mark = tag(
        "span", "✓" if right else "✗", class_=f"mark {'good' if right else 'bad'}", title="right" if right else "wrong"
    )
    return join([mark, " ", figures.shorten(str(row["prediction"]), 300) or tag("span", "(empty)", class_="dim")])


# Facts


def facts_section(run: Run) -> Section:
    """What is needed to name and repeat the run."""
    environment, summary = run.environment, run.summary
    packages = environment.get("packages", environment.get("versions", {}))
    commit = environment.get("commit", environment.get("code", {}).get("commit") if "code" in environment else None)
    pairs: list[tuple[str, object]] = [("Run folder", str(run.path)), ("Status", status(run))]
    pairs += [("Seed", run.config["seed"])] if "seed" in run.config else []
    pairs += [("Plan hash", tag("code", run.mixture["plan_hash"]))] if run.mixture.get("plan_hash") else []
    pairs += (
        [("Code", tag("code", f"{commit}{' with local changes' if environment.get('dirty') else ''}"))]
        if commit
        else []
    )
    pairs += [("Python", environment["python"])] if environment.get("python") else []
    if isinstance(packages, dict) and packages:
        pairs.append(("Packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))))
    if environment.get("devices"):
        pairs.append(("Devices", plain_text(environment["devices"])))
    pairs += [("Skipped updates", f"{summary['skipped_steps']:,}")] if "skipped_steps" in summary else []
    files = {
        "Configuration": run.config,
        "Environment": environment,
        "Manifest": run.manifest,
        "Summary": summary,
    }
    parts = [page.facts(pairs)]
    parts += [page.details(name, tag("pre", pretty(value))) for name, value in files.items() if value]
    return Section("facts", "Run facts", "", parts)


def plain_text(value: Any) -> str:
    """A JSON value on one line."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def pretty(value: Any, limit: int = 40_000) -> str:
    """A JSON value as indented text; an enormous one is cut, and says so."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters in the run folder"
