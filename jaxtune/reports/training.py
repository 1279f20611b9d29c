"""The training section of a run's page: loss over all and by task, optimizer, throughput, events."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style, condensed, line_chart, smooth
from jaxtune.reports.drawing import XAxis, YAxis, shorten
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, tag, words
from jaxtune.runs.history import EvalRow, Run, TrainRow
from jaxtune.runs.results import exact_over_steps, fixed_answers, macro_mean
from jaxtune.storage.documents import Json, number
from jaxtune.terminal.numbers import Format, axis_percent, decimal

SHARE = YAxis(form=axis_percent, within=(0.0, 1.0))
ENOUGH_QUESTIONS = 20
"""Fixed questions from which on their share of right answers is drawn; of fewer it is mostly chance."""
LOG_NOTE = "logarithmic where it falls tenfold"
LOSS = YAxis(log=True)
"""A loss falls fast and then little for long; only on a logarithmic scale both can be seen."""
SMOOTHED = 2000
"""Points that a long curve is condensed to before it is smoothed."""


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
    if any(prompt_losses(row) for row in run.evals):
        entries.append(("ring", PROMPTS, "prompts of the validation examples, by task"))
    curves = loss_series([row.step for row in run.train], [row.loss for row in run.train], [1.0] * len(run.train))
    curves.append(validation_series(run, None))
    parts: list[object] = [
        page.legend(entries),
        page.wide_figure(
            lambda width: line_chart(curves, width=width, height=290, marks=marks, y=LOSS),
            caption="Loss, all tasks",
            note=f"nats per trained token; {LOG_NOTE}",
        ),
    ]
    panels = [task_panel(run, task, index, marks) for index, task in enumerate(run.task_names[:TASKS_DRAWN])]
    if len(run.task_names) > 1:
        parts += [
            subheading("Loss by task", "by step; each panel has its own scale"),
            tag("div", *panels, class_="grid4"),
        ]
    if len(run.task_names) > TASKS_DRAWN:
        rest = len(run.task_names) - TASKS_DRAWN
        parts.append(tag("p", f"The curves of {rest:,} more tasks are in metrics.jsonl.", class_="note"))
    over_steps = quality_panels(run)
    if over_steps:
        parts += [subheading("Answers and tokens", "by step"), tag("div", *over_steps, class_="grid3")]
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
    x, y, mass = condensed(steps, losses, weights, SMOOTHED)
    smoothed = smooth(y, mass, max(1.0, len(x) / 40))
    at = x.tolist()
    return [
        Series(name="training, raw", x=at, y=y.tolist(), colour=colour, style=Style.RAW),
        Series(name="training", x=at, y=smoothed.tolist(), colour=colour),
    ]


def validation_series(run: Run, task: str | None) -> Series:
    """Validation loss over all tasks, or of one."""
    rows = [row for row in run.evals if task is None or task in row.task_loss]
    losses = [row.loss if task is None else row.task_loss[task] for row in rows]
    return Series(name="validation", x=[row.step for row in rows], y=losses, colour="--c:var(--ink)", style=Style.DOTS)


PROMPTS = "--c:var(--soft)"
"""Colour of the prompts' curve."""


def prompt_losses(row: EvalRow) -> Json:
    """Validation loss of the prompts by task; empty where the run does not train on them."""
    return row.extra.get("task_prompt_loss", {})


def prompt_series(run: Run, task: str) -> list[Series]:
    """Validation loss of a task's prompts, where it was measured."""
    rows = [row for row in run.evals if task in prompt_losses(row)]
    losses = [number(prompt_losses(row)[task]) for row in rows]
    steps = [row.step for row in rows]
    return [Series(name="prompts", x=steps, y=losses, colour=PROMPTS, style=Style.DOTS)] if rows else []


def task_panel(run: Run, task: str, index: int, marks: Sequence[tuple[float, str]]) -> Html:
    """One task's curves."""
    rows = [row for row in run.train if task in row.task_loss]
    series = [validation_series(run, task), *prompt_series(run, task)]
    if rows:
        weights = [max(row.task_tokens.get(task, 1.0), 0.0) for row in rows]
        losses = [row.task_loss[task] for row in rows]
        series = loss_series([row.step for row in rows], losses, weights, page.colour(index)) + series
    bare = [(step, "") for step, _ in marks]
    drawing = line_chart(series, width=250, height=150, marks=bare, x=XAxis(named=False), y=LOSS)
    return page.figure(Html(drawing), caption=page.swatch(index, task))


def quality_panels(run: Run) -> list[Html]:
    """Shares of validation tokens that were predicted, and of fixed questions that were answered exactly."""
    rows = [row for row in run.evals if row.extra.get("task_accuracy")]
    accuracy = [macro_mean([number(value) for value in row.extra["task_accuracy"].values()]) for row in rows]
    found = [("Token accuracy", "validation, mean of tasks", [row.step for row in rows], accuracy)]
    exact, asked = exact_over_steps(run), fixed_answers(run)
    many = len(next(iter(asked.values()), {}))
    if many >= ENOUGH_QUESTIONS:
        steps, shares = zip(*exact, strict=True)
        found.append(("Exact match", f"{many} fixed questions", list(steps), list(shares)))
    hooked = dict.fromkeys(name for row in run.evals for name in row.extra.get("hook", {}))
    panels = [small_panel(steps, shares, name, note, SHARE) for name, note, steps, shares in found if len(steps) > 1]
    for name in hooked:
        pairs = [(row.step, number(row.extra["hook"].get(name))) for row in run.evals if "hook" in row.extra]
        steps, values = zip(*pairs, strict=True)
        panels.append(small_panel(steps, values, name, "by the config's hook", YAxis()))
    return panels


def small_panel(steps: Sequence[int], values: Sequence[float], name: str, note: str, y: YAxis) -> Html:
    """One measurement over the validations."""
    series = [Series(name=name, x=steps, y=values, style=Style.POINTS)]
    return page.figure(
        Html(line_chart(series, width=336, height=150, x=XAxis(named=False), y=y)), caption=name, note=note
    )


def schedule_words(run: Run) -> str:
    """The schedule of the learning rate, with its warmup."""
    optim = run.config.get("optim", {})
    steps, share_of_run = optim.get("warmup_steps"), number(optim.get("warmup_frac", 0.0))
    parts = [f"warmup of {steps:,} steps" if steps else f"warmup of {100 * share_of_run:.3g}% of the run"]
    parts = parts if steps or share_of_run > 0 else []
    return ", then ".join([*parts, *([words(optim["schedule"])] if "schedule" in optim else [])])


def machine_panels(run: Run) -> list[Html]:
    """Learning rate, gradient norm, speed, padding and whatever else was logged of the machine."""
    later = dataclasses.replace(run, train=run.train[1:])  # the first step compiles
    speed: list[Curve] = [("all", lambda row: row.tokens_per_s), ("trained", lambda row: row.loss_tokens_per_s)]
    panels = [
        panel(
            run, "Learning rate", [("rate", lambda row: row.learning_rate)], smoothed=False, note=schedule_words(run)
        ),
        panel(run, "Gradient norm", [("norm", lambda row: row.grad_norm)], note="before clipping"),
        panel(later, "Tokens per second", speed, labels=True),
        panel(run, "Padding", [("padding", lambda row: row.padding)], form=axis_percent, note="share of slots"),
        panel(run, "Waiting for data", [("waiting", extra("data_wait"))], form=axis_percent, note="share of time"),
        panel(run, "Peak memory", [("memory", gibibytes)], smoothed=False, note="of the process, GiB"),
        panel(later, "Share of peak", [("MFU", extra("mfu"))], form=axis_percent, note="of the matrix-multiply rate"),
    ]
    return [one for one in panels if one is not None]


Curve = tuple[str, Callable[[TrainRow], float]]
"""A name, and the number of a train row that it stands for."""


def extra(name: str) -> Callable[[TrainRow], float]:
    """A number that only some runs log."""
    return lambda row: number(row.extra.get(name))


def gibibytes(row: TrainRow) -> float:
    """Peak memory of the process so far."""
    return number(row.extra.get("memory_mb")) / 1024


def panel(
    run: Run,
    caption: str,
    curves: Sequence[Curve],
    *,
    smoothed: bool = True,
    form: Format | None = None,
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
        drawn = pair if smoothed else [dataclasses.replace(pair[1], y=pair[0].y)]
        series += [dataclasses.replace(one, name=one.name.replace("training", name)) for one in drawn]
    if not series:
        return None
    drawing = line_chart(
        series, width=336, height=150, x=XAxis(named=False), y=YAxis(form=form, from_zero=True), end_labels=labels
    )
    return page.figure(Html(drawing), caption=caption, note=note)


def trouble(run: Run) -> list[object]:
    """Skipped updates, loss spikes and other events, if there were any."""
    skipped = [row.step for row in run.train if row.skipped]
    parts: list[object] = []
    if skipped:
        counted = (
            "1 update was skipped: step " if len(skipped) == 1 else f"{len(skipped):,} updates were skipped: steps "
        )
        listed = ", ".join(f"{step:,}" for step in skipped[:12]) + (" …" if len(skipped) > 12 else "")
        parts.append(tag("p", f"{counted}{listed}.", class_="note"))
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
                decimal(number(event.get("loss"))),
                shorten(", ".join(map(str, event.get("examples", []))), 120),
            ]
            for event in run.events[:20]
        ]
        parts += [tag("h3", "Events"), page.table(columns, rows)]
        if len(run.events) > 20:
            parts.append(tag("p", f"{len(run.events) - 20:,} more are in metrics.jsonl.", class_="note"))
    return parts
