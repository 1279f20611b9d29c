"""Memorisation on a page: loss and exact match of a repeat ladder's bins against how often they were trained on."""

import math
from collections.abc import Callable, Mapping, Sequence

from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style, line_chart
from jaxtune.reports.drawing import XAxis
from jaxtune.reports.page import Column, Html, Section, tag
from jaxtune.runs.history import Run
from jaxtune.runs.results import reached
from jaxtune.science.contrasts import Contrast
from jaxtune.science.memorisation import memorised
from jaxtune.tasks.ladder import ladders
from jaxtune.terminal.numbers import signed

RULE = (
    "Rule of thumb: repeats bring nearly what new examples bring up to about four passes, and little beyond that "
    "(Muennighoff et al. 2023, arXiv 2305.16264)."
)


def ladder_section(groups: Mapping[str, Sequence[Run]]) -> Section | None:
    """Every ladder of some runs; None where they have none.

    `groups`: a name -> runs that differ in their seeds alone.
    """
    parts: list[object] = []
    names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.task_names)
    for task, bins in ladders(names).items():
        loss = {group: curve(runs, bins, loss_of) for group, runs in groups.items()}
        match = {group: curve(runs, bins, match_of) for group, runs in groups.items()}
        drawings = [picture(loss, "Memorised: loss of bin 0 minus that of the bin (nats per token)")]
        if any(one for one in match.values()):
            drawings.append(picture(match, "Extracted: exact match of the bin minus that of bin 0"))
        parts += [tag("h3", task), tag("div", *drawings, class_="grid2"), ladder_table(loss, match)]
    if not parts:
        return None
    lead = (
        "Bins of one task's training records, alike in all but how often each was trained on; bin 0 never was. Numbers "
        f"are of the bins' own records at the end of the runs, seeds are the unit. {RULE}"
    )
    return Section("memorisation", "Memorisation against repeats", lead, parts)


def loss_of(run: Run, name: str) -> float:
    """Loss of a bin, nats per token."""
    return reached(run).task_loss.get(name, math.nan)


def match_of(run: Run, name: str) -> float:
    """Minus the exact match of a bin, which rises where a loss falls."""
    return -reached(run).task_exact_match.get(name, math.nan)


def curve(runs: Sequence[Run], bins: Mapping[int, str], number: Callable[[Run, str], float]) -> dict[int, Contrast]:
    """By repeats, what a bin differs by from bin 0; empty where nothing was measured."""
    found = memorised({times: [number(run, name) for run in runs] for times, name in bins.items()})
    return {times: one for times, one in found.items() if one.n}


def picture(curves: Mapping[str, Mapping[int, Contrast]], caption: str) -> Html:
    """A line a group over repeats on a logarithmic axis."""
    times = sorted({one for found in curves.values() for one in found})
    series = [
        Series(
            name=group,
            x=[math.log2(one) for one in found],
            y=[contrast.mean for contrast in found.values()],
            spread=[(contrast.high - contrast.low) / 2 for contrast in found.values()],
            style=Style.DOTS,
            colour=page.colour(index),
        )
        for index, (group, found) in enumerate(curves.items())
        if found
    ]
    axis = XAxis(label="repeats", ticks=[(math.log2(one), f"{one}") for one in times])
    drawing = line_chart(series, width=450, height=220, x=axis)
    entries = [("stroke", page.colour(index), group) for index, group in enumerate(curves)] if len(curves) > 1 else []
    return tag("div", page.legend(entries), page.figure(Html(drawing), caption=caption, note="by repeats"))


def ladder_table(loss: Mapping[str, Mapping[int, Contrast]], match: Mapping[str, Mapping[int, Contrast]]) -> Html:
    """The numbers of the pictures."""
    columns = [Column("runs", number=False), Column("repeats"), Column("memorised, nats"), Column("95 % interval")]
    columns += [Column("clear", number=False), Column("extracted, points"), Column("seeds")]
    rows = []
    for group, found in loss.items():
        for times, one in found.items():
            interval = f"{signed(one.low, 3)} to {signed(one.high, 3)}" if math.isfinite(one.low) else "–"
            right = match[group].get(times)
            extracted = "–" if right is None else signed(right.mean, 1, 100)
            clear = ("yes" if one.clear else "no") if math.isfinite(one.p) else "–"
            rows.append([group, f"{times}", signed(one.mean, 3), interval, clear, extracted, f"{one.n}"])
    return page.table(columns, rows)
