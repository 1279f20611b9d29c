"""A run from its input to its report. `train` reads top to bottom; its loop is in `loop.py`."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.parallel.job import Guard, StopSignal, barrier, from_main, is_main
from jaxtune.runs import folder as runfolder
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.mirrors import make_mirror
from jaxtune.runs.tracker import JsonlTracker, Tracker, Trackers
from jaxtune.step.programs import Programs
from jaxtune.step.update import TrainState
from jaxtune.storage.documents import read_json
from jaxtune.train import documents, resolution, resuming
from jaxtune.train.identity import identify
from jaxtune.train.loop import Loop, Progressing, Status, is_finished
from jaxtune.train.resolution import Inputs
from jaxtune.train.session import Placed, place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `train` leaves besides the run folder."""

    status: Status
    exit_code: int
    run_dir: pathlib.Path
    summary: dict[str, Any]


def train(
    config: ExperimentConfig,
    run_dir: pathlib.Path | str,
    *,
    command: Mapping[str, Any] | None = None,
    resume: bool = False,
    resume_step: int | None = None,
    overwrite: bool = False,
    accept_change: bool = False,
    programs: Programs | None = None,
) -> Outcome:
    """Tune as `config` says and write the run folder. Raises UserError before any training for unusable input.

    With `accept_change` a resumed run may go on with other options than it was started with (see `resuming`).
    """
    run_dir = pathlib.Path(run_dir)
    started = time.monotonic()

    # 1. Refuse what can be refused before any work.
    runfolder.check(run_dir, resume=resume, overwrite=overwrite)
    enable_compilation_cache(config.compilation_cache)

    # 2. Data, tokenizer, mixture, plan: everything that can be wrong with the input shows here.
    inputs = resolution.resolve(config)
    identity = identify(inputs)
    changes: list[resuming.Change] = []
    if resume:
        changes = resuming.check(run_dir, identity, accept=accept_change)
        if resume_step is None and from_main(is_finished(run_dir)):
            return finished_before(run_dir)
    else:
        refuse_used(config)

    # 3. Devices: mesh, base model, programs, state.
    programs = programs or Programs()
    placed = place(inputs, programs)
    state = placed.take_initial_state()

    # 4. The run folder, new or resumed. From here on things are written.
    barrier("jaxtune: input checked by all")
    if not resume:
        write_folder(inputs, run_dir, identity, command, overwrite=overwrite)
    elif is_main():
        runfolder.reopen(run_dir)
    barrier("jaxtune: run folder")

    with contextlib.ExitStack() as stack:
        stack.enter_context(Guard())
        stack.enter_context(jax.set_mesh(placed.mesh))
        loop, state = open_loop(stack, placed, state, run_dir, programs, resume=resume, resume_step=resume_step)
        start = int(state.step)
        if resume and is_main():
            resuming.record(run_dir, identity, changes, start, command)

        # 5. Before tuning.
        if start == 0:
            loop.validate(state, 0)
            loop.score(state, 0, "before")

        # 6. The loop.
        with StopSignal() as stop:
            status, state, exit_code = loop.steps(state, start, stop)

        # 7. The best parameters: scores, export. Then the summary and the report.
        if status is not Status.STOPPED:
            loop.finish(state)
        summary = loop.conclude(status, int(state.step), time.monotonic() - started)
    return Outcome(status=status, exit_code=exit_code, run_dir=run_dir, summary=summary)


def finished_before(run_dir: pathlib.Path) -> Outcome:
    """How a run ended that has nothing left to do."""
    if is_main():
        print(f"{run_dir} is finished; there is nothing to resume", file=sys.stderr)
    summary = read_json(run_dir / "summary.json")
    return Outcome(status=Status(summary["status"]), exit_code=0, run_dir=run_dir, summary=summary)


def refuse_used(config: ExperimentConfig) -> None:
    """Refuse to start a run whose folder of checkpoints, outside its run folder, holds some."""
    if from_main(config.checkpoint.in_use()):
        raise UserError(f"{config.checkpoint.directory} holds checkpoints of another run; set checkpoint.directory")


def write_folder(
    inputs: Inputs, run_dir: pathlib.Path, identity: Mapping[str, Any], command: Mapping[str, Any] | None, *,
    overwrite: bool,
) -> None:  # fmt: skip
    """A new run folder with everything that is known before step 0."""
    if is_main():
        runfolder.prepare(run_dir, overwrite=overwrite)
        runfolder.write_facts(
            run_dir, config=configs.to_json(inputs.config), identity=identity, mixture=documents.mixture_json(inputs),
            samples=documents.samples(inputs), command=dict(command or {"config": None, "overrides": []}),
        )  # fmt: skip


def open_loop(
    stack: contextlib.ExitStack, placed: Placed, state: TrainState, run_dir: pathlib.Path, programs: Programs, *,
    resume: bool, resume_step: int | None = None,
) -> tuple["Loop", TrainState]:  # fmt: skip
    """Checkpoints, tracker and counters of a run, and the state to go on from; `stack` closes them."""
    config = placed.config
    checkpoints = stack.enter_context(Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint))
    if resume:
        checkpoints.fetch()
    memory = Progressing()
    if resume:
        state, memory = restore(checkpoints, state, resume_step, placed.inputs)
    tracker = open_tracker(config, run_dir, int(state.step) if resume else None)
    stack.callback(tracker.close)
    return Loop(placed, checkpoints, tracker, memory, run_dir, programs.memo), state


def restore(
    checkpoints: Checkpoints, state: TrainState, step: int | None, inputs: Inputs
) -> tuple[TrainState, Progressing]:
    """The state to continue from: the newest checkpoint, or the one asked for. Never falls back in silence."""
    latest = checkpoints.latest() if step is None else step
    if latest is None:
        raise UserError(f"no checkpoint to resume from in {checkpoints.directory}; start again with --overwrite")
    restored = checkpoints.restore(latest, abstract(state))
    extra = checkpoints.extra(latest)
    if extra["plan_hash"] != inputs.plan.hash:
        raise UserError(
            f"checkpoint {latest} was made with plan {extra['plan_hash'][:12]}, this config gives "
            f"{inputs.plan.hash[:12]}; resume with the config and data of the run, or start another run folder"
        )
    checkpoints.set_aside_after(latest)
    return restored, Progressing(**runfolder.read_progress(extra))


def open_tracker(config: ExperimentConfig, run_dir: pathlib.Path, resume_step: int | None) -> Tracker:
    """metrics.jsonl and the mirrors, on the main process; nothing on the others."""
    if not is_main():
        return Trackers([])
    facts = configs.to_json(config)
    mirrors = [
        make_mirror(kind, run_dir, config=facts, project=config.name, resume_step=resume_step)
        for kind in config.mirrors
    ]
    return Trackers([JsonlTracker(run_dir, resume_step=resume_step), *mirrors])


def enable_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs between runs."""
    if folder is not None and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def evaluate_only(config: ExperimentConfig) -> dict[str, Any]:
    """Validation loss and test scores by task of a config's model, as it is."""
    enable_compilation_cache(config.compilation_cache)
    inputs = resolution.resolve(config)
    placed = place(inputs, Programs())
    with jax.set_mesh(placed.mesh):
        loss = placed.validation_loss(placed.base.trainable)
        score = placed.score(placed.base.trainable) if inputs.questions else None
    numbers: dict[str, Any] = {"model": str(inputs.folder)}
    if loss is not None:
        numbers |= {"loss": loss.loss, "macro_loss": loss.macro_loss, "task_loss": dict(loss.task_loss)}
        numbers |= {"task_accuracy": dict(loss.task_accuracy), "task_tokens": dict(loss.task_tokens)}
    if score is not None:
        numbers |= {"task_score": dict(score.task_score), "macro_exact_match": score.macro_exact_match}
    return numbers


def export_checkpoint(
    config: ExperimentConfig, run_dir: pathlib.Path, out: pathlib.Path, step: str, dtype: str | None, *,
    overwrite: bool = False, adapter: bool = False,
) -> None:  # fmt: skip
    """Write a checkpoint of a run (`best`, `latest` or a step) as a Hugging Face folder, or its `adapter` for PEFT."""
    if adapter and config.lora is None:
        raise UserError(f"{run_dir} trained all parameters and has no adapter; leave --adapter away")
    if adapter and dtype is not None:
        raise UserError("adapters are written in float32; leave --dtype away")
    inputs = resolution.resolve(config, questions=False)
    runfolder.check_same(run_dir, identify(inputs))
    placed = place(inputs, Programs())
    with Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint, read_only=True) as checkpoints:
        number = {"best": checkpoints.best, "latest": checkpoints.latest}.get(step, lambda: checkpoint_number(step))()
        if number is None:
            number = checkpoints.latest()  # nothing was validated, so no step is better than the last
        if number is None:
            raise UserError(f"{run_dir} holds no checkpoint")
        params = checkpoints.restore_params(number, abstract(placed.base.trainable))
    if adapter:
        placed.export_adapter(params, out, overwrite=overwrite)
    else:
        placed.export(params, out, dtype, overwrite=overwrite)


def checkpoint_number(text: str) -> int:
    """A step on the command line."""
    if not text.isdecimal():
        raise UserError(f"--step takes `best`, `latest` or a step number, got {text!r}")
    return int(text)
