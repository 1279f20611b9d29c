"""A run from its input to its report, alone or together with others of its program."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtune.config import ExperimentConfig
from jaxtune.errors import say
from jaxtune.parallel.job import Guard, answer_of_main, barrier, is_main
from jaxtune.parallel.mesh import all_devices
from jaxtune.runs.documents import SummaryFile, read_as
from jaxtune.runs.folder import only_writer, refuse_private_disks
from jaxtune.runs.remote import RemoteFolder
from jaxtune.step.programs import Programs, keep_programs
from jaxtune.storage import faults
from jaxtune.storage.stores import is_url
from jaxtune.terminal.display import Phase
from jaxtune.terminal.progress import GroupProgress, TrainProgress
from jaxtune.train import documents, measure, staging
from jaxtune.train.agreement import check_processes
from jaxtune.train.arm import Arm, NotFinite, open_arm
from jaxtune.train.decisions import Status
from jaxtune.train.identity import identify
from jaxtune.train.lanes import make_lane
from jaxtune.train.loop import Ensemble, Stopwatch
from jaxtune.train.loop import run as train_arms
from jaxtune.train.planned import Planned, plan_run
from jaxtune.train.resolution import cache_folder, resolve
from jaxtune.train.rows import scores_of
from jaxtune.train.session import Session, open_session, open_sessions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a run besides its folder."""

    status: Status
    exit_code: int
    run_dir: pathlib.Path
    summary: dict[str, Any]
    failure: str | None = None
    """What ended a run that failed."""
    url: str | None = None
    """Place of the run folder, if `run_dir` is the working copy of one in a bucket."""

    def where(self, *names: str) -> str:
        """The run folder, or a file in it, as people and programs elsewhere find it."""
        return str(self.run_dir.joinpath(*names)) if self.url is None else "/".join((self.url, *names))


def train(
    config: ExperimentConfig, run_dir: pathlib.Path | str, *, command: Mapping[str, Any] | None = None,
    resume: bool = False, resume_step: int | None = None, overwrite: bool = False, accept_change: bool = False,
    programs: Programs | None = None,
) -> TrainResult:  # fmt: skip
    """Tune as `config` says and write the run folder. Raises UserError before any training for unusable input.

    `run_dir` may be a URL such as gs://bucket/runs/x: the run works in a folder of the cache and keeps its files there.
    With `accept_change` a resumed run may go on with other options than it was started with (see `resuming`).
    """
    all_devices()  # refuses a platform that is not here
    remote = RemoteFolder(str(run_dir), cache_folder(config)) if is_url(str(run_dir)) else None
    folder = pathlib.Path(run_dir) if remote is None else remote.folder
    with only_writer(folder, remote):
        kept = config.checkpoint.kept_at(remote and remote.url)
        if (shared := kept.written_by_all(folder, remote=remote is not None)) is not None:
            refuse_private_disks(shared)
        run = plan_run(
            config, remote or folder, command=command, resume=resume, resume_step=resume_step,
            overwrite=overwrite, accept_change=accept_change,
        )  # fmt: skip
        longer = any(change.name == "duration.steps" for change in run.changes)
        if resume and resume_step is None and not longer and answer_of_main(lambda: is_finished(run.run_dir)):
            return finished_before(run.run_dir, run.remote and run.remote.url)
        if is_main():
            for line in filter(None, (documents.size_in_words(run.inputs), documents.text_in_words(run.inputs))):
                say(line, file=sys.stderr, flush=True)
        outcome = train_stages(run, programs or Programs())
    if outcome.failure is not None:
        raise NotFinite(outcome.failure)
    return outcome


def train_stages(run: Planned, programs: Programs) -> TrainResult:
    """Train a run to its end: of one in stages each with the shares that follow from the stages before it."""
    while True:
        [outcome] = train_together([run], programs)
        config = run.inputs.config
        if outcome.status is not Status.PAUSED or not config.mixture.staged:
            return outcome
        shares = answer_of_main(lambda run=run: staging.following(run.run_dir, run.inputs.config, run.inputs.plan))
        if is_main():
            tasks = run.inputs.plan.tasks
            told = ", ".join(f"{task} {share:.1%}" for task, share in zip(tasks, shares[-len(tasks) :], strict=True))
            say(f"the next stage: {told}", file=sys.stderr, flush=True)
        run = plan_run(staging.with_shares(config, shares), run.remote or run.run_dir, command=run.command, resume=True)


def train_together(runs: Sequence[Planned], programs: Programs) -> list[TrainResult]:
    """Train runs of one program and write their run folders. A run whose numbers stop being finite ends alone."""
    watch = Stopwatch()
    config = runs[0].inputs.config
    keep_programs(config.compilation_cache)

    # 1. Devices: one mesh, one base model, one program; the states at step 0. Processes that disagree would hang there.
    for run in runs:
        start = {"--resume": run.resume, "--resume-step": run.resume_step, "--overwrite": run.overwrite}
        check_processes(run.identity, start)
    sessions = open_sessions([run.inputs for run in runs], programs)
    sessions = [branched(session, run) for session, run in zip(sessions, runs, strict=True)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(Guard(faults.foreseen))
        stack.enter_context(jax.set_mesh(sessions[0].mesh))
        lane = make_lane(sessions, programs, runs[0].stack_mode)

        # 2. The run folders, new or resumed. From here on things are written.
        barrier("jaxtune: input checked by all")
        for run in runs:
            run.write_folder()
        barrier("jaxtune: run folder")
        others = lambda run: tuple(other.name for other in runs if other is not run)
        arms = [
            open_arm(stack, number, session, lane, run, others(run))
            for number, (run, session) in enumerate(zip(runs, sessions, strict=True))
        ]

        # 3. Before tuning, the loop, and each run's end.
        display = make_display({run.name: run.inputs.total_steps for run in runs})
        ensemble = Ensemble(arms=arms, lane=lane, display=display, shared=programs.shared, watch=watch)
        exit_code = train_arms(ensemble)
    return [outcome(arm, exit_code) for arm in arms]


def branched(session: Session, run: Planned) -> Session:
    """The session of a run with the rates of a branch, where it is one: linear to zero in its last updates."""
    if run.until is None or run.decay is None:
        return session
    start, rates = run.until - run.decay, session.rates.copy()
    rates[start : run.until] = rates[start] * (1 - np.arange(run.decay) / run.decay)
    return dataclasses.replace(session, rates=rates)


def make_display(steps: Mapping[str, int]) -> TrainProgress | GroupProgress:
    """The terminal's view of runs that train together, each of so many steps."""
    return TrainProgress(*steps.values()) if len(steps) == 1 else GroupProgress(steps)


def outcome(arm: Arm, exit_code: int) -> TrainResult:
    """Result of an arm that ended; `exit_code` is that of a stop."""
    assert arm.status is not None, f"{arm.name} has not ended"
    return TrainResult(
        status=arm.status, exit_code=exit_code if arm.status is Status.STOPPED else 0, run_dir=arm.run_dir,
        summary=arm.summary, failure=arm.failure, url=arm.record.run.remote and arm.record.run.remote.url,
    )  # fmt: skip


ENDS = (Status.FINISHED.value, Status.EARLY_STOPPED.value)
"""Statuses, in a summary, of runs that went to their end."""


def is_finished(run_dir: pathlib.Path) -> bool:
    """Whether a run went to its end."""
    summary = run_dir / "summary.json"
    return summary.is_file() and read_as(summary, SummaryFile)["status"] in ENDS


def finished_before(run_dir: pathlib.Path, url: str | None = None) -> TrainResult:
    """Result of a run that has nothing left to do; `url` is the place of a run folder in a bucket."""
    summary = answer_of_main(lambda: read_as(run_dir / "summary.json", SummaryFile))
    ended = TrainResult(status=Status(summary["status"]), exit_code=0, run_dir=run_dir, summary=summary, url=url)
    if is_main():
        say(f"{ended.where()} is finished; there is nothing to resume", file=sys.stderr)
    return ended


def evaluate_only(config: ExperimentConfig) -> dict[str, Any]:
    """Validation loss and test scores by task of a config's model, as it is."""
    keep_programs(config.compilation_cache)
    with Phase("preparing"):
        inputs = resolve(config)
        if jax.process_count() > 1:
            check_processes(identify(inputs), {})
    session = open_session(inputs, Programs())
    with jax.set_mesh(session.mesh):
        loss = measure.validation_loss(session, session.base.trainable)
        score = measure.score_all(session, session.base.trainable)
    numbers: dict[str, Any] = {"model": str(inputs.folder)}
    if loss is not None:
        numbers |= {"loss": loss.loss, "macro_loss": loss.macro_loss, "task_loss": dict(loss.task_loss)}
        numbers |= {"task_prompt_loss": dict(loss.prompt_loss)} if loss.prompt_loss else {}
        numbers |= {"task_accuracy": dict(loss.task_accuracy), "task_tokens": dict(loss.task_tokens)}
    if score is not None:
        numbers |= scores_of(score)
    return numbers
