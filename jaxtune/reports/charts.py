"""Charts as SVG whose colours come from the page's style sheet, and PNG heatmaps for documents."""

import bisect
import dataclasses
import enum
import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

Number = int | float
Format = Callable[[Number], str]

POINTS = 500
"""Points kept of a long curve; more cannot be seen at these widths."""
SLICES = 80
"""Hover zones of a chart."""


class Style(enum.Enum):
    """How a series is drawn."""

    LINE = "line"
    RAW = "raw"  # thin and pale: what a smoothed line was made from
    DOTS = "dots"  # rings joined by a line: few measurements
    POINTS = "points"  # rings on a full line: values at named places


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. Points with a NaN are gaps."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    colour: str = "--c:var(--accent)"
    style: Style = Style.LINE
    spread: Sequence[Number] | None = None
    """Half-width of the whisker at each point, if any."""


def number_format(largest: Number) -> Format:
    """Axis numbers for values up to `largest`: `0.0012`, `0.35`, `12`, `4.5k`."""
    if largest >= 10_000:
        return lambda value: f"{value / 1000:,.4g}k" if value else "0"
    if largest >= 0.01:
        return lambda value: f"{value:.4g}"
    return lambda value: f"{value:.2g}" if value else "0"


def percent(value: Number) -> str:
    """A share as a percentage for an axis."""
    return f"{100 * value:.3g}%" if value else "0"


def ticks(low: Number, high: Number, count: int = 4) -> list[Number]:
    """About `count` round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], half_life: Number
) -> Float[np.ndarray, " n"]:
    """Weighted straight line through the neighbours on both sides, read off at each point.

    Neighbour k weighs w_k 2^(-|t - k| / half_life). A line, not a mean, so that a steep start is not drawn too low.
    Non-finite values weigh nothing.
    """
    decay = 0.5 ** (1 / half_life)
    mass = np.where(np.isfinite(values), weights, 0.0)
    y = np.where(mass > 0, values, 0.0)
    x = np.arange(len(values)) / max(len(values), 1)
    s0, s1, s2, t0, t1 = (_both_sides(mass * one, decay) for one in (np.ones_like(x), x, x * x, y, x * y))
    spread = s0 * s2 - s1 * s1
    lined = spread > 1e-9 * s0 * s0
    slope = np.divide(s0 * t1 - s1 * t0, spread, out=np.zeros_like(x), where=lined)
    return np.divide(t0 - slope * s1, s0, out=np.full(len(values), math.nan), where=s0 > 0) + slope * x


def _both_sides(values: Float[np.ndarray, " n"], decay: Number) -> Float[np.ndarray, " n"]:
    """sum_k decay^|t-k| v_k for every t."""
    forward, backward = values.copy(), values.copy()
    for index in range(1, len(values)):
        forward[index] += decay * forward[index - 1]
        backward[-1 - index] += decay * backward[-index]
    return forward + backward - values


def line_chart(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    x_label: str = "step",
    y_format: Format | None = None,
    from_zero: bool = False,
    marks: Sequence[tuple[Number, str]] = (),
    x_ticks: Sequence[tuple[Number, str]] | None = None,
    x_named: bool = True,
    end_labels: bool = False,
) -> str:
    """Curves over one pair of axes.

    `marks` are labelled vertical rules, `x_ticks` replaces the round numbers below, and `x_named=False` leaves the name
    of the x-axis to the hover titles, for small panels that share one.
    """
    drawn = [thinned(one) for one in series]
    frame = _frame(
        drawn,
        width,
        height,
        from_zero=from_zero,
        right=104 if end_labels else 14,
        top=20 if any(label for _, label in marks) else 8,
    )
    form = y_format or number_format(frame.y_high)
    parts = [_axes(frame, form, x_label if x_named else "", x_ticks)]
    parts += [_mark(frame, x, label) for x, label in marks]
    parts += [_curve(frame, one) for one in drawn]
    if end_labels:
        parts.append(_end_labels(frame, drawn))
    parts.append(_slices(frame, drawn, form, x_label, dict(x_ticks or ())))
    return _svg(width, height, parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frame:
    """The plot rectangle and the two linear scales."""

    left: Number
    right: Number
    top: Number
    bottom: Number
    x_low: Number
    x_high: Number
    y_low: Number
    y_high: Number

    def x(self, value: Number) -> float:
        span = self.x_high - self.x_low or 1.0
        return self.left + (value - self.x_low) / span * (self.right - self.left)

    def y(self, value: Number) -> float:
        clipped = min(max(value, self.y_low), self.y_high)
        return self.bottom - (clipped - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)


def _frame(series: Sequence[Series], width: int, height: int, *, from_zero: bool, right: int, top: int) -> _Frame:
    """Scales that hold every series; of raw curves only 96 % of the points, so one spike does not flatten the rest."""
    xs = [x for one in series for x in one.x] or [0.0, 1.0]
    ys = [bound for one in series for bound in _bounds(one)] or [0.0, 1.0]
    low, high = min(ys), max(ys)
    start = 0.0 if 0 < min(xs) <= 1 < max(xs) else min(xs)
    pad = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = (0.0 if from_zero else low - pad), high + pad
    if low >= 0 and low < 0.12 * high:
        low = 0.0
    return _Frame(
        left=46, right=width - right, top=top, bottom=height - 24, x_low=start, x_high=max(xs), y_low=low, y_high=high
    )


def _bounds(one: Series) -> list[Number]:
    """What the vertical scale has to hold of a series."""
    finite = [y for y in one.y if math.isfinite(y)]
    if one.style is Style.RAW and finite:
        return [float(value) for value in np.quantile(finite, (0.02, 0.98))]
    spread = one.spread if one.spread is not None else [0.0] * len(one.y)
    return [
        y + sign * (0.0 if math.isnan(s) else s)
        for y, s in zip(one.y, spread, strict=True)
        if math.isfinite(y)
        for sign in (-1, 1)
    ]


def thinned(one: Series, points: int = POINTS) -> Series:
    """The same curve with at most `points` points: means over equal runs of neighbours; the last point stays."""
    if len(one.x) <= points:
        return one
    x, y, _ = condensed(one.x, one.y, np.ones(len(one.x)), points - 1)
    return dataclasses.replace(one, x=[*x.tolist(), one.x[-1]], y=[*y.tolist(), one.y[-1]], spread=None)


def condensed(
    x: Sequence[Number], y: Sequence[Number], weights: Sequence[Number] | Float[np.ndarray, " n"], points: int
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """At most `points` weighted means over equal runs of neighbours, with their weights; NaN weighs nothing."""
    places, values = np.asarray(x, float), np.asarray(y, float)
    mass = np.where(np.isfinite(values), np.asarray(weights, float), 0.0)
    if len(places) <= points:
        return places, values, mass
    starts = np.linspace(0, len(places), points, endpoint=False).astype(int)
    total = np.add.reduceat(np.where(mass > 0, values, 0.0) * mass, starts)
    sums = np.add.reduceat(mass, starts)
    means = np.divide(total, sums, out=np.full(points, math.nan), where=sums > 0)
    middles = np.add.reduceat(places, starts) / np.diff([*starts, len(places)])
    return middles, means, sums


def _axes(frame: _Frame, form: Format, x_label: str, x_ticks: Sequence[tuple[Number, str]] | None) -> str:
    parts = []
    for value in ticks(frame.y_low, frame.y_high, 4 if frame.bottom - frame.top > 90 else 3):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left:g}" x2="{frame.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(frame.left - 8, y + 4, form(value), "end"))
    bottom = frame.bottom
    parts.append(f'<line class="axis" x1="{frame.left:g}" x2="{frame.right:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    shown = x_ticks if x_ticks is not None else _round_x_ticks(frame, x_label)
    for value, label in shown:
        parts.append(_text(frame.x(value), bottom + 17, label, "middle"))
    if x_ticks is None and x_label:
        parts.append(_text(frame.right, bottom + 17, x_label, "end"))
    return "".join(parts)


def _round_x_ticks(frame: _Frame, x_label: str) -> list[tuple[Number, str]]:
    """Round numbers that leave room for the axis name at the right end."""
    form = number_format(frame.x_high)
    values = ticks(frame.x_low, frame.x_high, max(3, round((frame.right - frame.left) / 90)))
    room = frame.right - 7 * len(x_label) - 12 if x_label else frame.right + 12
    return [(value, form(value)) for value in values if frame.x(value) + 3.5 * len(form(value)) < room]


def _curve(frame: _Frame, one: Series) -> str:
    pieces, current = [], []
    for x, y in zip(one.x, one.y, strict=True):
        if math.isfinite(y):
            current.append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
        elif current:
            pieces.append(current)
            current = []
    pieces.append(current)
    kind = {Style.LINE: "line", Style.RAW: "raw", Style.DOTS: "link", Style.POINTS: "line"}[one.style]
    parts = [f'<polyline class="{kind}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1]
    if one.spread is not None:
        parts += [_whisker(frame, x, y, s) for x, y, s in zip(one.x, one.y, one.spread, strict=True)]
    if one.style in (Style.DOTS, Style.POINTS) or len(one.x) == 1:
        radius = 3.2 if len(one.x) < 40 else 2
        parts += [
            f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"/>'
            for x, y in zip(one.x, one.y, strict=True)
            if math.isfinite(y)
        ]
    return f'<g style="{one.colour}">{"".join(parts)}</g>'


def _whisker(frame: _Frame, x: Number, y: Number, half: Number) -> str:
    if not (math.isfinite(y) and math.isfinite(half)) or half == 0:
        return ""
    at = f"{frame.x(x):.1f}"
    return f'<line class="whisker" x1="{at}" x2="{at}" y1="{frame.y(y - half):.1f}" y2="{frame.y(y + half):.1f}"/>'


def _mark(frame: _Frame, x: Number, label: str) -> str:
    at = frame.x(x)
    anchor = "end" if at > (frame.left + frame.right) / 2 else "start"
    rule = f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top:g}" y2="{frame.bottom:g}"/>'
    return rule + _text(at + (-5 if anchor == "end" else 5), frame.top - 6, label, anchor, "label")


def _end_labels(frame: _Frame, series: Sequence[Series]) -> str:
    """Names at the right end of the curves, each with a mark of its colour."""
    named = [one for one in series if one.style is not Style.RAW and len(one.y) and math.isfinite(one.y[-1])]
    named.sort(key=lambda one: frame.y(one.y[-1]))
    parts = []
    for at, one in zip(spaced([frame.y(one.y[-1]) for one in named], 14), named, strict=True):
        mark = f'<rect class="bar" x="{frame.right + 8:g}" y="{at - 3.5:.1f}" width="7" height="7" rx="1.5"/>'
        parts.append(f'<g style="{one.colour}">{mark}{_text(frame.right + 20, at + 4, one.name, "start", "label")}</g>')
    return "".join(parts)


def spaced(places: Sequence[Number], gap: Number) -> list[float]:
    """Ascending places moved as little as possible (least squares) so that neighbours are at least `gap` apart.

    Isotonic regression of places[i] - gap * i by pooling adjacent violators.
    """
    pools: list[list[float]] = []  # sum and size of each run that shares one value
    for index, place in enumerate(places):
        pools.append([place - gap * index, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, size = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += size
    values = [total / size for total, size in pools for _ in range(int(size))]
    return [value + gap * index for index, value in enumerate(values)]


def _slices(frame: _Frame, series: Sequence[Series], form: Format, x_label: str, names: Mapping[Number, str]) -> str:
    """Invisible strips that show a cursor and, as their title, every series' value there."""
    xs = sorted({x for one in series for x in one.x})
    if len(xs) > SLICES:
        xs = [xs[round(index * (len(xs) - 1) / (SLICES - 1))] for index in range(SLICES)]
    parts = []
    for index, x in enumerate(xs):
        start = frame.left if index == 0 else (frame.x(xs[index - 1]) + frame.x(x)) / 2
        stop = frame.right if index == len(xs) - 1 else (frame.x(x) + frame.x(xs[index + 1])) / 2
        at = names.get(x, f"{x:,.0f}" if float(x).is_integer() else f"{x:,.4g}")
        rows = [f"{x_label} {at}"]
        rows += [f"{one.name}: {form(value)}" for one in series if math.isfinite(value := _nearest(one, x))]
        top, height = frame.top, frame.bottom - frame.top
        parts.append(
            f'<g class="slice"><rect class="hit" x="{start:.1f}" y="{top:g}" width="{max(stop - start, 0.5):.1f}" '
            f'height="{height:g}"/><line class="cursor" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{top:g}" '
            f'y2="{frame.bottom:g}"/><title>{html.escape(chr(10).join(rows))}</title></g>'
        )
    return "".join(parts)


def _nearest(one: Series, x: Number) -> float:
    """The series' value at the point nearest to x; NaN where it has none within its own spacing."""
    if not len(one.x):
        return math.nan
    right = min(bisect.bisect_left(one.x, x), len(one.x) - 1)
    left = max(right - 1, 0)
    best = right if abs(one.x[right] - x) <= abs(one.x[left] - x) else left
    if one.style is Style.DOTS and abs(one.x[best] - x) > 1e-9:
        return math.nan
    return one.y[best]


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
    """For each task its first share (neutral) and its second (coloured), with both numbers and a note."""
    row, left, right = 40, 150, 150
    high = max([bar.first for bar in bars] + [bar.second for bar in bars] + [1e-9])
    scale = (width - left - right - 58) / high
    parts = []
    for index, bar in enumerate(bars):
        y = index * row
        first, second = max(bar.first * scale, 1.0), max(bar.second * scale, 1.0)
        parts.append(
            f'<g style="{bar.colour}"><title>{html.escape(bar.title)}</title>'
            f'<rect class="hit" x="0" y="{y}" width="{width}" height="{row}"/>'
            + _text(left - 14, y + 24, shorten(bar.name, 20), "end", "strong")
            + f'<rect x="{left}" y="{y + 7}" width="{first:.1f}" height="7" rx="1.5" fill="var(--natural)"/>'
            + f'<rect class="bar" x="{left}" y="{y + 16}" width="{second:.1f}" height="13" rx="1.5"/>'
            + _text(left + first + 6, y + 14, f"{100 * bar.first:.1f}%", "start")
            + _text(left + second + 6, y + 27, f"{100 * bar.second:.1f}%", "start", "strong")
            + _text(width, y + 24, bar.note, "end", "label")
            + "</g>"
        )
    return _svg(width, row * len(bars), parts)


def histogram(
    counts: Sequence[int],
    edges: Sequence[Number],
    *,
    width: int,
    height: int,
    colour: str,
    x_label: str,
    marks: Sequence[tuple[Number, str]] = (),
    x_named: bool = True,
) -> str:
    """Bars over bins; `edges` has one more entry than `counts`."""
    frame = _Frame(
        left=46,
        right=width - 14,
        top=20 if marks else 10,
        bottom=height - 24,
        x_low=edges[0],
        x_high=edges[-1],
        y_low=0.0,
        y_high=1.05 * max([*counts, 1]),
    )
    parts = [_axes(frame, number_format(frame.y_high), x_label if x_named else "", None)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = frame.x(low), frame.y(count)
        wide = max(frame.x(high) - x - 1, 0.8)
        parts.append(
            f'<g style="{colour}"><rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{max(frame.bottom - y, 0):.1f}"/><rect class="hit" x="{x:.1f}" y="{frame.top:g}" '
            f'width="{wide:.1f}" height="{frame.bottom - frame.top:g}"/>'
            f"<title>{low:,.0f} to {high:,.0f} {html.escape(x_label)}: {count:,}</title></g>"
        )
    parts += [_mark(frame, x, label) for x, label in marks]
    return _svg(width, height, parts)


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
    """Estimates with whiskers over a common axis that shows zero."""
    row, left, right = 26, 170, 170
    ends = [value for one in rows for value in (one.low, one.high, one.mean, *one.points)]
    bounds = [value for value in ends if math.isfinite(value)] + [0.0]
    pad = 0.06 * (max(bounds) - min(bounds)) or 1.0
    frame = _Frame(
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
        parts.append(_text(frame.x(value), frame.bottom + 16, form(value), "middle"))
    parts.append(_text(width, frame.bottom + 16, x_label, "end"))
    for index, one in enumerate(rows):
        y = 4 + row * index + row / 2
        parts.append(f'<g style="{one.colour}">' + _text(left - 14, y + 4, shorten(one.name, 24), "end", "strong"))
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
        parts.append(_text(width, y + 4, one.note, "end", "label") + "</g>")
    return _svg(width, int(frame.bottom + 26), parts)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(x: Number, y: Number, text: str, anchor: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
