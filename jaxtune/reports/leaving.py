"""Left-out clusters on a page: what the others bring to each, and the loss against their number."""

import math

from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style, line_chart
from jaxtune.reports.drawing import XAxis
from jaxtune.reports.page import Column, Section
from jaxtune.runs.leaving import read_leaving
from jaxtune.runs.sweeps import Sweep
from jaxtune.terminal.numbers import decimal, percent


def leaving_section(sweep: Sweep) -> Section | None:
    """Table of the clusters and, where several numbers of clusters were trained on, the curve; None for others."""
    found = read_leaving(sweep)
    if not found:
        return None
    columns = [Column("cluster", number=False), Column("tasks", number=False), Column("loss of the base")]
    columns += [Column("loss without it"), Column("retained"), Column("95 % interval"), Column("seeds")]
    rows = []
    for one in found:
        kept = one.retained
        interval = f"{percent(kept.low, 0)} to {percent(kept.high, 0)}" if math.isfinite(kept.low) else "–"
        last = decimal(one.curve[max(one.curve)])
        rows.append(
            [one.cluster, ", ".join(one.tasks), decimal(one.base), last, percent(kept.mean, 0), interval, kept.n]
        )
    parts: list[object] = [page.table(columns, rows)]
    lines = [one for one in found if len(one.curve) > 1]
    if lines:
        series = [
            Series(
                name=one.cluster, x=list(one.curve), y=list(one.curve.values()), colour=page.colour(index),
                style=Style.DOTS,
            )
            for index, one in enumerate(lines)
        ]  # fmt: skip
        counts = sorted({count for one in lines for count in one.curve})
        axis = XAxis(label="clusters trained on", ticks=[(count, f"{count}") for count in counts])
        drawing = lambda width: line_chart(series, width=width, height=260, x=axis)
        entries = [("stroke", page.colour(index), one.cluster) for index, one in enumerate(lines)]
        caption = "Loss of a left-out cluster by the number of others trained on"
        parts += [
            page.legend(entries),
            page.wide_figure(drawing, caption=caption, note="nats per token, mean of seeds"),
        ]
    lead = (
        "Retained: (loss of the base - loss without the cluster) / (loss of the base - loss with all clusters), of the "
        "cluster's own tasks. 100 %: the others do as much for it as its own data; below 0: they harm it. Seeds are "
        "resampled for the interval."
    )
    return Section("leaving", "Leave one cluster out", lead, parts)
