"""Curves over one pair of axes as SVG."""

import bisect
import dataclasses
import enum
import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.reports.drawing import Frame, XAxis, YAxis, axes, mark, svg, text, ticks
from jaxtune.terminal.numbers import Format, Number, axis_numbers

STEPS, PLAIN = XAxis(), YAxis()

POINTS = 500
"""Points kept of a long curve; more cannot be seen at these widths."""
MOST_RINGS = 40
"""Rings of a curve of measurements; the line between them goes through all."""
SLICES = 80
"""Hover zones of a chart."""


class Style(enum.Enum):
    """Drawing style of a series."""

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
    x: XAxis = STEPS,
    y: YAxis = PLAIN,
    marks: Sequence[tuple[Number, str]] = (),
    end_labels: bool = False,
) -> str:
    """Curves over one pair of axes. `marks` are labelled vertical rules; `end_labels` name the curves at their ends."""
    drawn = [thinned(one) for one in series]
    right, top = 104 if end_labels else 14, 20 if any(label for _, label in marks) else 8
    frame = _frame(drawn, width, height, y=y, right=right, top=top)
    form = y.form or axis_numbers(max(frame.y_ticks, default=frame.y_high))
    parts = [axes(frame, form, x)]
    parts += [mark(frame, place, label) for place, label in marks]
    parts += [_curve(frame, one) for one in drawn]
    if end_labels:
        parts.append(_end_labels(frame, drawn))
    parts.append(_slices(frame, drawn, form, x))
    return svg(width, height, parts)


def _frame(series: Sequence[Series], width: int, height: int, *, y: YAxis, right: int, top: int) -> Frame:
    """Scales that hold every series; of raw curves only 96 % of the points, so one spike does not flatten the rest."""
    xs = [x for one in series for x in one.x] or [0.0, 1.0]
    ys = [bound for one in series for bound in _bounds(one)] or [0.0, 1.0]
    low, high = min(ys), max(ys)
    start = 0.0 if 0 < min(xs) <= max(1, 0.05 * max(xs)) < max(xs) else min(xs)
    pad = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    least = min((value for value in ys if value > 0), default=0.0)
    if y.log and 0 < 10 * least <= high:
        return Frame(
            left=46, right=width - right, top=top, bottom=height - 24, x_low=start, x_high=max(xs),
            y_low=least / 1.15, y_high=high * 1.15, log=True,
        )  # fmt: skip
    low, high = (0.0 if y.from_zero else low - pad), high + pad
    if low >= 0 and low < 0.12 * high:
        low = 0.0
    low, high = low, _up_to_a_tick(low, high)
    if y.within is not None:
        low, high = max(low, y.within[0]), min(high, y.within[1])
        if not low < high:  # all values lie on one bound
            low, high = y.within
    return Frame(
        left=46, right=width - right, top=top, bottom=height - 24, x_low=start, x_high=max(xs), y_low=low, y_high=high
    )


def _up_to_a_tick(low: Number, high: Number) -> Number:
    """The next round number above `high`, so that the scale ends in a number; `high` where that is far."""
    marks = ticks(low, high)
    if len(marks) < 2:
        return high
    step = marks[1] - marks[0]
    above = marks[-1] if math.isclose(marks[-1], high) else marks[-1] + step
    return above if above - high <= 0.75 * step else high


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


def _curve(frame: Frame, one: Series) -> str:
    pieces, current = [], []
    for x, y in zip(one.x, one.y, strict=True):
        if math.isfinite(y):
            current.append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
        elif current:
            pieces.append(current)
            current = []
    pieces.append(current)
    kind = {Style.LINE: "line", Style.RAW: "raw", Style.DOTS: "link", Style.POINTS: "line"}[one.style]
    rings = range(len(one.x))
    if one.style is Style.DOTS and len(one.x) > MOST_RINGS:
        rings = sorted({round(i * (len(one.x) - 1) / (MOST_RINGS - 1)) for i in range(MOST_RINGS)})
    parts = [f'<polyline class="{kind}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1]
    if one.spread is not None:
        parts += [_whisker(frame, x, y, s) for x, y, s in zip(one.x, one.y, one.spread, strict=True)]
    if one.style in (Style.DOTS, Style.POINTS) or len(one.x) == 1:
        radius = 3.2 if len(rings) < 20 else 2.4
        parts += [
            f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"/>'
            for x, y in ((one.x[i], one.y[i]) for i in rings)
            if math.isfinite(y)
        ]
    return f'<g style="{one.colour}">{"".join(parts)}</g>'


def _whisker(frame: Frame, x: Number, y: Number, half: Number) -> str:
    if not (math.isfinite(y) and math.isfinite(half)) or half == 0:
        return ""
    at = f"{frame.x(x):.1f}"
    return f'<line class="whisker" x1="{at}" x2="{at}" y1="{frame.y(y - half):.1f}" y2="{frame.y(y + half):.1f}"/>'


def _end_labels(frame: Frame, series: Sequence[Series]) -> str:
    """Names at the right end of the curves, each with a mark of its colour."""
    named = [one for one in series if one.style is not Style.RAW and len(one.y) and math.isfinite(one.y[-1])]
    named.sort(key=lambda one: frame.y(one.y[-1]))
    parts = []
    for at, one in zip(spaced([frame.y(one.y[-1]) for one in named], 14), named, strict=True):
        mark = f'<rect class="bar" x="{frame.right + 8:g}" y="{at - 3.5:.1f}" width="7" height="7" rx="1.5"/>'
        parts.append(f'<g style="{one.colour}">{mark}{text(frame.right + 20, at + 4, one.name, "start", "label")}</g>')
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


def _slices(frame: Frame, series: Sequence[Series], form: Format, axis: XAxis) -> str:
    """Invisible strips that show a cursor and, as their title, every series' value there."""
    names: Mapping[Number, str] = dict(axis.ticks or ())
    xs = sorted({x for one in series for x in one.x})
    if len(xs) > SLICES:
        xs = [xs[round(index * (len(xs) - 1) / (SLICES - 1))] for index in range(SLICES)]
    parts = []
    for index, x in enumerate(xs):
        start = frame.left if index == 0 else (frame.x(xs[index - 1]) + frame.x(x)) / 2
        stop = frame.right if index == len(xs) - 1 else (frame.x(x) + frame.x(xs[index + 1])) / 2
        at = names.get(x, f"{x:,.0f}" if float(x).is_integer() else f"{x:,.4g}")
        rows = [f"{axis.label} {at}"]
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
