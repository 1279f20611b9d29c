"""Ablations: a grid of overrides and seeds as runs that share token caches and compiled steps, or train as one program.

Arms are paired. All start from the same parameters, and the order inside a task depends on (seed, task name, epoch)
alone, so two arms of one seed meet each task's examples in the same order whatever their mixture.
"""

import csv
import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.runs.sweeps import read_sweep, sweep_table
from jaxtune.step.programs import Programs
from jaxtune.storage.documents import plain, read_json, write_json
from jaxtune.train import lanes as together
from jaxtune.train.loop import NotFinite, Status, is_finished
from jaxtune.train.run import train

RECORD = "sweep.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and one seed."""

    overrides: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """Folder name: the last part of each option with its value, and the seed."""
        parts = [f"{option.rpartition('.')[2]}={value}" for option, value in self.overrides.items()]
        return "_".join([*parts, f"seed={self.seed}"]).replace("/", "-")

    def arguments(self) -> list[str]:
        """As options of the command line."""
        return [text for option, value in self.overrides.items() for text in (f"--{option}", value)] + [
            "--seed",
            str(self.seed),
        ]


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`mixture.temperature=1,2,inf` as option -> values."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        option, equals, values = text.partition("=")
        option = option.strip().removeprefix("--")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not option or not all(listed):
            raise UserError(f"--grid takes OPTION=V1,V2,...; got {text!r}")
        if option == "seed":
            raise UserError("give seeds with --seeds, not in the grid: every setting runs with every seed")
        if option in axes:
            raise UserError(f"--grid names {option!r} twice")
        if len(set(listed)) < len(listed):
            raise UserError(f"--grid {option} lists a value twice: {listed}")
        axes[option] = listed
    return axes


def grid(axes: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of values with every seed, seeds innermost."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds lists a seed twice: {list(seeds)}")
    combinations = itertools.product(*axes.values())
    return [
        Trial(overrides=dict(zip(axes, values, strict=True)), seed=seed) for values in combinations for seed in seeds
    ]


def sweep(
    config: ExperimentConfig,
    sweep_dir: pathlib.Path,
    axes: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    *,
    config_path: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    stacked: bool = False,
    stack_size: int | None = None,
) -> Status:
    """Run what is not finished yet, then write sweep.json, results.csv, the heatmap and report.html.

    Every setting is checked before the first run starts. `stacked`: runs of one shape train together, at most
    `stack_size` of them. A run whose numbers stop being finite ends, the others go on; at the end that is a UserError.
    """
    trials = grid(axes, seeds)
    resolved = [configs.override(config, trial.arguments()) for trial in trials]
    check_devices_and_folders(resolved, stacked=stacked, stack_size=stack_size)
    record = {
        "config": configs.to_json(config),
        "axes": {option: list(values) for option, values in axes.items()},
        "seeds": list(seeds),
        "runs": [
            {"name": trial.name, "overrides": dict(trial.overrides), "seed": trial.seed, "dir": f"runs/{trial.name}"}
            for trial in trials
        ],
    }
    prepare(sweep_dir, record, overwrite=overwrite)
    programs = Programs()
    waiting = []
    for number, (trial, settings) in enumerate(zip(trials, resolved, strict=True), start=1):
        arguments = {"config": config_path, "overrides": [*overrides, *trial.arguments()]}
        run = Waiting(f"[{number}/{len(trials)}]", sweep_dir / "runs" / trial.name, settings, arguments)
        if is_finished(run.folder):
            print(f"{run.label} {trial.name}: finished before")
        else:
            waiting.append(run)
    failures: dict[str, str] = {}
    if stacked:
        status = run_stacked(waiting, programs, failures, stack_size)
    else:
        status = run_separate(waiting, programs, failures)
    if status is Status.STOPPED:
        print("stopped; the same command continues the sweep")
        return status
    if len(failures) < len(trials):
        write_results(sweep_dir)
    if failures:
        listed = "".join(f"\n  - {name}: {message}" for name, message in failures.items())
        raise UserError(
            f"{len(failures)} of {len(trials)} runs of {sweep_dir} failed, the others are finished:{listed}"
        )
    return status


class Waiting(NamedTuple):
    """A run of a sweep that is not finished."""

    label: str
    """Its number among all, for the terminal."""
    folder: pathlib.Path
    settings: ExperimentConfig
    command: Mapping[str, Any]

    def say(self, text: str = "") -> None:
        """A line on the terminal about this run."""
        print(f"{self.label} {self.folder.name}{text}", flush=True)


def check_devices_and_folders(resolved: Sequence[ExperimentConfig], *, stacked: bool, stack_size: int | None) -> None:
    """Refuse what would waste devices, and checkpoints that runs would share."""
    if stack_size is not None and (not stacked or stack_size < 1):
        raise UserError(f"--stack-size {stack_size} goes with --stacked and is at least 1")
    if not stacked and any(settings.mesh.trial != 1 for settings in resolved):
        raise UserError("mesh.trial is the axis of runs that train together; give --stacked, or leave mesh.trial at 1")
    if stacked and jax.process_count() > 1:
        raise UserError("--stacked runs in one process; start the sweep on one host, or leave --stacked away")
    folders = [settings.checkpoint.directory for settings in resolved if settings.checkpoint.directory is not None]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"checkpoint.directory {folders[0]} would be shared by the runs of the sweep; leave it away, and each "
            "keeps its checkpoints in its own folder"
        )


def run_separate(waiting: Sequence[Waiting], programs: Programs, failures: dict[str, str]) -> Status:
    """One run after the other."""
    for run in waiting:
        run.say()
        if run_one(run, programs, failures) is Status.STOPPED:
            return Status.STOPPED
    return Status.FINISHED


def run_stacked(
    waiting: Sequence[Waiting], programs: Programs, failures: dict[str, str], stack_size: int | None
) -> Status:
    """Runs of one shape together; what has no like runs alone, and the terminal says why."""
    by_name = {run.folder.name: run for run in waiting}
    planned = []
    for run in waiting:
        resume, overwrite = continuation(run)
        planned.append(
            together.plan_run(run.settings, run.folder, command=run.command, resume=resume, overwrite=overwrite)
        )
    groups = together.group_by_shape(planned, stack_size)
    for group in groups:
        if len(group) == 1:
            run = by_name[group[0].name]
            run.say(f": alone, {together.why_alone(group[0], groups)}")
            status = run_one(run, programs, failures)
        else:
            for member in group:
                by_name[member.name].say(f": together with {len(group) - 1} others")
            outcome = together.train_stacked(group, programs)
            failures |= outcome.failures
            status = outcome.status
        if status is Status.STOPPED:
            return status
    return Status.FINISHED


def prepare(sweep_dir: pathlib.Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Create or accept the folder: an existing one must hold the same config; its grid may grow."""
    path = sweep_dir / RECORD
    if overwrite and path.is_file():
        shutil.rmtree(sweep_dir)
    if sweep_dir.is_dir() and any(sweep_dir.iterdir()):
        if not path.is_file():
            raise UserError(f"{sweep_dir} holds files but no sweep; choose another folder")
        if read_json(path)["config"] != plain(record["config"]):
            raise UserError(
                f"{sweep_dir} holds a sweep of another config; continue it with that one, "
                "choose another folder, or replace it with --overwrite"
            )
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def continuation(run: Waiting) -> tuple[bool, bool]:
    """(resume, overwrite): a run that was interrupted goes on from its checkpoint; without one it starts again."""
    started = (run.folder / "config.json").is_file()
    saved = started and run.settings.checkpoint.can_resume(run.folder)
    if started:
        print(
            f"{run.folder.name}: {'goes on from its last checkpoint' if saved else 'has no checkpoint, starts again'}"
        )
    return saved, started and not saved


def run_one(run: Waiting, programs: Programs, failures: dict[str, str]) -> Status:
    """A fresh run, or the rest of one that was interrupted; what ends it for its numbers goes into `failures`."""
    resume, overwrite = continuation(run)
    try:
        outcome = train(
            run.settings, run.folder, command=run.command, resume=resume, overwrite=overwrite, programs=programs
        )
    except NotFinite as error:
        failures[run.folder.name] = str(error)
        print(f"{run.folder.name} ends here, the others go on: {error}", flush=True)
        return Status.FAILED
    return outcome.status


def write_results(sweep_dir: pathlib.Path) -> None:
    """results.csv, heatmap.png and report.html from the finished runs."""
    found = read_sweep(sweep_dir)
    rows = sweep_table(found)
    with (sweep_dir / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_sweep_report(found)
