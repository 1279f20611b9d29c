"""Forgetting on a page: what tuning cost on the retention texts, and gain against it over the runs of a sweep."""

import html
import math
from collections.abc import Sequence

from jaxtune.reports import page
from jaxtune.reports.drawing import Frame, XAxis, axes, svg, text
from jaxtune.reports.page import Column, Html, Section
from jaxtune.runs.forgotten import forget, forgotten, gain
from jaxtune.runs.history import Run
from jaxtune.science.forgetting import pareto
from jaxtune.terminal.numbers import axis_numbers, decimal, percent, signed


def forgetting_section(runs: Sequence[Run]) -> Section | None:
    """Table, and with several runs the picture; None where no run has retention texts."""
    kept = [run for run in runs if forgotten(run)]
    if not kept:
        return None
    parts: list[object] = []
    if len(kept) > 1:
        entries = [("disc", page.colour(0), "all parameters"), ("disc", page.colour(1), "adapters")]
        note = "up: gained on the tasks; right: lost on the texts; the line joins runs that no other beats in both"
        parts += [
            page.legend(entries),
            page.wide_figure(lambda width: picture(kept, width), caption="Gain against forgetting", note=note),
        ]
    parts.append(forgetting_table(kept))
    lead = (
        "Texts without a chat template that were not trained on, before and after tuning, nats per token; KL is the "
        "distance of the next token's distribution from that of the model before tuning. Exact: whole continuations "
        "that greedy generation would give. Compare methods at equal task loss, never at equal learning rate."
    )
    return Section("forgetting", "Forgetting", lead, parts)


def forgetting_table(runs: Sequence[Run]) -> Html:
    """Every text of every run."""
    columns = [Column("run", number=False), Column("text", number=False)]
    columns += [Column(name) for name in ("before", "after", "forgotten", "KL", "exact before", "exact after", "n")]
    rows = [
        [
            run.name, one.text, decimal(one.before), decimal(one.after), signed(one.loss, 3), decimal(one.kl),
            percent(one.exact_before), percent(one.exact_after), f"{one.documents:,}",
        ]
        for run in runs
        for one in forgotten(run)
    ]  # fmt: skip
    return page.table(columns, rows)


def picture(runs: Sequence[Run], width: int, height: int = 320) -> str:
    """A dot a run: forgetting to the right, gain upwards, adapters in a colour of their own."""
    points = [(forget(run), gain(run)) for run in runs]
    drawn = [i for i, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    xs, ys = [points[i][0] for i in drawn] or [0.0, 1.0], [points[i][1] for i in drawn] or [0.0, 1.0]
    pad = lambda values: 0.08 * (max(values) - min(values)) or 0.1
    frame = Frame(
        left=52, right=width - 14, top=10, bottom=height - 26, x_low=min(0.0, *xs) - pad(xs), x_high=max(xs) + pad(xs),
        y_low=min(ys) - pad(ys), y_high=max(ys) + pad(ys),
    )  # fmt: skip
    parts = [axes(frame, axis_numbers(frame.y_high), XAxis(label="forgotten, nats per token"))]
    front = pareto([points[i] for i in drawn])
    if len(front) > 1:
        places = " ".join(f"{frame.x(xs[i]):.1f},{frame.y(ys[i]):.1f}" for i in front)
        parts.append(f'<polyline class="link" style="--c:var(--soft)" points="{places}"/>')
    for i in drawn:
        colour = page.colour(1 if runs[i].config.get("lora") else 0)
        title = html.escape(f"{runs[i].name}: gained {points[i][1]:.3f}, forgot {points[i][0]:.3f}")
        x, y = frame.x(points[i][0]), frame.y(points[i][1])
        parts.append(
            f'<circle class="dot full" cx="{x:.1f}" cy="{y:.1f}" r="4" style="{colour}"><title>{title}</title></circle>'
        )
    parts.append(text(frame.left, frame.top + 4, "gained, nats per token", "start", "label"))
    return svg(width, height, parts)
