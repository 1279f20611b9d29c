"""Parts of charts: scales, axes, marks and texts as SVG, whose colours come from the page's style sheet."""

import dataclasses
import html
import math
from collections.abc import Sequence

from jaxtune.terminal.numbers import Format, Number, axis_numbers


def ticks(low: Number, high: Number, count: int = 4) -> list[Number]:
    """About `count` round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: Number, high: Number, count: int = 4) -> list[Number]:
    """About `count` numbers inside [low, high] for a logarithmic scale: powers of ten, with 2 and 5 times them if few.

    >>> log_ticks(0.03, 8), log_ticks(1, 30)
    ([0.1, 1.0], [1.0, 2.0, 5.0, 10.0, 20.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [round(10.0**n, 12) for n in decades if low * 0.999 <= 10.0**n <= high * 1.001]
    if len(powers) >= count - 2 and len(powers) >= 2:
        return powers[:: -(-len(powers) // (count + 1))]
    finer = [round(factor * 10.0**n, 12) for n in decades for factor in (1, 2, 5)]
    return [value for value in finer if low * 0.999 <= value <= high * 1.001]


@dataclasses.dataclass(frozen=True, kw_only=True)
class XAxis:
    """The horizontal axis of a chart."""

    label: str = "step"
    ticks: Sequence[tuple[Number, str]] | None = None
    """Places with their texts in place of round numbers."""
    named: bool = True
    """False leaves the label to the hover titles, for small panels that share one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class YAxis:
    """The vertical axis of a chart."""

    form: Format | None = None
    """How its numbers are written; None: by their size."""
    from_zero: bool = False
    within: tuple[Number, Number] | None = None
    """Bounds that the scale never leaves, such as (0, 1) for shares."""
    log: bool = False
    """Logarithmic where every value is positive and the largest is ten times the smallest or more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """The plot rectangle and its two scales."""

    left: Number
    right: Number
    top: Number
    bottom: Number
    x_low: Number
    x_high: Number
    y_low: Number
    y_high: Number
    log: bool = False
    """Whether the vertical scale is logarithmic."""

    def x(self, value: Number) -> float:
        span = self.x_high - self.x_low or 1.0
        return self.left + (value - self.x_low) / span * (self.right - self.left)

    def y(self, value: Number) -> float:
        clipped = min(max(value, self.y_low), self.y_high)
        place = math.log10 if self.log else float
        share = (place(clipped) - place(self.y_low)) / (place(self.y_high) - place(self.y_low))
        return self.bottom - share * (self.bottom - self.top)

    @property
    def y_ticks(self) -> list[Number]:
        """Round numbers of the vertical scale."""
        height = self.bottom - self.top
        count = 3 if height <= 90 else 4 if height <= 180 else 6
        return log_ticks(self.y_low, self.y_high, count) if self.log else ticks(self.y_low, self.y_high, count)


def axes(frame: Frame, form: Format, x: XAxis) -> str:
    """Grid lines, numbers and the line of the x-axis."""
    parts = []
    for value in frame.y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left:g}" x2="{frame.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(frame.left - 8, y + 4, form(value), "end"))
    bottom, label = frame.bottom, x.label if x.named else ""
    parts.append(f'<line class="axis" x1="{frame.left:g}" x2="{frame.right:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    last = ""
    if x.ticks is None:  # the right end says where the axis ends, and what it counts
        last = f"{label} {axis_numbers(frame.x_high)(frame.x_high)}".strip()
        parts.append(text(frame.right, bottom + 17, last, "end"))
    for value, words in x.ticks if x.ticks is not None else _round_x_ticks(frame, last):
        parts.append(text(frame.x(value), bottom + 17, words, "middle"))
    return "".join(parts)


def _round_x_ticks(frame: Frame, last: str) -> list[tuple[Number, str]]:
    """Round numbers that leave room for the text at the right end."""
    form = axis_numbers(frame.x_high)
    values = ticks(frame.x_low, frame.x_high, max(4, round((frame.right - frame.left) / 90)))
    room = frame.right - 7 * len(last) - 12
    return [(value, form(value)) for value in values if frame.x(value) + 3.5 * len(form(value)) < room]


def mark(frame: Frame, x: Number, label: str) -> str:
    """A labelled vertical rule."""
    at = frame.x(x)
    anchor = "end" if at > (frame.left + frame.right) / 2 else "start"
    rule = f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top:g}" y2="{frame.bottom:g}"/>'
    return rule + text(at + (-5 if anchor == "end" else 5), frame.top - 6, label, anchor, "label")


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def text(x: Number, y: Number, text: str, anchor: str, kind: str = "") -> str:
    """A text element whose anchor (start, middle, end) lies at (x, y)."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    """The picture of the parts, `width` wide and `height` high."""
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
