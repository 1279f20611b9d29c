"""Ablations: settings and seeds as runs that share token caches and compiled steps, or train as one program.

Arms are paired. All start from the same parameters, and the order inside a task depends on (seed, task name, epoch)
alone, so two arms of one seed meet each task's examples in the same order whatever their mixture.
"""

import contextlib
import csv
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, say
from jaxtune.parallel.job import answer_of_main
from jaxtune.parallel.mesh import make_mesh
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.reports.sweep_rungs import agreement_lines
from jaxtune.runs.folder import refuse_private_disks
from jaxtune.runs.remote import RemoteFolder, folder_of
from jaxtune.runs.sweeps import RECORD, read_sweep, record_entries, sweep_table
from jaxtune.step.programs import Programs
from jaxtune.step.room import Room
from jaxtune.step.trials import StackMode
from jaxtune.storage.documents import naming, number, read_object
from jaxtune.storage.stores import is_url
from jaxtune.sweep.groups import group_by_shape, in_shared_room, rooms_needed, why_alone
from jaxtune.sweep.halving import (
    Contender,
    Halving,
    RunStep,
    agreement,
    branch_of,
    decide,
    record,
    rung_steps,
    start_branch,
)
from jaxtune.sweep.record import Place, Trial, grow, share_rooms, written_alone
from jaxtune.sweep.waiting import Waiting, claimed_now, planned_one_by_one, tell, waiting_runs
from jaxtune.terminal.display import Phase
from jaxtune.terminal.numbers import duration
from jaxtune.terminal.progress import ItemProgress
from jaxtune.train.decisions import Status
from jaxtune.train.planned import Planned
from jaxtune.train.resolution import cache_folder, resolve
from jaxtune.train.run import is_finished, train_stages, train_together


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
    mode: StackMode = StackMode.ORDER


@dataclasses.dataclass(kw_only=True)
class Ends:
    """Ends of a sweep's runs that are no success."""

    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    """What ended a run that failed, by its name."""
    exit_code: int = 0
    """That of a signal that stopped the sweep; 0 without one."""


def sweep(
    config: ExperimentConfig, sweep_dir: pathlib.Path | str, trials: Sequence[Trial], *,
    command: Command = Command(), overwrite: bool = False, stacking: Stacking = Stacking(),
    halving: Halving | None = None, ends: Ends | None = None,
) -> Status:  # fmt: skip
    """Add the runs to the folder, run what is not finished yet, then write results.csv, the heatmap and report.html.

    Every setting is checked before the first run starts. Runs that another process has claimed are left to it. A run
    whose numbers stop being finite ends, the others go on; at the end that is a UserError. With `halving` only the best
    settings go on from each rung.

    `sweep_dir` may be a URL such as gs://bucket/sweeps/x, for processes of hosts that share no disk. All processes of a
    job train each run, or each stack of runs, together; process 0 alone reads and writes the folder.

    `ends` receives how runs ended otherwise than well.
    """
    ends = ends or Ends()
    place = place_of(sweep_dir, config, halving)
    resolved = [configs.override(config, trial.arguments()) for trial in trials]
    check_devices_and_folders(resolved, stacking)
    if halving is not None and any(settings.mixture.staged for settings in resolved):
        raise UserError("--halving stops runs at rungs, and a mixture.policy at its stages; give one of the two")
    refuse_unshared(place, resolved)
    answer_of_main(lambda: grow(place, configs.to_json(config), trials, overwrite=overwrite))
    waiting = in_shared_rooms(place, waiting_runs(place, trials, resolved, command.of))
    train = functools.partial(train_all, stacking=stacking, programs=Programs(), ends=ends)
    if halving is None:
        status = train(waiting)
    else:
        folder = folder_of(place)
        runs = contenders(folder, trials, resolved, waiting, halving)
        status = train_by_rungs(folder, waiting, runs, halving, train, ends.failures)
    if status is Status.STOPPED:
        tell("stopped; the same command continues the sweep")
        return status
    if answer_of_main(lambda: any_finished(place, trials)):
        answer_of_main(lambda: write_results(place))
    if ends.failures:
        listed = "".join(f"\n  - {name}: {message}" for name, message in ends.failures.items())
        raise UserError(
            f"{len(ends.failures)} of {len(trials)} runs of {sweep_dir} failed, the others are finished:{listed}"
        )
    return Status.FINISHED


def place_of(sweep_dir: pathlib.Path | str, config: ExperimentConfig, halving: Halving | None) -> Place:
    """A sweep's folder on this disk, or at a URL. Raises UserError for a URL that cannot be served."""
    if halving is not None and jax.process_count() > 1:
        raise UserError(
            "--halving compares runs on the way, which a process alone does; give --alone on one host, or leave "
            "--halving away"
        )
    if not is_url(str(sweep_dir)):
        return pathlib.Path(sweep_dir)
    if halving is not None:
        raise UserError(
            f"--halving compares runs on the way, which needs them on one disk; give a local --sweep-dir, not "
            f"{sweep_dir}"
        )
    return RemoteFolder(str(sweep_dir), cache_folder(config), mark=RECORD)


def train_all(waiting: Sequence[Waiting], *, stacking: Stacking, programs: Programs, ends: Ends) -> Status:
    """Train runs, together or one after the other, each as far as it is to go; how they end is noted in `ends`."""
    with ItemProgress("sweep", len(waiting), unit="runs") as display:
        planned = planned_together(waiting, stacking) if stacking.stacked else planned_one_by_one(waiting)
        with contextlib.closing(planned):
            for group in planned:
                if train_group(group, programs, ends) is Status.STOPPED:
                    return Status.STOPPED
                display.advance(len(group))
    return Status.FINISHED


def contenders(
    sweep_dir: pathlib.Path, trials: Sequence[Trial], resolved: Sequence[ExperimentConfig],
    waiting: Sequence[Waiting], halving: Halving,
) -> list[Contender]:  # fmt: skip
    """The runs of a sweep with the steps of their rungs."""
    totals = {run.folder.name: run.inputs.total_steps for run in waiting if run.inputs is not None}
    found = []
    for trial, settings in zip(trials, resolved, strict=True):
        folder = sweep_dir / "runs" / trial.name
        total = totals.get(trial.name) or int(read_object(folder / "summary.json")["total_steps"])
        rungs = rung_steps(halving, total, settings.eval.every)
        one = Contender(name=trial.name, setting=trial.setting.name, seed=trial.seed, folder=folder, rungs=rungs)
        if halving.decay is not None:
            ends = [branch_of(sweep_dir, trial.name, halving, rung, step, total) for rung, step in enumerate(rungs)]
            one = dataclasses.replace(one, branches=ends)
        found.append(one)
    return found


def train_by_rungs(
    sweep_dir: pathlib.Path, waiting: Sequence[Waiting], runs: Sequence[Contender], halving: Halving,
    train: Callable[[Sequence[Waiting]], Status], failures: Mapping[str, str],
) -> Status:  # fmt: skip
    """Train all to each rung, the survivors from there to the next, and the last of them to their end."""
    by_name, decided = {run.folder.name: run for run in waiting}, []
    for rung in range(len(halving.rungs)):
        due = [run for run in runs if run.name in by_name and run.loss(rung) is None]
        apart = [run for run in due if RunStep(folder=run.folder, step=run.rungs[rung]).loss() is None]
        going = [dataclasses.replace(by_name[run.name], until=run.rungs[rung]) for run in apart]
        if train([run for run in going if run.folder.name not in failures]) is Status.STOPPED:
            return Status.STOPPED
        branches = [branch(by_name[run.name], run, rung) for run in due if run.name not in failures and run.branches]
        if train([one for one in branches if one is not None]) is Status.STOPPED:
            return Status.STOPPED
        runs, row = decide(runs, rung, halving, failures)
        decided.append(row)
        left = sum(one["kept"] for one in row["settings"])
        say(f"rung {halving.rungs[rung]:g}: {left} of {len(row['settings'])} settings go on", flush=True)
        record(sweep_dir, halving, decided, [])
    last = [by_name[run.name] for run in runs if run.name in by_name and run.name not in failures]
    if train(last) is Status.STOPPED:
        return Status.STOPPED
    found = agreement(runs, halving)
    record(sweep_dir, halving, decided, found)
    say("\n".join(agreement_lines(found)), flush=True)
    return Status.FINISHED


def branch(waiting: Waiting, run: Contender, rung: int) -> Waiting | None:
    """The branch of a run from a rung, to be trained; None where the run ended before it."""
    if run.ended_before(rung):
        return None
    start_branch(run, rung)
    end, start = run.branches[rung], run.rungs[rung]
    return dataclasses.replace(waiting, folder=end.folder, until=end.step, decay=end.step - start)


def in_shared_rooms(place: Place, waiting: Sequence[Waiting]) -> list[Waiting]:
    """The runs resolved, all before the first starts, and those of one shape in a room that all of them fit in."""
    with Phase("preparing", len(waiting), unit="settings") as phase:
        resolved = [resolve(run.settings) for run in phase.count(waiting)]
        needed = rooms_needed(resolved)
        shared = answer_of_main(lambda: {key: one.to_json() for key, one in share_rooms(place, needed).items()})
    rooms = {key: Room.from_json(one) for key, one in shared.items()}
    return [
        dataclasses.replace(run, inputs=inputs if run.settings.mixture.staged else in_shared_room(inputs, rooms))
        for run, inputs in zip(waiting, resolved, strict=True)
    ]


def train_group(runs: Sequence[Planned], programs: Programs, ends: Ends) -> Status:
    """Train runs together; how they end is noted in `ends`."""
    staged = runs[0].inputs.config.mixture.staged  # such a run is alone
    for outcome in [train_stages(runs[0], programs)] if staged else train_together(runs, programs):
        if outcome.failure is not None:
            ends.failures[outcome.run_dir.name] = outcome.failure
            tell(f"{outcome.run_dir.name} ended, the others go on: {outcome.failure}")
        if outcome.status is Status.STOPPED:
            ends.exit_code = outcome.exit_code
            return Status.STOPPED
        if outcome.failure is None:
            tell(f"{outcome.run_dir.name}: {reached(outcome.summary)}")
    return Status.FINISHED


def reached(summary: Mapping[str, Any]) -> str:
    """Result of a run of a sweep, in a line."""
    after = summary.get("after", {})
    loss, exact = (number(after.get(name)) for name in ("macro_loss", "macro_exact_match"))
    parts = [f"{summary['status'].replace('_', ' ')} after {summary['steps']:,} steps"]
    parts += [f"validation loss {loss:.4f}"] if math.isfinite(loss) else []
    parts += [f"exact match {exact:.1%}"] if math.isfinite(exact) else []
    return ", ".join([*parts, duration(float(summary["seconds"]))])


def planned_together(waiting: Sequence[Waiting], stacking: Stacking) -> Generator[Sequence[Planned]]:
    """Groups of runs of one shape; what has no like runs alone, and the terminal says why."""
    with contextlib.ExitStack() as held:
        by_name = claimed_now(waiting, held)
        groups = group_by_shape([run.plan() for run in by_name.values()], stacking.size)
        for group in groups:
            others = len(group.runs) - 1
            how = f"together with {others} others" if others else f"alone, {why_alone(group, groups)}"
            for run in group.runs:
                by_name[run.name].say(f": {how}")
            mode = stacking.mode if others else StackMode.ORDER
            yield [dataclasses.replace(run, stack_mode=mode) for run in group.runs]
    for run in by_name.values():
        run.clean()


def check_devices_and_folders(resolved: Sequence[ExperimentConfig], stacking: Stacking) -> None:
    """Refuse what would waste devices, and checkpoints that runs would share."""
    if stacking.size is not None and (not stacking.stacked or stacking.size < 1):
        raise UserError(f"--stack-size {stacking.size} goes with --stacked and is at least 1")
    if stacking.mode is StackMode.BATCHED:
        if not stacking.stacked:
            raise UserError("--stack-mode batched goes with --stacked")
        if any(settings.lora is None for settings in resolved):
            raise UserError(
                "--stack-mode batched takes the rows of all runs through one frozen base, and without adapters "
                "nothing is frozen; give --lora, or leave --stack-mode at order"
            )
    if stacking.stacked and any(settings.mixture.staged for settings in resolved):
        raise UserError(
            "--stacked trains runs step by step together, and a mixture.policy plans each on its own; leave "
            "--stacked away"
        )
    if not stacking.stacked and any(settings.mesh.trial != 1 for settings in resolved):
        raise UserError("mesh.trial is the axis of runs that train together; give --stacked, or leave mesh.trial at 1")
    for mesh in dict.fromkeys(settings.mesh for settings in resolved):
        make_mesh(mesh)  # refuses one that does not fit the devices
    folders = [settings.checkpoint.directory for settings in resolved if settings.checkpoint.directory is not None]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"checkpoint.directory {folders[0]} would be shared by the runs of the sweep; leave it away, and each "
            "keeps its checkpoints in its own folder"
        )


def refuse_unshared(place: Place, resolved: Sequence[ExperimentConfig]) -> None:
    """Refuse a local folder for checkpoints that not all processes of a job see. Does nothing in a process alone."""
    if jax.process_count() == 1:
        return
    remote = place if isinstance(place, RemoteFolder) else None
    kept = [settings.checkpoint.kept_at(remote and remote.url) for settings in resolved]
    shared = {one.written_by_all(folder_of(place), remote=remote is not None) for one in kept}
    for folder in sorted(folder for folder in shared if folder is not None):
        refuse_private_disks(folder)


def any_finished(place: Place, trials: Sequence[Trial]) -> bool:
    """Whether a run may be finished; of a folder in a bucket, other hosts' runs are not known before it is brought."""
    return isinstance(place, RemoteFolder) or any(is_finished(place / "runs" / trial.name) for trial in trials)


def write_results(place: Place) -> None:
    """results.csv, heatmap.png and report.html from the finished runs, where there are any."""
    sweep_dir = folder_of(place)
    with written_alone(place):
        if not any(is_finished(sweep_dir / entry["dir"]) for entry in record_entries(sweep_dir)):
            return
        found = read_sweep(sweep_dir)
        rows = sweep_table(found)
        path = sweep_dir / "results.csv"
        with naming(path), path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        write_sweep_report(found)
