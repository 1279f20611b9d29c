"""A sweep folder, read: its finished runs as a table of settings x seeds."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxtune.errors import UserError
from jaxtune.runs.documents import SweepFile, read_as
from jaxtune.runs.forgotten import forgotten
from jaxtune.runs.harness import harness_columns
from jaxtune.runs.history import Run, origin_of
from jaxtune.runs.results import Outcome, reached
from jaxtune.runs.seal import read_unchanged
from jaxtune.storage.documents import Json

RECORD = "sweep.json"
HALVING = "halving.json"
"""What was decided at the rungs of a sweep with halving."""
HALVED = "halved"
"""Status of a run whose setting went no further than a rung."""
Setting = Mapping[str, str]
"""Every option that a run overrides, the seed aside, with its value as written."""
Pick = Callable[["FinishedArm"], float]
"""A number of an arm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedArm:
    """One finished run of a sweep."""

    name: str
    setting: Setting
    seed: int
    run: Run
    after: Outcome
    tag: str = ""
    """Name that the user gave the setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that runs are compared by."""

    name: str
    title: str
    pick: Pick
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 3
    unit: str = "nats"

    def form(self, value: float) -> str:
        """The value in its unit; a dash where there is none."""
        return f"{self.scale * value:.{self.digits}f}" if math.isfinite(value) else "–"


LOSS = Measure(
    name="macro_loss",
    title="Validation loss, mean of tasks (nats)",
    pick=lambda arm: arm.after.loss,
    higher_is_better=False,
)
MATCH = Measure(
    name="macro_exact_match",
    title="Exact match, mean of tasks (%)",
    pick=lambda arm: arm.after.exact_match,
    higher_is_better=True,
    scale=100.0,
    digits=1,
    unit="points",
)
MEASURES = {one.name: one for one in (LOSS, MATCH)}
"""By name; loss first: a continuous measure separates settings with fewer runs than a count of right answers."""


def task_measure(task: str, measure: Measure) -> Measure:
    """The same measure on one task."""
    if measure.name == LOSS.name:
        pick: Pick = lambda arm: arm.after.task_loss.get(task, math.nan)
    else:
        pick = lambda arm: arm.after.task_exact_match.get(task, math.nan)
    return dataclasses.replace(measure, name=f"{measure.name}/{task}", title=task, pick=pick)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep folder, read. Runs that did not finish are only named."""

    path: Path
    arms: Sequence[FinishedArm]
    """Runs that settings are compared and chosen by."""
    confirmations: Sequence[FinishedArm]
    """Runs on fresh seeds, made after a setting was chosen; they never choose."""
    unfinished: Sequence[str]
    halved: Sequence[FinishedArm] = ()
    """Runs whose settings were dropped at a rung; they choose nothing."""

    @property
    def place(self) -> str:
        """Path of the folder, or its URL where the path is a copy of one in a bucket."""
        return origin_of(self.path) or str(self.path)

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """Settings with a finished run, in the order of the record."""
        return list({key(arm.setting): arm.setting for arm in self.arms}.values())

    @functools.cached_property
    def seeds(self) -> list[int]:
        """Seeds of the finished runs, in the order of the record."""
        return list(dict.fromkeys(arm.seed for arm in self.arms))

    @functools.cached_property
    def axes(self) -> dict[str, list[str]]:
        """Every option that was varied with its values, in the order of the record: contrasts are against the first."""
        options = dict.fromkeys(option for setting in self.settings for option in setting)
        return {
            option: list(dict.fromkeys(one[option] for one in self.settings if option in one)) for option in options
        }

    @property
    def is_grid(self) -> bool:
        """Whether every option is set in every run and values are crossed, so that a picture by axes makes sense."""
        every = math.prod(len(values) for values in self.axes.values())
        return all(len(one) == len(self.axes) for one in self.settings) and 2 * len(self.settings) > every

    @property
    def tasks(self) -> list[str]:
        """Tasks that any run was evaluated on."""
        return list(dict.fromkeys(task for arm in self.arms for task in arm.run.task_names))

    @property
    def measures(self) -> list[Measure]:
        """Measures that the runs have."""
        return [one for one in MEASURES.values() if any(math.isfinite(one.pick(arm)) for arm in self.arms)]

    def matrix(self, pick: Pick, arms: Sequence[FinishedArm] | None = None) -> Float[np.ndarray, "settings seeds"]:
        """A number of every run, NaN where there is none; of other `arms`, by their own seeds."""
        seeds = self.seeds if arms is None else list(dict.fromkeys(arm.seed for arm in arms))
        row = {key(setting): index for index, setting in enumerate(self.settings)}
        values = np.full((len(self.settings), len(seeds)), math.nan)
        for arm in self.arms if arms is None else arms:
            if key(arm.setting) in row:
                values[row[key(arm.setting)], seeds.index(arm.seed)] = pick(arm)
        return values

    def values(self, pick: Pick, part: Setting) -> list[float]:
        """A number of every run whose setting agrees with `part`."""
        return [pick(arm) for arm in self.arms if part.items() <= arm.setting.items()]

    def name(self, setting: Setting) -> str:
        """A setting in words: its tag, or its options and values."""
        tag = next((arm.tag for arm in self.arms if arm.setting == setting and arm.tag), "")
        return tag or ", ".join(f"{option_name(option)} {value}" for option, value in setting.items()) or "the config"


def by_size(values: Iterable[str]) -> list[str]:
    """Values of an option as a picture shows them, smallest first where all are numbers; those of words as given."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return list(values)


def key(setting: Setting) -> tuple[tuple[str, str], ...]:
    """A setting as something to look it up by, whatever the order of its options."""
    return tuple(sorted(setting.items()))


def option_name(option: str) -> str:
    """The last part of an option's name, in words."""
    return option.rpartition(".")[2].replace("-", " ").replace("_", " ")


def is_sweep(folder: Path | str) -> bool:
    """Whether the folder is a sweep's."""
    return (Path(folder) / RECORD).is_file()


def read_sweep(sweep_dir: Path | str) -> Sweep:
    """Read `sweep.json` and its finished runs; without a finished run there is nothing to report (`UserError`)."""
    path = Path(sweep_dir)
    entries = record_entries(path)
    arms, confirmations, unfinished, halved = [], [], [], []
    for entry in entries:
        arm = read_arm(path, entry)
        if arm is None:
            unfinished.append(entry["name"])
        elif arm.run.summary["status"] == HALVED:
            halved.append(arm)
        else:
            (confirmations if entry.get("confirms") else arms).append(arm)
    if not arms:
        raise UserError(f"{path}: none of its {len(entries)} runs is finished; run the sweep's command again")
    return Sweep(path=path.resolve(), arms=arms, confirmations=confirmations, unfinished=unfinished, halved=halved)


def record_entries(path: Path) -> list[Json]:
    """The runs that `sweep.json` lists; a file without them is a `UserError`."""
    entries = read_record(path)["runs"]
    for entry in entries:
        if Path(entry["dir"]).is_absolute() or ".." in Path(entry["dir"]).parts:
            raise UserError(f"{path / RECORD}: the run {entry['dir']!r} lies outside the sweep; put back a whole copy")
    return entries


def read_record(path: Path) -> Json:
    """`sweep.json`: the config and the runs of a sweep folder; a file that says something else is a `UserError`."""
    return read_as(path / RECORD, SweepFile)


def read_arm(path: Path, entry: Json) -> FinishedArm | None:
    """The finished or halved run of an entry; None if it is neither."""
    folder = path / entry["dir"]
    if not (folder / "summary.json").is_file():
        return None
    run = read_unchanged(folder)
    if run.summary.get("status") not in ("finished", "early_stopped", HALVED):
        return None
    setting = {option: str(value) for option, value in entry["overrides"].items()}
    tag = str(entry.get("tag", ""))
    return FinishedArm(name=entry["name"], setting=setting, seed=entry["seed"], run=run, after=reached(run), tag=tag)


def sweep_table(sweep: Sweep) -> list[Json]:
    """One flat row per finished or halved run, for a CSV file: setting, seed, outcome over all and per task.

    Of a halved run there is its rung and the loss there, and no outcome.
    """
    rows, rungs = [], {}
    for arm in sweep.halved:
        last = arm.run.evals[-1].macro_loss if arm.run.evals else math.nan
        rungs[arm.name] = {"rung": arm.run.summary.get("rung"), "rung_loss": last}
    arms = (*sweep.arms, *sweep.confirmations, *sweep.halved)
    retained = {arm.name: {text.text: text for text in forgotten(arm.run)} for arm in arms}
    texts = dict.fromkeys(name for found in retained.values() for name in found)
    for arm in arms:
        summary = arm.run.summary
        row: Json = {"name": arm.name, "tag": arm.tag, **{option: arm.setting.get(option, "") for option in sweep.axes}}
        row |= {"seed": arm.seed, "confirms": arm in sweep.confirmations, "status": summary.get("status")}
        row |= {"steps": summary.get("steps"), "best_step": summary.get("best", {}).get("step")}
        row |= {"macro_loss": arm.after.loss, "macro_exact_match": arm.after.exact_match}
        row |= arm.after.flat(sweep.tasks) | harness_columns(arm.run)
        for text in texts:
            one = retained[arm.name].get(text)
            row |= {f"forgotten/{text}": math.nan if one is None else one.loss}
            row |= {f"kl/{text}": math.nan if one is None else one.kl}
        if rungs:
            row |= rungs.get(arm.name, {"rung": "", "rung_loss": ""})
        rows.append(row | {"seconds": summary.get("seconds")})
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, math.nan) for name in columns} for row in rows]
