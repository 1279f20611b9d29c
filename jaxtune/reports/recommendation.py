"""The recommended setting on a page: its numbers and the fitted surface."""

import math
from collections.abc import Sequence

import numpy as np

from jaxtune.errors import UserError
from jaxtune.reports import page
from jaxtune.reports.charts import Series, Style, line_chart
from jaxtune.reports.drawing import XAxis, YAxis
from jaxtune.reports.page import Html, Section, tag
from jaxtune.runs.recommendation import Recommendation, recommend
from jaxtune.runs.sweeps import MEASURES, Measure, Sweep, option_name
from jaxtune.science.optimum import Axis, Scale
from jaxtune.science.surface import Quadratic
from jaxtune.terminal.numbers import percent, signed

MOST_LABELS = 6
"""Values of an axis that are written beside the surface."""


def recommendation_section(sweep: Sweep) -> Section | None:
    """Section of the recommendation by validation loss; None where no surface can be fitted."""
    if not sweep.measures:
        return None
    try:
        found = recommend(sweep, sweep.measures[0])
    except UserError:
        return None  # options in words, or too few settings: `jaxtune recommend` says which
    parts: list[object] = [page.facts(facts(found))]
    drawing = surface_picture(found) if len(found.axes) > 1 else curve_picture(found)
    figure = page.figure(drawing, caption=f"Expected {lower(found.measure.title)}", note=legend_text(found))
    parts.append(tag("div", figure, style="max-width:560px"))
    smooth = isinstance(found.optimum.surface, Quadratic)
    kind = "a full quadratic" if smooth else "a Gaussian process, because a quadratic does not fit"
    lead = f"The minimum of {kind} through {len(found.points)} settings and {found.seeds} seeds."
    return Section("recommended", "Recommended setting", lead, parts)


def lower(title: str) -> str:
    """A title inside a sentence."""
    return title[0].lower() + title[1:]


def value_text(axis: Axis, value: float) -> str:
    """An option with a value."""
    return f"{option_name(axis.name)} {value:g}"


def facts(found: Recommendation) -> list[tuple[str, object]]:
    """The recommendation in numbers, for a page and for the terminal."""
    data, measure = found.to_json(), found.measure
    rows: list[tuple[str, object]] = []
    if found.optimum.advice:
        rows.append(("not yet", f"the optimum lies at the border of what was tried: {'; '.join(found.optimum.advice)}"))
    elif found.optimum.untested:
        return [("not yet", untested_text(found, data["expected"])), *left_out(found)]
    else:
        names = {axis.name: axis for axis in found.axes}
        rows.append(("recommended", ", ".join(value_text(names[n], v) for n, v in data["recommended"].items())))
    spans = "; ".join(f"{option_name(name)} {low:g} to {high:g}" for name, (low, high) in data["region_90"].items())
    rows.append(("90 % region", spans))
    rows.append(("expected", f"{measure.form(data['expected'])} {measure.unit}"))
    rows.append(("expected regret", f"{measure.form(found.optimum.regret)} {measure.unit}"))
    if math.isfinite(found.chance):
        rows.append(("beats the config's setting", f"with probability {percent(found.chance, 0)}"))
    for name, (mean, low, high) in found.gains.items():
        rows.append((f"gain in {MEASURES[name].unit}", gain_text(MEASURES[name], mean, low, high)))
    if found.cheapest is not None:
        text = ", ".join(f"{option_name(option)} {value}" for option, value in found.cheapest.items())
        rows.append(("cheapest within 1 % of the best", text))
    return rows + left_out(found)


def untested_text(found: Recommendation, expected: float) -> str:
    """Why a minimum is not recommended that is the shape of the quadratic alone."""
    measure, optimum = found.measure, found.optimum
    lowest = shown_value(found, float(optimum.surface.mean(found.points).min()))
    return (
        f"a parabola through three values goes down to {measure.form(expected)} {measure.unit} where nothing ran, the "
        f"settings that ran to {measure.form(lowest)}: {'; '.join(optimum.untested)} (`jaxtune sweep ... --refine 1`)"
    )


def left_out(found: Recommendation) -> list[tuple[str, object]]:
    """The runs that the fit does not use."""
    if not found.left_out:
        return []
    return [("left out", f"{len(found.left_out)} runs that diverged or ended above the base model")]


def gain_text(measure: Measure, mean: float, low: float, high: float) -> str:
    """A gain with its interval."""
    texts = [signed(value, measure.digits, measure.scale) for value in (mean, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}] (90 %)"


def legend_text(found: Recommendation) -> str:
    """Legend of the picture's marks."""
    own = "; ring: the config's own" if found.own is not None else ""
    return f"dots: settings that ran{own}; cross: lowest expected; outlined: 90 % region of the optimum"


def shown_value(found: Recommendation, mean: float) -> float:
    """An expected value in the measure's own sign."""
    return -mean if found.measure.higher_is_better else mean


def curve_picture(found: Recommendation) -> Html:
    """The surface over a single option, with its 90 % band."""
    optimum, axis = found.optimum, found.axes[0]
    x = [float(place) for place in optimum.grid[:, 0]]
    low, high = np.quantile(optimum.draws, (0.05, 0.95), axis=0)
    middle = [shown_value(found, float(value)) for value in (low + high) / 2]
    series = Series(name="expected", x=x, y=middle, style=Style.LINE, spread=[float(v) for v in (high - low) / 2])
    ticks = [(place, f"{axis.value(place):g}") for place in (-1.0, 0.0, 1.0)]
    drawing = line_chart(
        [series],
        width=450,
        height=250,
        x=XAxis(label=option_name(axis.name), ticks=ticks),
        y=YAxis(form=found.measure.form),
    )
    return Html(drawing)


def surface_picture(found: Recommendation) -> Html:
    """Heatmap of the expected value over the first two options, further ones at their recommended value."""
    optimum = found.optimum
    levels = optimum.levels
    near = np.all(np.isclose(optimum.grid[:, 2:], optimum.grid[optimum.best, 2:]), axis=1)
    grid, mean, region = optimum.grid[near], optimum.mean[near], optimum.region[near].reshape(levels, levels)
    # Square-root shading: near the optimum, where it matters, differences stay visible beside a steep wall.
    height = np.sqrt((mean - mean.min()) / (np.ptp(mean) or 1.0))
    left, top, size = 64, 8, 336
    cell = size / levels
    x = lambda place: left + (float(place) + 1) / 2 * (size - cell) + cell / 2
    y = lambda place: top + size - (float(place) + 1) / 2 * (size - cell) - cell / 2
    parts = [
        f'<rect class="shade" x="{x(b) - cell / 2:.1f}" y="{y(a) - cell / 2:.1f}" width="{cell + 0.3:.1f}" '
        f'height="{cell + 0.3:.1f}" style="--x:{0.9 - 0.85 * h:.2f}"/>'
        for (a, b), h in zip(grid[:, :2], height, strict=True)
    ]
    parts += outline(region, lambda i: left + i * cell, lambda i: top + size - i * cell)
    parts.append('<g style="--c:var(--ink)">')
    parts += [f'<circle class="dot full" cx="{x(p[1]):.1f}" cy="{y(p[0]):.1f}" r="2.4"/>' for p in found.points]
    if found.own is not None:
        parts.append(f'<circle class="dot" cx="{x(found.own[1]):.1f}" cy="{y(found.own[0]):.1f}" r="6"/>')
    parts.append("</g>")
    parts.append(cross(x(grid[np.argmin(mean), 1]), y(grid[np.argmin(mean), 0])))
    across, up = ([float(p[i]) for p in found.points] for i in (1, 0))
    parts += [
        f'<text x="{x(place):.1f}" y="{top + size + 16}" text-anchor="middle">{found.axes[1].value(place):.3g}</text>'
        for place in labelled(across)
    ]
    parts += [
        f'<text x="{left - 6}" y="{y(place) + 4:.1f}" text-anchor="end">{found.axes[0].value(place):.3g}</text>'
        for place in labelled(up)
    ]
    parts.append(f'<text x="{left}" y="{top + size + 36}">{tag("tspan", axes_note(found))}</text>')
    return Html(f'<svg viewBox="0 0 {left + size + 20} {top + size + 46}" role="img">{"".join(parts)}</svg>')


def outline(region, x, y) -> list[str]:
    """The border of a set of cells, as lines between a cell inside and one outside."""
    lines = []
    rows, columns = region.shape
    inside = lambda r, c: 0 <= r < rows and 0 <= c < columns and bool(region[r, c])
    for r in range(rows):
        for c in range(columns):
            if not region[r, c]:
                continue
            sides = [((r - 1, c), (c, r, c + 1, r)), ((r + 1, c), (c, r + 1, c + 1, r + 1))]
            sides += [((r, c - 1), (c, r, c, r + 1)), ((r, c + 1), (c + 1, r, c + 1, r + 1))]
            for neighbour, (x1, y1, x2, y2) in sides:
                if not inside(*neighbour):
                    ends = f'x1="{x(x1):.1f}" y1="{y(y1):.1f}" x2="{x(x2):.1f}" y2="{y(y2):.1f}"'
                    lines.append(f'<line class="edge" {ends}/>')
    return lines


def cross(x: float, y: float) -> str:
    """A mark of two strokes."""
    return (
        f'<g class="cross"><line x1="{x - 6:.1f}" x2="{x + 6:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6:.1f}" y2="{y + 6:.1f}"/></g>'
    )


def labelled(places: Sequence[float]) -> list[float]:
    """Places on an axis from -1 to 1 that get a number: those that were tried, the ends and the middle of many."""
    tried = sorted({round(place, 6) for place in places})
    return tried if len(tried) <= MOST_LABELS else [-1.0, 0.0, 1.0]


def axes_note(found: Recommendation) -> str:
    """Text under the picture: the names of its axes."""
    up, across = found.axes[:2]
    note = f"{option_name(across.name)} → · {option_name(up.name)} ↑"
    return note + " (spaced by 1 / value)" if Scale.INVERSE in (across.scale, up.scale) else note
