"""Runs that follow from a sweep's results: fresh seeds for its winner, new settings where the optimum may be."""

import math
import pathlib

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.runs.recommendation import recommend
from jaxtune.runs.sweeps import MEASURES, Measure, Sweep, key, read_sweep, record_entries
from jaxtune.science.best import additive, compare_with_best
from jaxtune.science.optimum import settings_to_try
from jaxtune.science.power import detectable, seeds_needed
from jaxtune.storage.documents import Json
from jaxtune.sweep.language import Setting
from jaxtune.sweep.record import Trial, trials_of

SPREAD = {"macro_loss": 0.016, "macro_exact_match": 0.018}
"""Standard deviation of a run of the built-in mixture by measure (nats, share), where no pilot is at hand."""


def setting_of(sweep: Sweep, index: int) -> Setting:
    """A setting of the folder, to be run again."""
    found = sweep.settings[index]
    tag = next((arm.tag for arm in sweep.arms if key(arm.setting) == key(found)), "")
    return Setting(overrides=dict(found), tag=tag)


def confirmation(config: ExperimentConfig, sweep_dir: pathlib.Path, count: int, measure: Measure) -> list[Trial]:
    """The winner and the config's own setting on `count` seeds that no run of the folder has used."""
    if count < 1:
        raise UserError(f"--confirm {count}: at least one fresh seed is needed, better five")
    sweep = read_sweep(sweep_dir)
    best = compare_with_best(sweep.matrix(measure.pick), higher_is_better=measure.higher_is_better)
    first = max(entry["seed"] for entry in record_entries(sweep_dir)) + 1
    pair = [setting_of(sweep, best.winner), own_setting(config, sweep)]
    trials = trials_of(pair, range(first, first + count))
    return [Trial(setting=trial.setting, seed=trial.seed, confirms=True) for trial in trials]


def own_setting(config: ExperimentConfig, sweep: Sweep) -> Setting:
    """The setting that leaves the config as it is, under the name the folder has for it if it has one."""
    for index, setting in enumerate(sweep.settings):
        if configs.override(config, Setting(overrides=dict(setting)).arguments()) == config:
            return setting_of(sweep, index)
    return Setting(overrides={})


def refinement(sweep_dir: pathlib.Path, count: int, measure: Measure) -> list[Trial]:
    """The `count` settings that promise to lower the expected regret most, on all seeds of the folder."""
    if count < 1:
        raise UserError(f"--refine {count}: at least one setting")
    sweep = read_sweep(sweep_dir)
    found = recommend(sweep, measure)
    new = settings_to_try(found.axes, found.optimum, seeds=found.seeds, count=count)
    names = [axis.name for axis in found.axes]
    fixed = {option: values[0] for option, values in sweep.axes.items() if option not in names}
    settings = [
        Setting(overrides={**fixed, **{name: f"{value:g}" for name, value in zip(names, values, strict=True)}})
        for values in new
    ]
    return trials_of(settings, sweep.seeds)


def power_table(sweep_dir: pathlib.Path, difference: float, measure: Measure) -> Json:
    """Seeds that a paired difference needs (80 %), from the folder's own runs or those of the built-in mixture.

    `difference` is in the measure's printed unit: nats, or points of exact match.
    """
    if not math.isfinite(difference) or difference == 0:
        raise UserError(f"--power {difference}: a difference other than 0, in {measure.unit}")
    spread, runs = SPREAD[measure.name], 0
    if (sweep_dir / "sweep.json").is_file():
        values = read_sweep(sweep_dir).matrix(measure.pick)
        kept = values[~(values != values).any(axis=1)]
        fit = additive(kept) if len(kept) else None
        if fit is not None and fit.df > 0 and fit.residual > 0:
            spread, runs = fit.residual, int(kept.size)
    paired = spread * math.sqrt(2)
    return {
        "measure": measure.name,
        "difference": difference,
        "unit": measure.unit,
        "run_spread": measure.scale * spread,
        "pilot_runs": runs,
        "seeds_needed": seeds_needed(difference / measure.scale, paired),
        "detectable": {str(seeds): measure.scale * detectable(seeds, paired) for seeds in (2, 3, 5, 10, 20)},
    }


def measure_named(name: str) -> Measure:
    """A measure of the command line."""
    if name not in MEASURES:
        raise UserError(f"--measure {name}: choose {' or '.join(MEASURES)}")
    return MEASURES[name]
