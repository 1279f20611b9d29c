"""The setting that a sweep recommends: the minimum of a surface fitted over its numeric options."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune.errors import UserError
from jaxtune.runs.results import reached
from jaxtune.runs.sweeps import FinishedArm, Measure, Setting, Sweep, key, read_record
from jaxtune.science.optimum import Axis, Optimum, axis_of, find_optimum
from jaxtune.science.surface import GaussianProcess, Points, fit_surface
from jaxtune.storage.documents import Json, number

CHEAP = 0.01
"""Share of the best expected loss that a cheaper setting may cost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A fitted sweep. All numbers of `optimum` are in the measure's own unit, negated where higher is better."""

    measure: Measure
    axes: Sequence[Axis]
    points: Points
    """Places of the settings along the axes."""
    optimum: Optimum
    own: Float[np.ndarray, " axes"] | None
    """Place of the config's own setting; None where the tested range does not hold it."""
    left_out: Sequence[str]
    """Runs whose loss is not finite or above the base model's."""
    cheapest: Setting | None
    """The setting of the fewest trained tokens among those within 1 % of the best; None where all cost the same."""
    gains: Mapping[str, tuple[float, float, float]]
    """By measure: gain over the config's own setting with its 90 % interval, positive = better."""
    chance: float
    """Probability that the recommended setting beats the config's own; NaN without one."""
    seeds: int

    def values_at(self, index: int) -> dict[str, float]:
        """Option values at a point of the grid."""
        places = self.optimum.grid[index]
        return {axis.name: axis.value(float(place)) for axis, place in zip(self.axes, places, strict=True)}

    def to_json(self) -> Json:
        """Contents of recommendation.json; `recommended` is null where more must be measured first (`advice`)."""
        inside = self.optimum.grid[self.optimum.region]
        spans = {
            axis.name: sorted(axis.value(float(end)) for end in (inside[:, index].min(), inside[:, index].max()))
            for index, axis in enumerate(self.axes)
        }
        sign = -1 if self.measure.higher_is_better else 1
        return {
            "measure": self.measure.name,
            "recommended": None if self.optimum.advice or self.optimum.untested else self.values_at(self.optimum.best),
            "advice": [*self.optimum.advice, *self.optimum.untested],
            "expected": sign * float(self.optimum.mean[self.optimum.best]),
            "region_90": spans,
            "expected_regret": self.optimum.regret,
            "minima_on_border": self.optimum.at_border,
            "probability_better_than_config": None if math.isnan(self.chance) else self.chance,
            "gain_over_config": {
                name: dict(zip(("mean", "low", "high"), v, strict=True)) for name, v in self.gains.items()
            },
            "cheapest_within_1_percent": None if self.cheapest is None else dict(self.cheapest),
            "surface": "gaussian process" if isinstance(self.optimum.surface, GaussianProcess) else "quadratic",
            "lack_of_fit_p": None if math.isnan(self.optimum.lack_of_fit) else self.optimum.lack_of_fit,
            "settings": len(self.points),
            "seeds": self.seeds,
            "left_out": list(self.left_out),
        }


def recommend(sweep: Sweep, measure: Measure) -> Recommendation:
    """Fit the sweep. `UserError` where it has no numeric option of two values, words among them, or too few runs."""
    config = read_record(sweep.path).get("config", {})
    axes, points = places(sweep, config)
    sign = -1 if measure.higher_is_better else 1
    failed = {arm.name for arm in sweep.arms if is_failed(arm, measure)}
    values = sweep.matrix(lambda arm: math.nan if arm.name in failed else sign * measure.pick(arm))
    usable = np.isfinite(values).any(axis=1)
    if usable.sum() < max(3, len(axes) + 2):
        raise UserError(
            f"{sweep.path}: {int(usable.sum())} settings with a usable {measure.name}; a surface over {len(axes)} "
            f"options needs at least {max(3, len(axes) + 2)}, better three values of each option"
        )
    optimum = find_optimum(axes, points, values)
    own = own_place(axes, config)
    gains, chance = gains_over(sweep, measure, points, optimum, own)
    return Recommendation(
        measure=measure,
        axes=axes,
        points=points,
        optimum=optimum,
        own=own,
        left_out=sorted(failed),
        cheapest=cheapest(sweep, points, optimum),
        gains=gains,
        chance=chance,
        seeds=len(sweep.seeds),
    )


def is_failed(arm: FinishedArm, measure: Measure) -> bool:
    """Whether the run's loss is not finite or above that of the base model: it says where not to go, not how steep."""
    before = reached(arm.run, "before").loss
    return not math.isfinite(measure.pick(arm)) or arm.after.loss > before


def places(sweep: Sweep, config: Mapping[str, Any]) -> tuple[list[Axis], Points]:
    """The axes of the sweep's options and the place of every setting on them."""
    own = {option: config_value(config, option) for option in sweep.axes}
    varied = {
        option: [option_number(option, setting.get(option), own[option]) for setting in sweep.settings]
        for option, values in sweep.axes.items()
        if len(values) > 1 or any(option not in setting for setting in sweep.settings)
    }
    varied = {option: values for option, values in varied.items() if len(set(values)) > 1}
    if not varied:
        raise UserError(f"{sweep.path}: no option has two values, so there is nothing to recommend")
    try:
        axes = [axis_of(option, values) for option, values in varied.items()]
    except ValueError as error:
        raise UserError(f"{sweep.path}: {error}") from None
    points = np.array(
        [[a.place(v) for a, v in zip(axes, row, strict=True)] for row in zip(*varied.values(), strict=True)]
    )
    return axes, points


def option_number(option: str, text: str | None, own: float) -> float:
    """An option's value as a number; a setting that leaves the option alone has the config's."""
    if text is None:
        value = own
    else:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
    if math.isnan(value):
        raise UserError(
            f"recommend fits a surface over numbers, but {option} is {text or 'left to the config'!r}, which is none; "
            "give each such value a sweep of its own"
        )
    return value


def config_value(config: Mapping[str, Any], option: str) -> float:
    """The config's own value of an option; NaN where it is no number."""
    found: Any = config
    for part in option.replace("-", "_").split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return math.nan
    try:
        return number(found)
    except ValueError:  # a word, such as a schedule's name
        return math.nan


def own_place(axes: Sequence[Axis], config: Mapping[str, Any]) -> Float[np.ndarray, " axes"] | None:
    """Place of the config's own setting, if the tested range holds it."""
    values = [config_value(config, axis.name) for axis in axes]
    if any(math.isnan(value) for value in values):
        return None
    spot = np.array([axis.place(value) for axis, value in zip(axes, values, strict=True)])
    return spot if np.all(np.abs(spot) <= 1 + 1e-9) else None


def gains_over(
    sweep: Sweep, measure: Measure, points: Points, optimum: Optimum, own: Float[np.ndarray, " axes"] | None
) -> tuple[dict[str, tuple[float, float, float]], float]:
    """Gain of the recommended over the config's own setting by every measure, and the probability of one."""
    if own is None:
        return {}, math.nan
    mean, low, high, chance = optimum.against(own)
    gains = {measure.name: (mean, low, high)}
    spots = np.stack([optimum.grid[optimum.best], own])
    for other in sweep.measures:
        if other.name != measure.name:
            sign = 1 if other.higher_is_better else -1
            surface, _ = fit_surface(points, sweep.matrix(other.pick))
            drawn = surface.sample(spots, 4000, np.random.default_rng(2))
            gain = sign * (drawn[:, 0] - drawn[:, 1])
            low, high = np.quantile(gain, (0.05, 0.95))
            gains[other.name] = (float(gain.mean()), float(low), float(high))
    return gains, chance


def cheapest(sweep: Sweep, points: Points, optimum: Optimum) -> Setting | None:
    """The tried setting of the fewest trained tokens whose expected value is within 1 % of the best tried one's."""
    expected = optimum.surface.mean(points)
    allowed = expected <= expected.min() + CHEAP * abs(expected.min())
    cost = [mean_tokens(sweep, setting) for setting in sweep.settings]
    if not all(map(math.isfinite, cost)) or max(cost) <= 1.001 * min(cost):
        return None
    return sweep.settings[min(np.nonzero(allowed)[0], key=lambda index: cost[index])]


def mean_tokens(sweep: Sweep, setting: Setting) -> float:
    """Tokens that a setting's runs went through, on average."""
    counts = [number(arm.run.summary.get("tokens")) for arm in sweep.arms if key(arm.setting) == key(setting)]
    return math.fsum(counts) / len(counts)
