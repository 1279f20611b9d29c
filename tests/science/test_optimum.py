"""Planted surfaces: arms with a noise of .016 nats and seeds with an effect of .01, as on the built-in mixture."""

import math

import numpy as np
import pytest

from jaxtune.science.optimum import Scale, axis_of, find_optimum, settings_to_try
from jaxtune.science.surface import GaussianProcess, Quadratic

TEMPERATURES = (1.0, 2.0, 4.0, math.inf)
NOISE, SEED_EFFECT = 0.016, 0.01


def planted(rng, *, rates, seeds, optimum, curvature=(0.08, 0.10)):
    """Points, values, and the true surface of a bowl with its lowest point at `optimum`."""
    axes = [axis_of("mixture.temperature", TEMPERATURES), axis_of("optim.peak-lr", rates)]
    points = np.array([[axes[0].place(t), axes[1].place(lr)] for t in TEMPERATURES for lr in rates])
    true = lambda x: (np.asarray(curvature) * (np.atleast_2d(x) - optimum) ** 2).sum(axis=1)
    shape = (len(points), seeds)
    values = true(points)[:, None] + NOISE * rng.standard_normal(shape) + SEED_EFFECT * rng.standard_normal(seeds)
    return axes, points, 0.3 + values, true


def test_the_surface_regrets_less_than_the_best_cell():
    """Four temperatures, three rates, two seeds."""
    rng = np.random.default_rng(0)
    fitted, picked = [], []
    for _ in range(50):
        where = rng.uniform(-0.7, 0.7, 2)
        axes, points, values, true = planted(rng, rates=(3e-4, 1e-3, 3e-3), seeds=2, optimum=where)
        found = find_optimum(axes, points, values)
        fitted.append(true(found.grid[found.best])[0])
        picked.append(true(points[np.argmin(values.mean(axis=1))])[0])
    assert np.mean(fitted) <= 0.002 < np.mean(picked)


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_region_holds_an_inside_optimum_and_the_chances_are_calibrated(seeds):
    rng = np.random.default_rng(seeds)
    held, edge, brier = [], [], []
    for _ in range(50):
        where, other = rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.8, 0.8, 2)
        axes, points, values, true = planted(rng, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), seeds=seeds, optimum=where)
        found = find_optimum(axes, points, values)
        nearest = int(np.argmin(((found.grid - where) ** 2).sum(axis=1)))
        held.append(found.region[nearest])
        edge.append(bool(found.advice))
        better = true(found.grid[found.best])[0] < true(other)[0]
        brier.append((found.against(other)[3] - better) ** 2)
    assert np.mean(held) >= 0.88 and np.mean(edge) <= 0.06 and np.mean(brier) <= 0.06


def test_an_optimum_outside_of_the_range_is_not_recommended():
    rng = np.random.default_rng(3)
    fired = []
    for _ in range(40):
        axes, points, values, _ = planted(rng, rates=(1e-3, 3e-3, 1e-2), seeds=3, optimum=np.array([0.2, -1.8]))
        found = find_optimum(axes, points, values)
        fired.append(found.advice == ("extend optim.peak-lr below 0.001",))
    assert np.mean(fired) >= 0.95


def test_a_cliff_is_noticed_and_fitted_by_a_process():
    rng = np.random.default_rng(4)
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    for _ in range(3):
        axes, points, values, _ = planted(rng, rates=rates, seeds=3, optimum=np.array([0.0, 0.1]))
        values[points[:, 1] > 0.9] *= 5
        found = find_optimum(axes, points, values)
        assert isinstance(found.surface, GaussianProcess) and found.lack_of_fit < 0.05
        assert abs(found.grid[found.best][1] - 0.1) < 0.6 and not found.advice


def beside_a_wall(rng, rates):
    """Five seeds of settings that are equal but at the lowest rate, where the loss is half a nat higher."""
    axes = [axis_of("mixture.temperature", TEMPERATURES), axis_of("optim.peak-lr", rates)]
    points = np.array([[axes[0].place(t), axes[1].place(lr)] for t in TEMPERATURES for lr in rates])
    values = np.where(points[:, 1] == -1, 0.6, 0.1)[:, None] + NOISE * rng.standard_normal((len(points), 5))
    return axes, points, values


def test_a_parabola_that_dives_between_three_values_is_not_recommended_but_measured():
    rng = np.random.default_rng(1)
    axes, points, values = beside_a_wall(rng, (5e-4, 1e-3, 2e-3))
    found = find_optimum(axes, points, values)
    assert isinstance(found.surface, Quadratic) and found.mean[found.best] < 0.06, "no test of the fit sees it"
    [where] = found.untested
    rate = float(where.removeprefix("measure optim.peak-lr near "))
    assert 1.2e-3 < rate < 1.7e-3
    (first, *_) = settings_to_try(axes, found, seeds=5, count=2)
    assert first[1] == rate
    axes, points, values = beside_a_wall(rng, (5e-4, 1e-3, 1.4e-3, 2e-3))
    again = find_optimum(axes, points, values)
    assert not again.untested and again.mean[again.best] > 0.07, "a fourth value tests the curve"


def test_what_a_quadratic_gains_within_the_noise_needs_no_new_setting():
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(40):
        axes, points, values, _ = planted(rng, rates=(3e-4, 1e-3, 3e-3), seeds=2, optimum=rng.uniform(-0.7, 0.7, 2))
        asked.append(bool(find_optimum(axes, points, values).untested))
    assert np.mean(asked) <= 0.1


def test_failed_cells_and_holes_are_left_out():
    rng = np.random.default_rng(5)
    axes, points, values, _ = planted(rng, rates=(1e-4, 3e-4, 1e-3, 3e-3), seeds=3, optimum=np.zeros(2))
    values[0] = math.nan
    values[7, 1] = math.nan
    found = find_optimum(axes, points, values)
    assert isinstance(found.surface, Quadratic)
    assert found.surface.df == values.size - 4 - 6 - 2


def test_new_settings_are_sought_where_the_minimum_may_be():
    rng = np.random.default_rng(6)
    axes, points, values, _ = planted(rng, rates=(1e-4, 1e-3, 1e-2), seeds=2, optimum=np.array([0.3, -0.4]))
    found = find_optimum(axes, points, values)
    tried = settings_to_try(axes, found, seeds=2, count=4)
    assert len(set(tried)) == 4
    for temperature, rate in tried:
        assert temperature >= 1 and 1e-4 <= rate <= 1e-2
    outside = planted(rng, rates=(1e-3, 3e-3, 1e-2), seeds=3, optimum=np.array([0.2, -1.8]))
    more = settings_to_try(outside[0], find_optimum(*outside[:3]), seeds=3, count=3)
    assert min(rate for _, rate in more) < 1e-3
    assert all(temperature >= 1 for temperature, _ in more)


def test_measuring_where_it_says_lowers_the_regret():
    rng = np.random.default_rng(7)
    bowl, before, after = (0.02, 0.03), [], []
    for _ in range(12):
        where = rng.uniform(-0.6, 0.6, 2)
        axes, points, values, true = planted(rng, rates=(1e-4, 1e-3, 1e-2), seeds=2, optimum=where, curvature=bowl)
        found = find_optimum(axes, points, values)
        before.append(true(found.grid[found.best])[0])
        tried = settings_to_try(axes, found, seeds=2, count=6)
        new = np.array([[axis.place(value) for axis, value in zip(axes, one, strict=True)] for one in tried])
        fresh = 0.3 + true(new)[:, None] + NOISE * rng.standard_normal((len(new), 2))
        again = find_optimum(axes, np.concatenate([points, new]), np.concatenate([values, fresh]))
        after.append(true(again.grid[again.best])[0])
    assert np.mean(after) < np.mean(before)


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [
        ("mixture.temperature", [1, 2, 4], Scale.INVERSE),
        ("mixture.max-repeats", [1, 2, math.inf], Scale.INVERSE),
        ("optim.peak-lr", [1e-4, 1e-2], Scale.LOG),
        ("optim.weight-decay", [0.0, 0.1], Scale.LINEAR),
        ("optim.warmup-frac", [0.1, 0.2], Scale.LINEAR),
    ],
)
def test_an_axis_is_scaled_by_what_its_values_are(name, values, scale):
    axis = axis_of(name, [float(value) for value in values])
    assert axis.scale is scale
    for value in values:
        assert -1 - 1e-9 <= axis.place(float(value)) <= 1 + 1e-9
        assert axis.value(axis.place(float(value))) == pytest.approx(value, abs=1e-9)


def test_borders_that_an_option_cannot_pass_ask_for_nothing():
    axis = axis_of("mixture.temperature", [1.0, 2.0, math.inf])
    assert axis.beyond(-1) is None and axis.beyond(1) is None
    narrow = axis_of("mixture.temperature", [1.0, 2.0, 4.0])
    assert narrow.beyond(-1) == "extend mixture.temperature above 4" and narrow.beyond(1) is None


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [math.inf, -1.0], [0.0, math.inf]])
def test_values_without_a_place_are_refused(values):
    with pytest.raises(ValueError, match="one value|without a place"):
        axis_of("x", values)


def test_three_axes_and_one_axis_have_grids():
    rng = np.random.default_rng(8)
    for count in (1, 3):
        axes = [axis_of(f"x{index}", [0.5, 1.0, 1.5]) for index in range(count)]
        points = rng.uniform(-1, 1, (30, count))
        values = (points**2).sum(axis=1)[:, None] + 0.01 * rng.standard_normal((30, 2))
        found = find_optimum(axes, points, values)
        assert np.abs(found.grid[found.best]).max() < 0.4 and found.region.sum() < 0.5 * len(found.grid)
