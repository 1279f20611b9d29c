import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.reports.bars import PairedBar, Whisker, histogram, paired_bars, whiskers
from jaxtune.reports.charts import Series, Style, condensed, line_chart, smooth, spaced, thinned
from jaxtune.reports.drawing import XAxis, YAxis, log_ticks, ticks
from jaxtune.reports.page import NARROW, PALETTE, STYLE_SHEET, WIDE, wide_figure
from jaxtune.terminal.numbers import axis_percent


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6), count=st.integers(2, 8))
def test_ticks_are_evenly_spaced_round_numbers_inside_the_range(low, span, count):
    high = low + span
    values = ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= value <= high + slack for value in values)
    assert len(values) <= 2 * count + 1
    if span > 1e-5 * abs(low):
        assert len(values) >= count // 2 - 1
        step = np.diff(values)
        assert np.allclose(step, step[:1], rtol=1e-3, atol=slack) if len(step) else True


def test_a_tick_step_is_one_two_or_five_times_a_power_of_ten():
    assert ticks(0.0, 3.4, 4) == [0.0, 1.0, 2.0, 3.0]
    assert ticks(0.0, 0.00105, 3) == [0.0, 0.0005, 0.001]
    assert ticks(2.0, 2.0) == [2.0]


def test_smoothing_leaves_a_straight_line_as_it_is_even_at_its_ends():
    line = np.linspace(4.0, 1.0, 50)
    assert np.allclose(smooth(line, np.ones(50), 5.0), line, atol=1e-6)


def test_smoothing_ignores_what_is_not_finite_and_what_weighs_nothing():
    values = np.full(20, 2.0)
    weights = np.ones(20)
    values[3], values[7], weights[7] = math.nan, 1000.0, 0.0
    assert np.allclose(smooth(values, weights, 3.0), 2.0)


def test_smoothing_reduces_noise():
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(smooth(noise, np.ones(400), 10.0)) < 0.35


def test_a_long_curve_is_thinned_without_losing_its_end_or_its_mean():
    y = np.random.default_rng(0).normal(size=10_000)
    y[5] = math.nan
    long = Series(name="a", x=list(range(10_000)), y=y.tolist(), style=Style.RAW)
    short = thinned(long, 200)
    assert len(short.x) == len(short.y) == 200
    assert (short.x[-1], short.y[-1]) == (9999, y[-1])
    assert abs(np.mean(short.y[:-1]) - np.nanmean(y)) < 0.01


def test_condensing_keeps_weighted_sums_and_leaves_short_curves_alone():
    rng = np.random.default_rng(0)
    y, weights = rng.normal(size=1003), rng.random(1003)
    y[10] = math.nan
    x, means, mass = condensed(list(range(1003)), y.tolist(), weights, 50)
    assert len(x) == len(means) == len(mass) == 50 and np.all(np.diff(x) > 0)
    kept = np.isfinite(y)
    assert np.isclose(np.sum(means * mass), np.sum(y[kept] * weights[kept]))
    assert np.isclose(np.sum(mass), np.sum(weights[kept]))
    assert condensed([1, 2], [3.0, 4.0], [1, 1], 50)[1].tolist() == [3.0, 4.0]


def points(svg):
    return [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]*)"', svg) for pair in line.split()
    ]


def test_curves_stay_inside_their_frame_and_a_gap_breaks_the_line():
    y = [3.0, 2.0, math.nan, 1.0, 50.0, 1.0, 0.9]
    chart = line_chart([Series(name="loss", x=list(range(7)), y=y)], width=300, height=150)
    assert chart.count("<polyline") == 2
    assert all(46 <= x <= 286 and 8 <= y <= 126 for x, y in points(chart))


def test_one_spike_of_a_raw_curve_does_not_flatten_the_rest():
    y = [2.0 - 0.01 * step for step in range(100)]
    y[50] = 1000.0
    chart = line_chart([Series(name="raw", x=list(range(100)), y=y, style=Style.RAW)], width=300, height=150)
    heights = [at for _, at in points(chart)]
    assert max(heights[:40]) - min(heights[:40]) > 25


def test_a_loss_that_falls_tenfold_has_a_logarithmic_axis_and_one_that_does_not_a_linear_one():
    heights = lambda y, axis: [
        at for _, at in points(line_chart([Series(name="a", x=[0, 1, 2], y=y)], width=300, height=150, y=axis))
    ]
    high, middle, low = heights([10.0, 1.0, 0.1], YAxis(log=True))
    assert middle - high == pytest.approx(low - middle, abs=0.2) and low > middle > high
    assert heights([3.0, 2.0, 1.0], YAxis(log=True)) == heights([3.0, 2.0, 1.0], YAxis())
    assert heights([-10.0, 0.0, 10.0], YAxis(log=True)) != heights([10.0, 1.0, 0.1], YAxis(log=True))


@given(low=st.floats(1e-6, 1e3), ratio=st.floats(10, 1e9))
def test_logarithmic_ticks_lie_inside_and_are_few(low, ratio):
    values = log_ticks(low, low * ratio)
    assert 2 <= len(values) <= 7 and values == sorted(set(values))
    assert all(low * 0.998 <= value <= low * ratio * 1.002 for value in values)


def test_many_measurements_keep_their_line_and_few_rings_the_ends_among_them():
    x = list(range(0, 25_000, 40))
    chart = line_chart(
        [Series(name="validation", x=x, y=[1.0 + 1 / (1 + at) for at in x], style=Style.DOTS)], width=900, height=200
    )
    rings = [float(at) for at in re.findall(r'<circle class="dot" cx="([\d.]+)"', chart)]
    assert len(rings) == 40 and len(points(chart)) > 300
    assert (rings[0], rings[-1]) == (46.0, 886.0)


def test_axes_end_in_numbers():
    steps = list(range(1, 161))
    chart = line_chart(
        [Series(name="padding", x=steps, y=[0.068] * 160)],
        width=336,
        height=150,
        y=YAxis(form=axis_percent, from_zero=True),
    )
    assert ">step 160</text>" in chart and ">0</text>" in chart and ">8%</text>" in chart


def test_hover_titles_name_each_value_and_are_escaped():
    series = [Series(name="a<b", x=[0, 10], y=[1.0, 0.5]), Series(name="held", x=[10], y=[0.25], style=Style.DOTS)]
    chart = line_chart(series, width=300, height=150)
    assert "<title>step 10\na&lt;b: 0.5\nheld: 0.25</title>" in chart
    assert "<title>step 0\na&lt;b: 1</title>" in chart
    assert "a<b" not in chart


def test_end_labels_do_not_overlap():
    series = [Series(name=f"s{i}", x=[0, 1], y=[1.0, 1.0 + 0.001 * (i // 2)]) for i in range(4)]
    chart = line_chart(series, width=300, height=150, end_labels=True)
    heights = [float(at) for at in re.findall(r'y="([\d.]+)" text-anchor="start">s\d<', chart)]
    assert len(heights) == 4 and min(np.diff(sorted(heights))) >= 13.9


def test_paired_bars_are_as_long_as_the_shares_they_show():
    bars = [
        PairedBar(name="qa", first=0.8, second=0.6, colour="--c:red"),
        PairedBar(name="math", first=0.2, second=0.4, colour="--c:blue"),
    ]
    drawn = paired_bars(bars, width=1000)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="(?:7|13)"', drawn)]
    assert [width / widths[0] for width in widths] == pytest.approx([1.0, 0.75, 0.25, 0.5], abs=1e-3)


def found(pattern, drawn) -> re.Match[str]:
    """The first match; there must be one."""
    match = re.search(pattern, drawn)
    assert match, pattern
    return match


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_names_stand_above_the_bars_where_there_is_no_room_beside_them(width):
    bars = [PairedBar(name="summarization", first=0.8, second=0.6, colour="--c:red", note="1.30 epochs")]
    drawn = paired_bars(bars, width=width)
    name, note = (
        found(rf'x="([\d.]+)" y="([\d.]+)"[^>]*>{words}<', drawn) for words in ("summarization", "1.30 epochs")
    )
    left, top = found(r'<rect x="([\d.]+)" y="([\d.]+)"', drawn).groups()
    length = float(found(r'class="bar"[^>]*width="([\d.]+)"', drawn)[1])
    if width == NARROW:
        assert float(name[2]) < float(top) and float(left) == 0 and name[2] == note[2]
    else:
        assert float(name[1]) < float(left) and float(name[2]) > float(top)
    assert length > 0.45 * width and float(note[1]) == width


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_whiskers_use_most_of_the_width(width):
    rows = [Whisker(name="temperature=4_seed=1", mean=1.0, low=0.0, high=2.0, note="+1.0 points, 600 questions")]
    drawn = whiskers(rows, width=width, form=str, x_label="points")
    start, stop = map(float, found(r'class="whisker" x1="([\d.]+)" x2="([\d.]+)"', drawn).groups())
    assert stop - start > 0.5 * width
    numbers = {float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="middle">', drawn)}
    axis = float(found(r'y="([\d.]+)" text-anchor="end">points<', drawn)[1])
    assert len(numbers) == 1 and (axis - numbers.pop() > 10) == (width == NARROW)


def test_the_axis_of_steps_begins_at_zero_where_the_first_ones_are_missing():
    curve = lambda first: line_chart([Series(name="a", x=[first, 60, 120], y=[3.0, 2.0, 1.0])], width=336, height=150)
    assert ">0</text>" in curve(2).split("axis")[1] and ">0</text>" not in curve(40).split("axis")[1]


def test_a_tall_logarithmic_axis_has_numbers_between_the_powers_of_ten():
    series = [Series(name="loss", x=[0, 160], y=[8.0, 0.04])]
    low, tall = (line_chart(series, width=1000, height=height, y=YAxis(log=True)) for height in (150, 290))
    assert ">0.5</text>" in tall and ">0.5</text>" not in low and ">0.1</text>" in low


def test_narrow_screens_get_the_second_drawing_of_a_wide_picture():
    wide, phone = STYLE_SHEET.read_text().split("@media (max-width: 720px)")
    assert ".at-narrow { display: none; }" in wide and ".at-wide" not in wide
    assert ".at-wide { display: none; }" in phone and re.search(r"\.at-narrow { display: block;", phone)
    shown = str(wide_figure(lambda width: f'<svg viewBox="0 0 {width} 10"></svg>', caption="a"))
    assert shown.count("<svg") == 2 and f"0 0 {NARROW} " in shown and f"0 0 {WIDE} " in shown


def test_captions_break_their_lines():
    """A caption that does not would make the page wider than a phone."""
    rules = re.findall(r"([^{}]+)\{([^}]*)\}", STYLE_SHEET.read_text())
    assert not [name for name, rule in rules if "figcaption" in name and "nowrap" in rule]


def test_a_histogram_has_one_bar_per_bin_with_its_count_on_hover():
    drawn = histogram([5, 0, 2], [0, 10, 20, 30], width=300, height=150, colour="--c:red", x=XAxis(label="tokens"))
    assert "<title>0 to 10 tokens: 5</title>" in drawn and "<title>20 to 30 tokens: 2</title>" in drawn
    heights = [float(height) for height in re.findall(r'class="bar"[^>]*height="([\d.]+)"', drawn)]
    assert heights[1] == 0 and heights[0] / heights[2] == pytest.approx(2.5, abs=0.02)


def test_whiskers_show_zero_and_survive_a_missing_interval():
    rows = [
        Whisker(name="2", mean=1.0, low=0.5, high=1.5),
        Whisker(name="4", mean=2.0, low=math.nan, high=math.nan),
    ]
    drawn = whiskers(rows, width=500, form=str, x_label="points")
    assert drawn.count('class="whisker"') == 1 and drawn.count("<circle") == 2 and 'class="rule"' in drawn


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_are_spaced_with_as_little_movement_as_possible(places):
    places = sorted(places)
    moved = spaced(places, 10)
    assert min(np.diff(moved), default=10) >= 10 - 1e-6
    assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-6)
    if min(np.diff(places), default=10) >= 10:
        assert moved == pytest.approx(places)


# The colours of the style sheet


def themes():
    light, dark = STYLE_SHEET.read_text().split("@media (prefers-color-scheme: dark)", 1)
    variables = lambda text: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))
    first = variables(light)
    return {"light": first, "dark": first | variables(dark.split("* {")[0])}


def linear(colour):
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """WCAG 2 contrast ratio of two linear colours."""
    one, two = sorted((float(colour @ [0.2126, 0.7152, 0.0722]) for colour in (first, second)), reverse=True)
    return (one + 0.05) / (two + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable_on_the_page(theme):
    colours = themes()[theme]
    for name, least in (("ink", 12), ("soft", 5), ("faint", 4.5), ("accent", 4.5), ("good", 4.5), ("bad", 4.5)):
        assert contrast(linear(colours[name]), linear(colours["paper"])) >= least, name
    assert contrast(linear(colours["trained-ink"]), linear(colours["trained"])) >= 7


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_task_colours_stand_out_from_the_page(theme):
    colours = themes()[theme]
    for index in range(PALETTE):
        assert contrast(linear(colours[f"task-{index}"]), linear(colours["paper"])) >= 3


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def lab(colour):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ colour
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", list(VISION))
def test_task_colours_can_be_told_apart_with_every_kind_of_vision(theme, vision):
    seen = [lab(np.clip(VISION[vision] @ linear(themes()[theme][f"task-{i}"]), 1e-6, 1)) for i in range(PALETTE)]
    distances = [np.linalg.norm(seen[i] - seen[j]) for i in range(PALETTE) for j in range(i)]
    assert min(distances) > 10


def test_shares_that_are_all_alike_stay_on_the_scale_of_shares():
    for value in (0.0, 0.0167, 1.0):
        flat = Series(name="exact match", x=[0, 1, 2], y=[value] * 3)
        chart = line_chart([flat], width=300, height=150, y=YAxis(form=axis_percent, within=(0, 1)))
        shown = [float(text) for text in re.findall(r">([-\d.]+)%?</text>", chart)]
        assert all(0 <= number <= 100 for number in shown), chart
