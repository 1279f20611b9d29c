"""Bars, histograms and estimates with whiskers as SVG."""

import dataclasses
import html
import math
from collections.abc import Sequence

from jaxtune.reports.drawing import Frame, XAxis, axes, mark, shorten, svg, text, ticks
from jaxtune.terminal.numbers import Format, Number, axis_numbers

STACKED = 600
"""Width in pixels below which names stand above their bars."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedBar:
    """Two shares of one task, drawn as a thin neutral bar above a full one."""

    name: str
    first: Number
    second: Number
    colour: str
    note: str = ""
    """Printed at the right end."""
    title: str = ""
    """Shown on hover."""


def paired_bars(bars: Sequence[PairedBar], *, width: int) -> str:
    """For each task its first share (neutral) and its second (coloured), with both numbers and a note.

    In a narrow drawing name and note stand above the bars, else beside them.
    """
    narrow = width < STACKED
    row, left, right, down = (58, 0, 0, 18) if narrow else (40, 150, 150, 0)
    high = max([bar.first for bar in bars] + [bar.second for bar in bars] + [1e-9])
    scale = (width - left - right - 58) / high
    parts = []
    for index, bar in enumerate(bars):
        top = index * row
        y = top + down
        first, second = max(bar.first * scale, 1.0), max(bar.second * scale, 1.0)
        parts.append(
            f'<g style="{bar.colour}"><title>{html.escape(bar.title)}</title>'
            f'<rect class="hit" x="0" y="{top}" width="{width}" height="{row}"/>'
            + _beside(bar.name, 20, top + 14 if narrow else y + 24, left, narrow)
            + f'<rect x="{left}" y="{y + 7}" width="{first:.1f}" height="7" rx="1.5" fill="var(--natural)"/>'
            + f'<rect class="bar" x="{left}" y="{y + 16}" width="{second:.1f}" height="13" rx="1.5"/>'
            + text(left + first + 6, y + 14, f"{100 * bar.first:.1f}%", "start")
            + text(left + second + 6, y + 27, f"{100 * bar.second:.1f}%", "start", "strong")
            + text(width, top + 14 if narrow else y + 24, bar.note, "end", "label")
            + "</g>"
        )
    return svg(width, row * len(bars), parts)


def _beside(name: str, length: int, y: Number, left: Number, narrow: bool) -> str:
    """A row's name: at the left end of its own line in a narrow drawing, else up to the plot's left side."""
    at, anchor = (0, "start") if narrow else (left - 14, "end")
    return text(at, y, shorten(name, 34 if narrow else length), anchor, "strong")


def histogram(
    counts: Sequence[int],
    edges: Sequence[Number],
    *,
    width: int,
    height: int,
    colour: str,
    x: XAxis,
    marks: Sequence[tuple[Number, str]] = (),
) -> str:
    """Bars over bins; `edges` has one more entry than `counts`."""
    frame = Frame(
        left=46,
        right=width - 14,
        top=20 if marks else 10,
        bottom=height - 24,
        x_low=edges[0],
        x_high=edges[-1],
        y_low=0.0,
        y_high=1.05 * max([*counts, 1]),
    )
    parts = [axes(frame, axis_numbers(frame.y_high), x)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        left, y = frame.x(low), frame.y(count)
        wide = max(frame.x(high) - left - 1, 0.8)
        parts.append(
            f'<g style="{colour}"><rect class="bar" x="{left + 0.5:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{max(frame.bottom - y, 0):.1f}"/><rect class="hit" x="{left:.1f}" y="{frame.top:g}" '
            f'width="{wide:.1f}" height="{frame.bottom - frame.top:g}"/>'
            f"<title>{low:,.0f} to {high:,.0f} {html.escape(x.label)}: {count:,}</title></g>"
        )
    parts += [mark(frame, place, label) for place, label in marks]
    return svg(width, height, parts)


def change_bar(
    before: Number, after: Number, *, colour: str, width: int = 190, low: Number = 0.0, high: Number = 1.0
) -> str:
    """A value before (ring) and after (disc) on a common scale, for a table cell."""
    height, pad = 18, 6
    scale = (width - 2 * pad) / (high - low)
    start, stop = pad + (before - low) * scale, pad + (after - low) * scale
    middle = height / 2
    parts = [f'<line class="axis" x1="{pad}" x2="{width - pad}" y1="{middle:g}" y2="{middle:g}"/>']
    if math.isfinite(before) and math.isfinite(after):
        parts.append(f'<line class="whisker" x1="{start:.1f}" x2="{stop:.1f}" y1="{middle:g}" y2="{middle:g}"/>')
    if math.isfinite(before):
        parts.append(f'<circle class="dot" cx="{start:.1f}" cy="{middle:g}" r="3.6"/>')
    if math.isfinite(after):
        parts.append(f'<circle class="dot full" cx="{stop:.1f}" cy="{middle:g}" r="4.2"/>')
    return f'<svg viewBox="0 0 {width} {height}" style="width:{width}px;{colour}">{"".join(parts)}</svg>'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whisker:
    """An estimate with its interval."""

    name: str
    mean: Number
    low: Number
    high: Number
    points: Sequence[Number] = ()
    """The measurements behind the estimate, drawn as small rings."""
    colour: str = "--c:var(--accent)"
    note: str = ""


def whiskers(rows: Sequence[Whisker], *, width: int, form: Format, x_label: str) -> str:
    """Estimates with whiskers over a common axis that shows zero; names and notes as in `paired_bars`."""
    narrow = width < STACKED
    row, left, right, up = (44, 10, 10, 16) if narrow else (26, 170, 170, 0)
    ends = [value for one in rows for value in (one.low, one.high, one.mean, *one.points)]
    bounds = [value for value in ends if math.isfinite(value)] + [0.0]
    pad = 0.06 * (max(bounds) - min(bounds)) or 1.0
    frame = Frame(
        left=left,
        right=width - right,
        top=4,
        bottom=row * len(rows) + 8,
        x_low=min(bounds) - pad,
        x_high=max(bounds) + pad,
        y_low=0,
        y_high=1,
    )
    parts = []
    for value in ticks(frame.x_low, frame.x_high, 5):
        kind = "rule" if value == 0 else "grid"
        at = f"{frame.x(value):.1f}"
        parts.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{frame.top:g}" y2="{frame.bottom:g}"/>')
        parts.append(text(frame.x(value), frame.bottom + 16, form(value), "middle"))
    below = 14 if narrow and x_label else 0  # the axis' name has a line of its own where numbers reach the right end
    parts.append(text(width, frame.bottom + 16 + below, x_label, "end"))
    for index, one in enumerate(rows):
        middle = 4 + row * index + row / 2
        y, words = middle + up / 2, middle - up / 2 + 4
        parts.append(f'<g style="{one.colour}">' + _beside(one.name, 24, words, left, narrow))
        if math.isfinite(one.low) and math.isfinite(one.high):
            low, high = f"{frame.x(one.low):.1f}", f"{frame.x(one.high):.1f}"
            parts.append(f'<line class="whisker" x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}"/>')
        parts += [
            f'<circle class="dot" cx="{frame.x(value):.1f}" cy="{y:g}" r="2.2"/>'
            for value in one.points
            if math.isfinite(value)
        ]
        if math.isfinite(one.mean):
            parts.append(f'<circle class="dot full" cx="{frame.x(one.mean):.1f}" cy="{y:g}" r="4"/>')
        parts.append(text(width, words, one.note, "end", "label") + "</g>")
    return svg(width, int(frame.bottom + 26 + below), parts)
