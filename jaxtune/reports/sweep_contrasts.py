"""Differences between the values of each option of a sweep, with the seed as the unit, on a page."""

import math
from collections.abc import Sequence

from jaxtune.reports import page
from jaxtune.reports.bars import Whisker, whiskers
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, change, tag
from jaxtune.runs.sweep_contrasts import Answer, answers, task_answers
from jaxtune.runs.sweeps import Measure, Sweep, option_name
from jaxtune.terminal.numbers import signed


def difference_section(sweep: Sweep) -> Section | None:
    """Each value of each option against the option's first value, over runs alike in all else."""
    family = answers(sweep, sweep.measures)
    if not family:
        return None
    parts: list[object] = []
    for axis in dict.fromkeys(one.question.axis for one in family):
        members = [one for one in family if one.question.axis == axis]
        parts.append(tag("h3", f"{option_name(axis) or 'setting'}, against {members[0].question.reference}"))
        parts.append(tag("div", *(chart(members, measure) for measure in sweep.measures), class_="grid2"))
        parts += [task_table(sweep, axis, measure) for measure in sweep.measures]
    return Section("differences", "Paired differences", lead_text(sweep, family), parts)


def lead_text(sweep: Sweep, family: Sequence[Answer]) -> str:
    """Sentence about the contrasts: what they show, their number, and what clear means."""
    seeds = len(sweep.seeds)
    text = (
        "Differences between settings that agree in every other option, averaged inside each seed; the rings are the "
        f"seeds, the whisker is Student's 95% interval over them. This page holds {len(family)} contrasts; one is "
        "clear if it survives Holm's adjustment over all of them at 5%. Each table by task is a family of its own."
    )
    if seeds < 3:
        text += f" {seeds} seed{'s give' if seeds > 1 else ' gives'} no interval: at least three are needed."
    return text


def chart(members: Sequence[Answer], measure: Measure) -> Html:
    """The contrasts of one option by one measure."""
    rows = [
        Whisker(
            name=one.question.value,
            mean=one.contrast.mean,
            low=one.contrast.low,
            high=one.contrast.high,
            points=one.contrast.by_seed,
            note=note(one),
        )
        for one in members
        if one.measure.name == measure.name
    ]
    drawing = whiskers(rows, width=430, form=lambda value: f"{measure.scale * value:g}", x_label="")
    return tag("div", page.figure(Html(drawing), caption=measure.title))


def note(one: Answer) -> str:
    """A contrast in words."""
    measure, found = one.measure, one.contrast
    text = f"{signed(found.mean, measure.digits, measure.scale)} {measure.unit}, {found.n} seed{'s' * (found.n != 1)}"
    return text + (", clear" if found.clear else "")


def task_table(sweep: Sweep, axis: str, measure: Measure) -> Html:
    """Mean difference task by task."""
    tasks = sweep.tasks[:TASKS_DRAWN]
    found = task_answers(sweep, axis, measure, tasks)
    columns = [Column(option_name(axis) or "setting", number=False), *(Column(task) for task in tasks)]
    rows = []
    for value in dict.fromkeys(one.question.value for one in found):
        cells = [cell(one) for one in found if one.question.value == value]
        rows.append([value, *cells])
    title = measure.title.split(",")[0]
    caption = f"{title}, change in {measure.unit} by task ({len(found)} contrasts; coloured where clear)"
    return tag("div", page.figure(page.table(columns, rows), caption=caption), style="margin-top:20px")


def cell(one: Answer) -> Html:
    """A task's difference; its interval and p are the hover title."""
    measure, found = one.measure, one.contrast
    better = 1 if measure.higher_is_better else -1
    shown = change(found.mean, measure.digits, better=better, scale=measure.scale, clear=found.clear)
    if not math.isfinite(found.low):
        return shown
    low, high = (signed(bound, measure.digits, measure.scale) for bound in (found.low, found.high))
    return tag("span", shown, title=f"95% interval {low} to {high}, {found.n} seeds, adjusted p {found.adjusted:.2g}")
