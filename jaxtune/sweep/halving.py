"""Successive halving: all settings train to a rung, the best go on, and the rest are kept as they stood there.

The unit is a setting with all its seeds. Schedules are those of the whole runs, so a run that reaches its end has the
bits that it would have without halving. A rung is a validation that the runs make anyway.
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune.errors import UserError
from jaxtune.reports import run as report
from jaxtune.runs import folder as runfolder
from jaxtune.runs import seal
from jaxtune.runs.history import METRICS, read_rows
from jaxtune.runs.sweeps import HALVED, HALVING
from jaxtune.science.halving import rank_agreement, survivors
from jaxtune.storage import locks
from jaxtune.storage.documents import number, read_object, write_json
from jaxtune.train.run import is_finished

BRANCHES = "rungs"
"""Folder of a sweep with the branches on which rungs are judged, by share and run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halving:
    """At each of the `rungs`, shares of a run's steps, the best 1 / `factor` of the settings go on."""

    factor: float
    rungs: tuple[float, ...]
    decay: float | None = None
    """Length of a branch from each rung on which the rate goes linearly to zero, as a share of the steps so far; its
    end judges. None: the rung itself does."""

    def __post_init__(self):
        if self.decay is not None and not 0 < self.decay <= 1:
            raise UserError(f"--rung-decay {self.decay:g}: a share of the steps to a rung, above 0 and at most 1: .1")
        if not self.factor > 1 or not math.isfinite(self.factor):
            raise UserError(f"--halving {self.factor:g}: one in how many settings goes on, above 1, for example 3")
        inside = all(0 < rung < 1 for rung in self.rungs)
        if not self.rungs or not inside or list(self.rungs) != sorted(set(self.rungs)):
            given = ",".join(f"{rung:g}" for rung in self.rungs)
            raise UserError(f"--rungs {given}: rising shares of a run, each between 0 and 1, for example .25,.5")


def parse_halving(factor: float | None, rungs: str | None, decay: float | None = None) -> Halving | None:
    """`--halving 3 --rungs .25,.5 --rung-decay .1`; None without them."""
    if factor is None:
        if rungs is not None or decay is not None:
            raise UserError("--rungs and --rung-decay go with --halving FACTOR: --halving 3 --rungs .25,.5")
        return None
    try:
        shares = tuple(float(text) for text in (rungs or ".25,.5").split(","))
    except ValueError:
        raise UserError(f"--rungs {rungs}: shares of a run, separated by commas, for example .25,.5") from None
    return Halving(factor=factor, rungs=shares, decay=decay)


def rung_steps(halving: Halving, total: int, every: int) -> list[int]:
    """The step of each rung in a run of `total` steps that validates `every` so many: its first validation from there.

    Raises UserError where a rung has no validation of its own before the end.
    """
    if every == 0:
        raise UserError("--halving judges settings by their validation losses on the way; set eval.every")
    steps = [math.ceil(rung * total / every) * every for rung in halving.rungs]
    if len(set(steps)) < len(steps) or steps[-1] >= total:
        raise UserError(
            f"--rungs {','.join(f'{rung:g}' for rung in halving.rungs)} are the validations of steps "
            f"{', '.join(map(str, steps))} in a run of {total}; each needs one of its own before the end: "
            f"lower eval.every, now {every}, or choose other rungs"
        )
    return steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStep:
    """A step of a run folder."""

    folder: pathlib.Path
    step: int

    def loss(self) -> float | None:
        """Mean validation loss of tasks there, or at an earlier end of the run; None before the run is there."""
        there = [row for row in validations(self.folder) if row["step"] <= self.step]
        if not there or (there[-1]["step"] < self.step and not is_finished(self.folder)):
            return None
        return number(there[-1]["macro_loss"])


def validations(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a run's validations; none where it has not started."""
    path = folder / METRICS
    return [row for row in read_rows(path) if row["kind"] == "eval"] if path.is_file() else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A run of a sweep with halving."""

    name: str
    setting: str
    """Name of its setting."""
    seed: int
    folder: pathlib.Path
    rungs: Sequence[int]
    """Steps of its rungs."""
    branches: Sequence[RunStep] = ()
    """End of its branch from each rung, where the rate decays there."""

    def loss(self, rung: int) -> float | None:
        """Mean validation loss of tasks that a rung judges by; None before it is known."""
        own = RunStep(folder=self.folder, step=self.rungs[rung]).loss()
        if own is None or not self.branches or self.ended_before(rung):
            return own
        return self.branches[rung].loss()

    def ended_before(self, rung: int) -> bool:
        """Whether the run stopped early, before the rung: it has no branch."""
        return is_finished(self.folder) and validations(self.folder)[-1]["step"] < self.rungs[rung]

    def final_loss(self) -> float | None:
        """Mean validation loss of tasks at the end; None where the run did not get there."""
        return number(validations(self.folder)[-1]["macro_loss"]) if is_finished(self.folder) else None


def branch_of(sweep_dir: pathlib.Path, name: str, halving: Halving, rung: int, step: int, total: int) -> RunStep:
    """End of the branch of a run from a rung at `step`; without a share that decays, the rung itself."""
    steps = math.ceil((halving.decay or 0) * step)
    return RunStep(folder=sweep_dir / BRANCHES / f"{halving.rungs[rung]:g}" / name, step=min(step + steps, total))


def without_branch(run: Contender, rung: int) -> str:
    """Message that a run can no longer be judged as asked."""
    return (
        f"{run.name} went on from its rung at step {run.rungs[rung]} without a branch, and its state there is gone; "
        "repeat the command without --rung-decay, or in a new folder"
    )


def start_branch(run: Contender, rung: int) -> None:
    """Copy a run that waits at a rung to where its branch will train; UserError where it does not wait there."""
    step, folder = run.rungs[rung], run.branches[rung].folder
    if folder.exists():
        return
    summary = read_object(run.folder / "summary.json")
    if summary["steps"] != step or not (run.folder / seal.CHECKPOINTS / f"{step:08d}").is_dir():
        raise UserError(without_branch(run, rung))
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.folder, partial, ignore=shutil.ignore_patterns(locks.NAME))
    partial.rename(folder)


def losses_at(
    runs: Sequence[Contender], rung: int, failures: Mapping[str, str]
) -> tuple[list[str], Float[np.ndarray, "settings seeds"]]:
    """Settings and their losses at a rung, infinite for runs that failed; UserError where one is still missing."""
    settings = list(dict.fromkeys(run.setting for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    table = np.full((len(settings), len(seeds)), math.inf)
    for run in runs:
        loss = math.inf if run.name in failures else run.loss(rung)
        if loss is None and RunStep(folder=run.folder, step=run.rungs[rung]).loss() is not None:
            raise UserError(without_branch(run, rung))
        if loss is None:
            raise UserError(
                f"{run.name} has not reached its rung at step {run.rungs[rung]}: another process trains it. Settings "
                "are compared when all of them are there; run the command again then, or halve in one process"
            )
        table[settings.index(run.setting), seeds.index(run.seed)] = loss
    return settings, table


def decide(
    runs: Sequence[Contender], rung: int, halving: Halving, failures: Mapping[str, str]
) -> tuple[list[Contender], dict[str, Any]]:
    """The runs that go on from a rung, and the rung as it is recorded; those of other settings are marked as halved."""
    settings, table = losses_at(runs, rung, failures)
    kept = survivors(table, halving.factor)
    means = table.mean(axis=1).tolist()
    staying = {setting for setting, stays in zip(settings, kept.tolist(), strict=True) if stays}
    for run in runs:
        if run.setting not in staying and run.name not in failures:
            mark_halved(run, halving.rungs[rung])
    rows = [
        {"setting": setting, "loss": mean, "kept": setting in staying}
        for setting, mean in zip(settings, means, strict=True)
    ]
    return [run for run in runs if run.setting in staying], {"share": halving.rungs[rung], "settings": rows}


def mark_halved(run: Contender, share: float) -> None:
    """Write into the summary of a run that its setting went no further; a run that is finished stays so."""
    with runfolder.only_writer(run.folder):
        summary = read_object(run.folder / "summary.json")
        if summary["status"] == HALVED or is_finished(run.folder):
            return
        seal.break_seal(run.folder)
        write_json(run.folder / "summary.json", summary | {"status": HALVED, "rung": share})
        report.write_report(run.folder)
        seal.write_seal(run.folder)


def agreement(runs: Sequence[Contender], halving: Halving) -> list[dict[str, Any]]:
    """For each rung, how far the settings that finished with all their seeds rank there as at their end."""
    ends = {run.name: run.final_loss() for run in runs}
    settings = list(dict.fromkeys(run.setting for run in runs))
    members = [[run for run in runs if run.setting == setting] for setting in settings]
    whole = [group for group in members if all(math.isfinite(ends[run.name] or math.nan) for run in group)]
    table = lambda pick: np.array([[pick(run) for run in group] for group in whole], float).reshape(len(whole), -1)
    found = []
    for rung, share in enumerate(halving.rungs):
        tau, over = rank_agreement(table(lambda run, r=rung: run.loss(r)), table(lambda run: ends[run.name]))
        found.append({"share": share, "settings": len(whole), "compared": over, "tau": tau})
    return found


def record(sweep_dir: pathlib.Path, halving: Halving, rungs: Sequence[Any], agreements: Sequence[Any]) -> None:
    """Write `halving.json`: what was decided at every rung, and how far that agrees with the end."""
    document = {
        "factor": halving.factor,
        "decay": halving.decay,
        "rungs": list(rungs),
        "rank_agreement": list(agreements),
    }
    write_json(sweep_dir / HALVING, document)
