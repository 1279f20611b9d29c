"""Numbers as text, for terminals and pages: a dash stands where there is no finite number."""

import math
from collections.abc import Callable
from typing import Any

from jaxtune.storage.documents import number

Number = int | float
Format = Callable[[Number], str]
NONE = "–"


def duration(seconds: Number) -> str:
    """Seconds as `0:07`, `12:34` or `3:05:09`; `--:--` when unknown."""
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def quantity(value: Number) -> str:
    """A rate in at most five characters: `87`, `940`, `12.3k`, `4.56M`; `-` when unknown."""
    if not math.isfinite(value):
        return "-"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.{3 if abs(value) < 999.5 * scale else 4}g}{suffix}"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def percent(share: Any, digits: int = 1) -> str:
    """A share as a percentage: `12.5%` for 0.125."""
    share = number(share)
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NONE


def score(metric: str, value: Any) -> str:
    """A score of a metric: a share as a percentage, a likelihood in nats."""
    return decimal(value) if metric.endswith("log_likelihood") else percent(value)


def decimal(value: Any, digits: int = 3) -> str:
    """A number with fixed decimals."""
    value = number(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def whole(value: Any) -> str:
    """An integer with thousands separators."""
    return NONE if value is None else f"{int(value):,}"


def signed(value: Number, digits: int, scale: Number = 1.0) -> str:
    """A difference with its sign (a true minus)."""
    if not math.isfinite(value):
        return NONE
    return f"{scale * value:+.{digits}f}".replace("-", "−")


def axis_numbers(largest: Number) -> Format:
    """Format of an axis with values up to `largest`: `0.0012`, `0.35`, `12`, `4.5k`."""
    if largest >= 10_000:
        return lambda value: f"{value / 1000:,.4g}k" if value else "0"
    if largest >= 0.01:
        return lambda value: f"{value:.4g}"
    return lambda value: f"{value:.2g}" if value else "0"


def axis_percent(share: Number) -> str:
    """A share as a percentage on an axis, without idle decimals."""
    return f"{100 * share:.3g}%" if share else "0"
