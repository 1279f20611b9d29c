"""Runs that share a program train as one: a leading trial axis on state, batches and numbers (see `trials`).

Every run keeps what it has alone: its folder, checkpoints, metrics, early stopping, and its own decisions, which are
those of `loop.Loop`. Only the computation is common, so a run may go on alone, or in another group, with the same
bits.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.batch import Batch
from jaxtune.config import ExperimentConfig
from jaxtune.data.batches import BatchIterator
from jaxtune.evaluate import loss as evaluate
from jaxtune.evaluate.loss import LossResult
from jaxtune.parallel import sharding
from jaxtune.parallel.job import StopSignal
from jaxtune.runs import folder as runfolder
from jaxtune.runs import manifest
from jaxtune.step import trials
from jaxtune.step.losses import LossSums
from jaxtune.step.programs import Programs
from jaxtune.step.trials import TrialPrograms
from jaxtune.step.update import Hparams, StepMetrics, TrainState
from jaxtune.storage.documents import Json, plain
from jaxtune.storage.fingerprints import array_fingerprint
from jaxtune.terminal.progress import GroupProgress
from jaxtune.train import resolution, resuming
from jaxtune.train.identity import identify
from jaxtune.train.loop import Loop, NotFinite, Status
from jaxtune.train.resolution import Inputs
from jaxtune.train.run import enable_compilation_cache, open_loop, refuse_used, write_folder
from jaxtune.train.session import Placed, on_mesh, place, place_beside, program_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that is ready to start or to go on; nothing of it is on a device or written."""

    name: str
    run_dir: pathlib.Path
    inputs: Inputs
    identity: Json
    """Contents of its manifest."""
    command: Mapping[str, Any]
    resume: bool
    overwrite: bool
    shape: Json
    """What runs must have in common to train as one program."""


def plan_run(
    config: ExperimentConfig, run_dir: pathlib.Path, *, command: Mapping[str, Any], resume: bool, overwrite: bool
) -> Planned:
    """Check and plan a run. Raises UserError for whatever in its input cannot be used."""
    runfolder.check(run_dir, resume=resume, overwrite=overwrite)
    inputs = resolution.resolve(config)
    identity = identify(inputs)
    if resume:
        resuming.check(run_dir, identity)
    else:
        refuse_used(config)
    return Planned(
        name=run_dir.name, run_dir=run_dir, inputs=inputs, identity=identity, command=command, resume=resume,
        overwrite=overwrite, shape=shape(inputs),
    )  # fmt: skip


def shape(inputs: Inputs) -> Json:
    """Program, batches, base model, devices and validation data of a run, as plain JSON."""
    config = inputs.config
    inputs, mesh, _ = on_mesh(inputs)
    spec = program_spec(inputs, mesh).shape
    program = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name != "mesh"}
    chosen = {
        name: {"examples": array_fingerprint(part.numbers), "tokens": part.store.fingerprint}
        for name, part in inputs.validation.items()
    }
    return plain(
        {
            **program,
            "mesh": config.mesh,
            "batch": {"rows": config.batch.rows, "passes": config.batch.micro_batches, "seq_len": config.data.seq_len},
            "base": {"folder": inputs.folder, "dtype": config.model.param_dtype},
            "validation": {"plan": None if inputs.eval_plan is None else inputs.eval_plan.hash, **chosen},
            "profile_steps": config.health.profile_steps,
        }
    )


def group_by_shape(runs: Sequence[Planned], most: int | None = None) -> list[list[Planned]]:
    """Runs that can train as one program, at most `most` of them in a group. A run that is profiled stays alone."""
    by_shape: dict[str, list[Planned]] = {}
    for run in runs:
        alone = f" {run.name}" if run.shape["profile_steps"] else ""
        by_shape.setdefault(json.dumps(run.shape, sort_keys=True) + alone, []).append(run)
    size = most or len(runs)
    return [alike[i : i + size] for alike in by_shape.values() for i in range(0, len(alike), size)]


def why_alone(run: Planned, groups: Sequence[Sequence[Planned]]) -> str:
    """What keeps a run out of the largest group, in words."""
    largest = max(groups, key=len)[0]
    if run.shape["profile_steps"]:
        return "it records a profile"
    lines = manifest.compare_manifests(largest.shape, run.shape)
    shown = "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
    return f"no other run has its program (beside {largest.name}: {shown})" if lines else "no other run is left"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupOutcome:
    """How a group ended: STOPPED by a signal, or FINISHED, with what ended those runs that failed."""

    status: Status
    failures: Mapping[str, str]


def train_stacked(runs: Sequence[Planned], programs: Programs) -> GroupOutcome:
    """Train runs of one shape together and write their run folders."""
    started = time.monotonic()
    enable_compilation_cache(runs[0].inputs.config.compilation_cache)

    # 1. Devices: one mesh, one base model, one program.
    placed = [place(runs[0].inputs, programs)]
    placed += [place_beside(placed[0], run.inputs) for run in runs[1:]]
    compiled = trial_programs(placed[0], programs, len(runs))

    # 2. The run folders, new or resumed, and the stacked state. From here on things are written.
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(placed[0].mesh))
        state, arms = compiled.blank(), []
        display = GroupProgress([run.name for run in runs], runs[0].inputs.total_steps)
        for number, (run, where) in enumerate(zip(runs, placed, strict=True)):
            if run.resume:
                runfolder.reopen(run.run_dir)
            else:
                write_folder(run.inputs, run.run_dir, run.identity, run.command, overwrite=run.overwrite)
            loop, own = open_loop(stack, where, where.initial_state(), run.run_dir, programs, resume=run.resume)
            loop.display, loop.trained_with = display.of(run.name), [r.name for r in runs if r is not run]
            arms.append(Arm(number, run.name, loop, int(own.step)))
            state = compiled.put(state, number, own)
        group = Group(arms, compiled, state, display)
        group.share(time.monotonic() - started)

        # 3. Before tuning, the loop, and each run's end.
        group.begin()
        stack.enter_context(display)
        with StopSignal() as stop:
            stopped = group.steps(stop)
    failures = {arm.name: arm.failure for arm in arms if arm.failure is not None}
    return GroupOutcome(status=Status.STOPPED if stopped else Status.FINISHED, failures=failures)


def trial_programs(first: Placed, programs: Programs, count: int) -> TrialPrograms:
    """The compiled functions of so many trials, built once."""
    key = ("trials", id(first.program), count)
    if key not in programs.memo:
        programs.memo[key] = trials.build(first.program, first.base.trainable, first.mesh, count)
    return programs.memo[key]


class Arm:
    """One run of a group: where it stands, and how it ended."""

    def __init__(self, number: int, name: str, loop: Loop, position: int):
        self.number, self.name, self.loop = number, name, loop
        self.position = position
        """Updates done."""
        self.status: Status | None = None
        """None while it trains."""
        self.failure: str | None = None
        self.seconds = 0.0
        """Its share of the group's time."""
        self.batches: BatchIterator | None = None

    def wants(self) -> bool:
        """Whether its step asks for a validation or a checkpoint."""
        return self.loop.due(self.position) or self.loop.saves(self.position)


class Group:
    """Runs on one trial axis, each at its own step."""

    def __init__(self, arms: Sequence[Arm], compiled: TrialPrograms, state: TrainState, display: GroupProgress):
        self.arms, self.compiled, self.state, self.display = arms, compiled, state, display
        self.placed = arms[0].loop.placed
        self.numbers = stacked_numbers([arm.loop.placed.numbers for arm in arms], compiled.size)
        self.clock = time.monotonic()

    @property
    def running(self) -> list[Arm]:
        """Runs that still train."""
        return [arm for arm in self.arms if arm.status is None]

    def share(self, seconds: float) -> None:
        """Count time that the running ones have spent together."""
        for arm in self.running:
            arm.seconds += seconds / len(self.running)

    def begin(self) -> None:
        """What comes before the loop: the base model's numbers, validations left undone, runs that are at their end."""
        fresh = [arm for arm in self.arms if arm.position == 0]
        behind = [arm for arm in self.arms if arm.loop.memory.unvalidated]
        results = self.validate([*fresh, *behind])
        for arm in fresh:
            arm.loop.record(results[arm.number], 0)
            arm.loop.score(self.compiled.take(self.state, arm.number), 0, "before")
        for arm in behind:
            arm.loop.caught_up(arm.loop.record(results[arm.number], arm.position), arm.position)
        self.end(
            [arm for arm in self.arms if arm.position == arm.loop.inputs.total_steps or arm.loop.out_of_patience()]
        )

    def steps(self, stop: StopSignal) -> bool:
        """Train until every run has ended; True if a signal stopped them."""
        with contextlib.ExitStack() as stack:
            for arm in self.running:
                arm.batches = arm.loop.placed.train_batches(arm.position)
                stack.enter_context(contextlib.closing(arm.batches))
                arm.loop.clock, arm.loop.waited = time.monotonic(), 0.0
            pending: tuple[list[tuple[Arm, int]], StepMetrics] | None = None
            rounds, stopping = 0, False
            self.clock = time.monotonic()
            while self.running and not stopping:
                trained, metrics = self.update()
                if pending is not None:
                    self.log(*pending)  # the previous round's numbers, while the device works
                pending = trained, metrics
                rounds += 1
                stopping = stop.after(rounds)
                wanted = [arm for arm, _ in trained if stopping or arm.wants()]
                if wanted:
                    self.log(*pending)
                    pending = None
                    self.settle([arm for arm in wanted if arm.status is None], stopping)
                self.lap()
        return stopping

    def update(self) -> tuple[list[tuple[Arm, int]], StepMetrics]:
        """One step of every running run; returns which, with the number of the step, and their metrics."""
        asked = time.monotonic()
        running = self.running
        own = {arm.number: next(arm.batches) for arm in running if arm.batches is not None}
        batch = stacked_batch(own, self.compiled.size)
        batch = sharding.put_batch(self.placed.mesh, batch, self.placed.inputs.micro_rows, trials=True)
        waited = time.monotonic() - asked
        self.state, metrics = self.compiled.train_step(
            self.state, self.placed.base.frozen, batch, self.numbers, sorted(own)
        )
        trained = [(arm, arm.position) for arm in running]
        for arm in running:
            arm.position += 1
            arm.loop.waited += waited
        return trained, metrics

    def log(self, trained: Sequence[tuple[Arm, int]], metrics: StepMetrics) -> None:
        """A round's numbers into each run's metrics; a run whose numbers are not finite ends, and only that run."""
        values = jax.device_get(metrics)
        for arm, step in trained:
            if arm.status is None:
                try:
                    arm.loop.log(step, trial(values, arm.number))
                except NotFinite as error:
                    arm.status, arm.failure = Status.FAILED, str(error)
                    self.display.write(f"{arm.name} ends here, the others go on: {error}")
        self.display.show([arm.name for arm in self.running])

    def settle(self, arms: Sequence[Arm], stopping: bool) -> None:
        """Validate, save and end runs whose step asks for it."""
        results = {} if stopping else self.validate([arm for arm in arms if arm.loop.due(arm.position)])
        ended = []
        for arm in arms:
            loop, done = arm.loop, arm.position
            watched = loop.record(results[arm.number], done) if arm.number in results else None
            if loop.improves(watched, done, unvalidated=stopping and loop.due(done)) or stopping or loop.saves(done):
                loop.save(self.compiled.take(self.state, arm.number), done, watched)
            status = loop.ended(done, stopping)
            if status is Status.STOPPED:
                arm.status = status
                loop.conclude(status, done, arm.seconds)
            elif status is not None or done == loop.inputs.total_steps:
                ended.append(arm)
        self.end(ended)

    def end(self, arms: Sequence[Arm]) -> None:
        """Score and export the best parameters of runs that are at their end, and write their summaries."""
        for arm in arms:
            state = self.compiled.take(self.state, arm.number)
            best = arm.loop.best_state(state)
            if best is not state:
                self.state = self.compiled.put(self.state, arm.number, best)
        results = self.validate(arms)
        self.lap()
        for arm in arms:
            arm.status = Status.EARLY_STOPPED if arm.loop.out_of_patience() else Status.FINISHED
            arm.loop.export(self.compiled.take(self.state, arm.number), results[arm.number])
            arm.seconds += self.since_lap()
            arm.loop.conclude(arm.status, arm.position, arm.seconds)
        for arm in self.running:
            arm.loop.clock = time.monotonic()

    def lap(self) -> None:
        """Share the time since the last lap among the running ones."""
        self.share(self.since_lap())

    def since_lap(self) -> float:
        """Seconds since this was last asked."""
        before, self.clock = self.clock, time.monotonic()
        return self.clock - before

    def validate(self, arms: Sequence[Arm]) -> dict[int, LossResult | None]:
        """Validation losses of some runs, by number: one pass over the data for all of them."""
        plan = self.placed.inputs.eval_plan
        if plan is None or not arms:
            return {arm.number: None for arm in arms}
        numbers = sorted(arm.number for arm in arms)
        with contextlib.closing(self.placed.evaluation_batches(plan, self.placed.inputs.validation)) as batches:
            sums = list(self.sums(batches, numbers))
        found: dict[int, LossResult | None] = {
            k: evaluate.per_task_loss(lambda s, k=k: trial(s, k), sums, list(plan.tasks)) for k in numbers
        }
        for arm in self.running:
            arm.loop.clock = time.monotonic()
        return found

    def sums(self, batches: Iterable[Batch], numbers: Collection[int]) -> Iterator[LossSums]:
        """Each validation batch's loss sums of all trials, fetched one batch late, so that host and device overlap."""
        waiting = None
        for batch in batches:
            sums = self.compiled.eval_step(self.state.measured, self.placed.base.frozen, batch, sorted(numbers))
            if waiting is not None:
                yield jax.device_get(waiting)
            waiting = sums
        if waiting is not None:
            yield jax.device_get(waiting)


def trial(tree: Any, number: int) -> Any:
    """One trial of a stacked tree on the host."""
    return jax.tree.map(lambda x: np.asarray(x[number]), tree)


def stacked_numbers(numbers: Sequence[Hparams], size: int) -> Hparams:
    """Numbers of every trial; those that only fill up the mesh repeat the first."""
    filled = [*numbers, *[numbers[0]] * (size - len(numbers))]
    return jax.tree.map(lambda *values: jnp.stack(values), *filled)


def stacked_batch(own: Mapping[int, Batch], size: int) -> Batch:
    """Host batches by trial as one [trial, micro_batches, rows, seq]; trials without one get padding."""
    padding = jax.tree.map(np.zeros_like, next(iter(own.values())))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *[own.get(k, padding) for k in range(size)])
