"""The minimum of a response surface, its uncertainty, and the settings that would tell more."""

import dataclasses
import enum
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from jaxtune.science.surface import GaussianProcess, Points, Quadratic, fit_surface, knowledge_gradient

GRID_POINTS = 41 * 41
DRAWS = 1000
EDGE = 0.2
"""Share of the posterior's minima on the border of the tested range from which on no optimum is recommended."""
CLAIM = 3.0
"""Standard errors of a setting's mean by which a fitted minimum may lie below every setting that ran, before the shape
of the curve between three values, which nothing tests, has to be measured."""
STRETCH = 1.5
"""How far beyond a border that the minima press against new settings are sought, in half-widths of the range."""


class Scale(enum.Enum):
    """Scale of an axis: the place of an option's values along it."""

    LINEAR = "linear"
    LOG = "log"
    INVERSE = "inverse"  # 1 / value: inf has a place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """A numeric option with its tested range, mapped to [-1, 1]."""

    name: str
    scale: Scale
    low: float
    """Smallest tested coordinate (1 / value or log10 of it, by the scale)."""
    high: float
    natural: tuple[float, float] = (-math.inf, math.inf)
    """Coordinates beyond which the option has no meaning: a border there is no reason to extend the range."""

    def place(self, value: float) -> float:
        """The value's position; outside of the tested range it is outside of [-1, 1]."""
        return self.position(coordinate(value, self.scale))

    def position(self, at: float) -> float:
        """The position of a coordinate."""
        return 2 * (at - self.low) / (self.high - self.low) - 1

    def value(self, place: float) -> float:
        """The option's value at a position, to three digits."""
        at = self.low + (place + 1) / 2 * (self.high - self.low)
        if self.scale is Scale.LOG:
            at = 10.0**at
        elif self.scale is Scale.INVERSE:
            at = 1 / at if abs(at) > 1e-9 else math.inf
        return float(f"{at:.3g}")

    def beyond(self, side: int) -> str | None:
        """In which direction the range may be extended at a side (-1, +1), in words; None at a natural bound."""
        end = (self.low, self.high)[side > 0]
        if math.isclose(end, self.natural[side > 0], abs_tol=1e-12):
            return None
        up = (side > 0) != (self.scale is Scale.INVERSE)
        return f"extend {self.name} {'above' if up else 'below'} {self.value(float(side)):g}"


def coordinate(value: float, scale: Scale) -> float:
    """A value along its axis."""
    if scale is Scale.LOG:
        return math.log10(value)
    return 1 / value if scale is Scale.INVERSE else value


def axis_of(name: str, values: Sequence[float]) -> Axis:
    """The axis of an option's tested values: temperatures and values that may be inf by 1 / value, wide positive ranges
    by their logarithm.

    ValueError with fewer than two values or with a value that has no place.
    """
    if len(set(values)) < 2:
        raise ValueError(f"{name} has one value; an axis needs two")
    temperature = name.rpartition(".")[2].replace("-", "_") == "temperature"
    if temperature or math.inf in values:
        scale = Scale.INVERSE
    else:
        scale = Scale.LOG if min(values) > 0 and max(values) >= 4 * min(values) else Scale.LINEAR
    if any(math.isnan(value) or (scale is not Scale.LINEAR and value <= 0) or value == -math.inf for value in values):
        raise ValueError(f"{name} has values without a place on an axis: {values}")
    places = [coordinate(value, scale) for value in values]
    natural = (0.0, 1.0 if temperature else math.inf) if scale is Scale.INVERSE else (-math.inf, math.inf)
    return Axis(name=name, scale=scale, low=min(places), high=max(places), natural=natural)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimum:
    """The recommended point with what is known about it. Lower is better throughout."""

    surface: Quadratic | GaussianProcess
    lack_of_fit: float
    """p-value of "a quadratic is enough"; below .05 the surface is a Gaussian process."""
    grid: Points
    mean: Float[np.ndarray, " grid"]
    """Expected value on the grid."""
    region: Bool[np.ndarray, " grid"]
    """Smallest set of grid points that holds the minimum nine times in ten."""
    best: int
    """Grid point of the lowest expected value."""
    regret: float
    """Expected loss of the recommended point over the true minimum."""
    at_border: float
    """Share of drawn minima on a border that could be extended."""
    advice: tuple[str, ...]
    """Directions in which to extend the range; empty if the optimum is inside."""
    untested: tuple[str, ...]
    """Where to measure first because the minimum is the shape of the quadratic alone; empty where it is not."""
    draws: Float[np.ndarray, "draws grid"]

    @property
    def levels(self) -> int:
        """Grid points along each axis."""
        return round(len(self.grid) ** (1 / self.grid.shape[1]))

    def against(self, point: Float[np.ndarray, " axes"]) -> tuple[float, float, float, float]:
        """Gain of the recommended point over another: mean, 5th and 95th percentile; and the probability of a gain."""
        both = self.surface.sample(np.stack([self.grid[self.best], point]), 4 * DRAWS, np.random.default_rng(1))
        gain = both[:, 1] - both[:, 0]
        low, high = np.quantile(gain, (0.05, 0.95))
        return float(gain.mean()), float(low), float(high), float((gain > 0).mean())


def box_grid(axes: int) -> Points:
    """A full grid of about 1,700 points over [-1, 1] in every axis."""
    levels = max(5, int(round(GRID_POINTS ** (1 / axes)))) if axes > 1 else 41
    return np.array(list(itertools.product(np.linspace(-1, 1, levels), repeat=axes)))


def find_optimum(axes: Sequence[Axis], points: Points, values: Float[np.ndarray, "n seeds"]) -> Optimum:
    """Fit the surface and draw 1,000 of its minima. `points` are places along the axes, `values` lower is better."""
    surface, lack_of_fit = fit_surface(points, values)
    grid = box_grid(len(axes))
    draws = surface.sample(grid, DRAWS, np.random.default_rng(0))
    mean = surface.mean(grid)
    minima = np.argmin(draws, axis=1)
    best = int(np.argmin(mean))
    borders = {
        text: share for axis, side, text in open_borders(axes) if (share := border_share(grid[minima], axis, side)) > 0
    }
    on_border = np.zeros(len(minima), bool)
    for axis, side, _ in open_borders(axes):
        on_border |= np.isclose(grid[minima][:, axis], side)
    at_border = float(on_border.mean())
    seeds = float(np.isfinite(values).sum(axis=1).max())
    return Optimum(
        surface=surface,
        lack_of_fit=lack_of_fit,
        grid=grid,
        mean=mean,
        region=densest(minima, grid, 0.9),
        best=best,
        regret=float((draws[:, best] - draws.min(axis=1)).mean()),
        at_border=at_border,
        advice=tuple(text for text, share in borders.items() if share >= EDGE / 2) if at_border >= EDGE else (),
        untested=untested_curves(axes, points, surface, grid[best], CLAIM * surface.noise / math.sqrt(seeds)),
        draws=draws,
    )


def untested_curves(
    axes: Sequence[Axis],
    points: Points,
    surface: Quadratic | GaussianProcess,
    best: Float[np.ndarray, " axes"],
    allowed: float,
) -> tuple[str, ...]:
    """Settings to measure before a quadratic's minimum is believed.

    A parabola goes through any three values, so along an axis of three the F test has nothing to test: next to a steep
    wall the parabola swings far below all that was measured. Where its minimum lies more than `allowed` below the
    fitted values of every setting that ran, and between two of the three values, that place is named.
    """
    drop = float(surface.mean(points).min() - surface.mean(best[None])[0])
    if isinstance(surface, GaussianProcess) or drop <= allowed:
        return ()
    step = 2 / (box_grid(len(axes)).shape[0] ** (1 / len(axes)) - 1)
    values = [np.unique(np.round(points[:, index], 9)) for index in range(len(axes))]
    return tuple(
        f"measure {axis.name} near {axis.value(float(place)):g}"
        for axis, place, tested in zip(axes, best, values, strict=True)
        if len(tested) == 3 and float(np.abs(tested - place).min()) > step
    )


def open_borders(axes: Sequence[Axis]) -> list[tuple[int, int, str]]:
    """(axis, side, advice) of every border beyond which the option still has a meaning."""
    sides = [(index, side, axis.beyond(side)) for index, axis in enumerate(axes) for side in (-1, 1)]
    return [(index, side, text) for index, side, text in sides if text is not None]


def border_share(minima: Points, axis: int, side: int) -> float:
    """Share of minima at one end of an axis."""
    return float(np.isclose(minima[:, axis], side).mean())


def densest(minima: Int[np.ndarray, " draws"], grid: Points, mass: float) -> Bool[np.ndarray, " grid"]:
    """The fewest grid points that hold a share of the minima, after smoothing over one and a half grid steps."""
    levels = round(len(grid) ** (1 / grid.shape[1]))
    counts = np.bincount(minima, minlength=len(grid)).reshape((levels,) * grid.shape[1]).astype(float)
    density = ndimage.gaussian_filter(counts, 1.5, mode="nearest").reshape(-1)
    order = np.argsort(-density)
    total = np.cumsum(density[order]) / density.sum()
    region = np.zeros(len(grid), bool)
    region[order[: int(np.searchsorted(total, mass)) + 1]] = True
    return region


def settings_to_try(axes: Sequence[Axis], optimum: Optimum, *, seeds: int, count: int) -> list[tuple[float, ...]]:
    """The `count` settings whose runs lower the expected regret most; beyond a border that the minima press against.

    The first is the minimum itself where nothing has tested the curve there.

    Each is a value for every axis, to three digits.
    """
    grid = optimum.grid.copy()
    for index, axis in enumerate(axes):
        low, high = (
            side * (STRETCH if axis.beyond(side) in optimum.advice else 1.0) for side in (-1, 1)
        )  # beyond(side) is None at a natural bound, which is never advised
        places = low + (grid[:, index] + 1) / 2 * (high - low)
        least, most = (axis.position(bound) for bound in axis.natural)
        grid[:, index] = np.clip(places, least, most)
    levels = np.stack(np.unravel_index(np.arange(len(grid)), (optimum.levels,) * len(axes)))
    step = max(1, optimum.levels // 20)
    grid, levels = grid[np.all(levels % step == 0, axis=0)], levels[:, np.all(levels % step == 0, axis=0)]
    candidates = np.nonzero(np.all(levels % (2 * step) == 0, axis=0))[0]
    mean, covariance = optimum.surface.moments(grid)
    noise = optimum.surface.noise / math.sqrt(max(seeds, 1))
    first = [optimum.grid[optimum.best]] if optimum.untested else []  # a quadratic is sure of what nothing tested
    chosen = knowledge_gradient(mean, covariance, candidates, noise=noise, count=count - len(first))
    spots = [*first, *(grid[one] for one in chosen)]
    return [tuple(axis.value(float(place)) for axis, place in zip(axes, spot, strict=True)) for spot in spots]
