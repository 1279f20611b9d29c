"""Ablations: settings and seeds as runs that share token caches and compiled steps, or train as one program.

Arms are paired. All start from the same parameters, and the order inside a task depends on (seed, task name, epoch)
alone, so two arms of one seed meet each task's examples in the same order whatever their mixture.
"""

import contextlib
import csv
import dataclasses
import math
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.runs import folder as runfolder
from jaxtune.runs.sweeps import read_sweep, sweep_table
from jaxtune.step.programs import Programs
from jaxtune.storage import locks
from jaxtune.storage.documents import naming, number
from jaxtune.sweep.groups import group_by_shape, why_alone
from jaxtune.sweep.record import Trial, grow, written_alone
from jaxtune.terminal.numbers import duration
from jaxtune.terminal.progress import ItemProgress
from jaxtune.train.decisions import Status
from jaxtune.train.planned import Planned, plan_run
from jaxtune.train.run import is_finished, train_together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Command of a sweep, for the record: its config file and the overrides that all its runs share."""

    config: str | None = None
    overrides: Sequence[str] = ()

    def of(self, trial: Trial) -> dict[str, Any]:
        """The command of one run."""
        return {"config": self.config, "overrides": [*self.overrides, *trial.arguments()]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacking:
    """Whether runs of one shape train together as one program, and at most how many of them."""

    stacked: bool = False
    size: int | None = None
    """None: all of them."""


def sweep(
    config: ExperimentConfig, sweep_dir: pathlib.Path, trials: Sequence[Trial], *,
    command: Command = Command(), overwrite: bool = False, stacking: Stacking = Stacking(),
) -> Status:  # fmt: skip
    """Add the runs to the folder, run what is not finished yet, then write results.csv, the heatmap and report.html.

    Every setting is checked before the first run starts. Runs that another process has claimed are left to it. A run
    whose numbers stop being finite ends, the others go on; at the end that is a UserError.
    """
    resolved = [configs.override(config, trial.arguments()) for trial in trials]
    check_devices_and_folders(resolved, stacking)
    grow(sweep_dir, configs.to_json(config), trials, overwrite=overwrite)
    waiting = waiting_runs(sweep_dir, trials, resolved, command)
    failures: dict[str, str] = {}
    programs = Programs()
    with ItemProgress("sweep", len(waiting), unit="runs") as display:
        planned = planned_together(waiting, stacking.size) if stacking.stacked else planned_one_by_one(waiting)
        with contextlib.closing(planned):
            for group in planned:
                if train_group(group, programs, failures) is Status.STOPPED:
                    print("stopped; the same command continues the sweep")
                    return Status.STOPPED
                display.advance(len(group))
    if any(is_finished(sweep_dir / "runs" / trial.name) for trial in trials):
        write_results(sweep_dir)
    if failures:
        listed = "".join(f"\n  - {name}: {message}" for name, message in failures.items())
        raise UserError(
            f"{len(failures)} of {len(trials)} runs of {sweep_dir} failed, the others are finished:{listed}"
        )
    return Status.FINISHED


def waiting_runs(
    sweep_dir: pathlib.Path, trials: Sequence[Trial], resolved: Sequence[ExperimentConfig], command: Command
) -> list["Waiting"]:
    """The runs that are not finished."""
    waiting = []
    for place, (trial, settings) in enumerate(zip(trials, resolved, strict=True), start=1):
        run = Waiting(
            label=f"[{place}/{len(trials)}]", folder=sweep_dir / "runs" / trial.name, settings=settings,
            command=command.of(trial),
        )  # fmt: skip
        if is_finished(run.folder):
            run.say(": finished before")
        else:
            waiting.append(run)
    return waiting


def train_group(runs: Sequence[Planned], programs: Programs, failures: dict[str, str]) -> Status:
    """Train runs together; failures are noted by the run's name."""
    for outcome in train_together(runs, programs):
        if outcome.failure is not None:
            failures[outcome.run_dir.name] = outcome.failure
            print(f"{outcome.run_dir.name} ended, the others go on: {outcome.failure}", flush=True)
        if outcome.status is Status.STOPPED:
            return Status.STOPPED
        if outcome.failure is None:
            print(f"{outcome.run_dir.name}: {reached(outcome.summary)}", flush=True)
    return Status.FINISHED


def reached(summary: Mapping[str, Any]) -> str:
    """Result of a run of a sweep, in a line."""
    after = summary.get("after", {})
    loss, exact = (number(after.get(name)) for name in ("macro_loss", "macro_exact_match"))
    parts = [f"{summary['status'].replace('_', ' ')} after {summary['steps']:,} steps"]
    parts += [f"validation loss {loss:.4f}"] if math.isfinite(loss) else []
    parts += [f"exact match {exact:.1%}"] if math.isfinite(exact) else []
    return ", ".join([*parts, duration(float(summary["seconds"]))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """A run of a sweep that is not finished."""

    label: str
    """Its number among all, for the terminal."""
    folder: pathlib.Path
    settings: ExperimentConfig
    command: Mapping[str, Any]

    def say(self, text: str = "") -> None:
        """A line on the terminal about this run."""
        print(f"{self.label} {self.folder.name}{text}", flush=True)

    def plan(self) -> Planned:
        """The run checked and planned: from its last checkpoint if it was interrupted, else from its start."""
        started = (self.folder / "config.json").is_file()
        saved = started and self.settings.checkpoint.can_resume(self.folder)
        if started:
            self.say(f": {'goes on from its last checkpoint' if saved else 'has no checkpoint, starts again'}")
        return plan_run(self.settings, self.folder, command=self.command, resume=saved, overwrite=started and not saved)

    def claim(self, held: contextlib.ExitStack) -> bool:
        """Become the run's only writer for as long as `held` is open; False where another process trains it or has."""
        try:
            held.enter_context(runfolder.only_writer(self.folder))
        except locks.FolderInUse as error:
            if jax.process_count() > 1:  # the processes of one job go on together or not at all
                raise
            self.say(f": left out, {error}")
            return False
        if is_finished(self.folder):
            self.say(": another process has finished it")
            return False
        return True


def planned_one_by_one(waiting: Sequence[Waiting]) -> Generator[Sequence[Planned]]:
    """Each run in a group of its own, claimed and planned at its turn."""
    for run in waiting:
        with contextlib.ExitStack() as held:
            if run.claim(held):
                run.say()
                yield [run.plan()]


def planned_together(waiting: Sequence[Waiting], most: int | None) -> Generator[Sequence[Planned]]:
    """Groups of at most `most` runs of one shape; what has no like runs alone, and the terminal says why."""
    with contextlib.ExitStack() as held:
        by_name = {run.folder.name: run for run in waiting if run.claim(held)}
        groups = group_by_shape([run.plan() for run in by_name.values()], most)
        for group in groups:
            others = len(group.runs) - 1
            how = f"together with {others} others" if others else f"alone, {why_alone(group, groups)}"
            for run in group.runs:
                by_name[run.name].say(f": {how}")
            yield group.runs


def check_devices_and_folders(resolved: Sequence[ExperimentConfig], stacking: Stacking) -> None:
    """Refuse what would waste devices, and checkpoints that runs would share."""
    if stacking.size is not None and (not stacking.stacked or stacking.size < 1):
        raise UserError(f"--stack-size {stacking.size} goes with --stacked and is at least 1")
    if not stacking.stacked and any(settings.mesh.trial != 1 for settings in resolved):
        raise UserError("mesh.trial is the axis of runs that train together; give --stacked, or leave mesh.trial at 1")
    if stacking.stacked and jax.process_count() > 1:
        raise UserError("--stacked runs in one process; start the sweep on one host, or leave --stacked away")
    folders = [settings.checkpoint.directory for settings in resolved if settings.checkpoint.directory is not None]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"checkpoint.directory {folders[0]} would be shared by the runs of the sweep; leave it away, and each "
            "keeps its checkpoints in its own folder"
        )


def write_results(sweep_dir: pathlib.Path) -> None:
    """results.csv, heatmap.png and report.html from the finished runs."""
    with written_alone(sweep_dir):
        found = read_sweep(sweep_dir)
        rows = sweep_table(found)
        path = sweep_dir / "results.csv"
        with naming(path), path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        write_sweep_report(found)
