"""The training loop: the one place with side effects. It reads top to bottom."""

import contextlib
import dataclasses
import enum
import json
import math
import pathlib
import resource
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune import experiment, report, runfolder
from jaxtune.checkpoint import Checkpoints, abstract
from jaxtune.config import ExperimentConfig
from jaxtune.distributed import Guard, StopSignal, barrier, from_main, is_main
from jaxtune.errors import UserError
from jaxtune.evaluate import LossResult, ScoreResult
from jaxtune.experiment import Experiment
from jaxtune.mirrors import make_mirror
from jaxtune.placed import Placed, place
from jaxtune.programs import Programs
from jaxtune.progress import TrainProgress
from jaxtune.step import StepMetrics, TrainState
from jaxtune.tracking import JsonlTracker, Tracker, Trackers, write_json


class Status(enum.Enum):
    """How a run ended."""

    FINISHED = "finished"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `train` leaves besides the run folder."""

    status: Status
    exit_code: int
    run_dir: pathlib.Path
    summary: dict[str, Any]


@dataclasses.dataclass
class Progressing:
    """What the loop remembers between steps, besides the train state; saved with every checkpoint."""

    tokens: int = 0
    loss_tokens: int = 0
    skipped: int = 0
    empty: int = 0
    task_examples: dict[str, int] = dataclasses.field(default_factory=dict)
    task_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    best_value: float = math.inf
    """Lowest watched validation loss so far."""
    best_step: int = -1
    reference: float = math.inf
    """The value that patience counts from: the last one that was lower by at least the minimum change."""
    since_best: int = 0
    """Validations since then."""
    unvalidated: bool = False
    """A stop signal came at a step whose validation is still to be done."""
    recent: list[float] = dataclasses.field(default_factory=list)
    """Losses of the last 50 steps, for the spike log."""

    def improves(self, value: float, step: int, min_change: float) -> bool:
        """Take note of a watched value; True if it is the best so far."""
        if value < self.reference - min_change:
            self.reference, self.since_best = value, 0
        else:
            self.since_best += 1
        if value >= self.best_value:
            return False
        self.best_value, self.best_step = value, step
        return True


def train(
    config: ExperimentConfig,
    run_dir: pathlib.Path | str,
    *,
    command: Mapping[str, Any] | None = None,
    resume: bool = False,
    resume_step: int | None = None,
    overwrite: bool = False,
    programs: Programs | None = None,
) -> Outcome:
    """Tune as `config` says and write the run folder. Raises UserError before any training for unusable input."""
    run_dir = pathlib.Path(run_dir)
    started = time.monotonic()

    # 1. Refuse what can be refused before any work.
    runfolder.check(run_dir, resume=resume, overwrite=overwrite)
    enable_compilation_cache(config.compilation_cache)

    # 2. Data, tokenizer, mixture, plan: everything that can be wrong with the input shows here.
    job = experiment.resolve(config)
    identity = experiment.identity(job)
    if resume:
        runfolder.check_same(run_dir, identity)

    # 3. Devices: mesh, base model, programs, state.
    programs = programs or Programs()
    placed = place(job, programs)
    state = placed.initial_state()

    # 4. The run folder, new or resumed. From here on things are written.
    barrier("jaxtune: input checked by all")
    if not resume and is_main():
        runfolder.prepare(run_dir, overwrite=overwrite)
        runfolder.write_facts(
            run_dir, config=configs.to_json(config), identity=identity, mixture=experiment.mixture_json(job),
            samples=experiment.samples(job), command=dict(command or {"config": None, "overrides": []}),
        )  # fmt: skip
    barrier("jaxtune: run folder")

    with contextlib.ExitStack() as stack:
        stack.enter_context(Guard())
        stack.enter_context(jax.set_mesh(placed.mesh))
        checkpoints = stack.enter_context(Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint))
        if not resume and checkpoints.latest() is not None:
            raise UserError(f"{checkpoints.directory} holds checkpoints of another run; set checkpoint.directory")
        memory = Progressing()
        if resume:
            state, memory = restore(checkpoints, state, resume_step, job)
        start = int(state.step)
        tracker = open_tracker(config, run_dir, start if resume else None)
        stack.callback(tracker.close)
        loop = Loop(placed, checkpoints, tracker, memory, run_dir, programs.memo)

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
        summary = loop.summary(status, int(state.step), time.monotonic() - started)
        if is_main():
            write_json(run_dir / "summary.json", summary)
            report.write_report(run_dir)
    return Outcome(status=status, exit_code=exit_code, run_dir=run_dir, summary=summary)


def restore(
    checkpoints: Checkpoints, state: TrainState, step: int | None, job: Experiment
) -> tuple[TrainState, Progressing]:
    """The state to continue from: the newest checkpoint, or the one asked for. Never falls back in silence."""
    latest = checkpoints.latest() if step is None else step
    if latest is None:
        raise UserError(f"no checkpoint to resume from in {checkpoints.directory}; start again with --overwrite")
    restored = checkpoints.restore(latest, abstract(state))
    extra = checkpoints.extra(latest)
    if extra["plan_hash"] != job.plan.hash:
        raise UserError(
            f"checkpoint {latest} was made with plan {extra['plan_hash'][:12]}, this config gives "
            f"{job.plan.hash[:12]}; resume with the config and data of the run, or start another run folder"
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


def peak_memory_mb() -> float:
    """Peak MB on the first device; where the backend does not count them (CPU), peak resident size of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Loop:
    """The loop's state with a lifetime: open trackers and checkpoints, counters, the display."""

    def __init__(
        self, placed: Placed, checkpoints: Checkpoints, tracker: Tracker, memory: Progressing, run_dir: pathlib.Path,
        memo: dict[Any, Any],
    ):  # fmt: skip
        self.placed, self.job, self.config = placed, placed.job, placed.config
        self.checkpoints, self.tracker, self.memory = checkpoints, tracker, memory
        self.run_dir, self.memo = run_dir, memo
        self.after: LossResult | None = None
        self.after_score: ScoreResult | None = None
        self.exported_step: int | None = None

    def steps(self, state: TrainState, start: int, stop: StopSignal) -> tuple[Status, TrainState, int]:
        """Train from `start` to the end, an early stop or a signal; returns status, state and exit code."""
        total, config = self.job.total_steps, self.config
        if self.memory.unvalidated:
            self.catch_up(state, start)
        if self.out_of_patience():
            return Status.EARLY_STOPPED, state, 0
        batches = self.placed.train_batches(start)
        pending: tuple[int, StepMetrics] | None = None
        with contextlib.closing(batches), TrainProgress(total) as display:
            self.display, self.clock, self.waited = display, time.monotonic(), 0.0
            for step in range(start, total):
                asked = time.monotonic()
                batch = self.placed.put(next(batches))
                self.waited += time.monotonic() - asked
                state, metrics = self.placed.program.train_step(
                    state, self.placed.base.frozen, batch, self.placed.numbers
                )
                if pending is not None:
                    self.log(*pending)  # the previous step's numbers, while the device works
                pending = step, metrics
                done = step + 1
                due = done == total or (config.eval.every and done % config.eval.every == 0)
                stopping = stop.after(done)
                save = done == total or done % config.checkpoint.save_every == 0 or stopping
                if not (due or save):
                    continue
                self.log(*pending)
                pending = None
                watched = self.validate(state, done) if due and not stopping else None
                improved = watched is not None and self.memory.improves(watched, done, config.early_stopping.min_change)
                self.memory.unvalidated = bool(due and stopping)
                if save or improved:
                    self.save(state, done, watched)
                if stopping:
                    display.write(f"stopped after step {done} of {total}; the same command with --resume continues")
                    return Status.STOPPED, state, stop.exit_code
                if self.out_of_patience():
                    display.write(
                        f"stopped early after step {done}: best validation was at step {self.memory.best_step}"
                    )
                    return Status.EARLY_STOPPED, state, 0
        return Status.FINISHED, state, 0

    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run now."""
        patience = self.config.early_stopping.patience
        return patience is not None and self.memory.since_best >= patience

    def catch_up(self, state: TrainState, step: int) -> None:
        """Do the validation that a stop signal left undone: the metrics become those of a run that never stopped."""
        self.memory.unvalidated = False
        watched = self.validate(state, step)
        if watched is not None:
            self.memory.improves(watched, step, self.config.early_stopping.min_change)
            self.checkpoints.set_metrics(step, {self.config.checkpoint.metric: watched})

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Fetch one step's numbers, check them, count them, write them."""
        values = jax.device_get(metrics)
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        waited, self.waited = self.waited, 0.0
        sums, names = values.sums, self.job.task_names
        assert not sums.over_capacity, (
            f"step {step}: {sums.over_capacity} weighted positions beyond the planned capacity"
        )
        self.check_health(step, values)
        real, trained = int(values.real_tokens), int(sums.tokens.sum())
        self.memory.tokens += real
        self.memory.loss_tokens += trained
        slots = self.config.batch.rows * self.config.data.seq_len
        for name, count in self.job.examples_in(step).items():
            self.memory.task_examples[name] = self.memory.task_examples.get(name, 0) + count
        for name, count in zip(names, sums.tokens.tolist(), strict=True):
            self.memory.task_tokens[name] = self.memory.task_tokens.get(name, 0) + count
        row = {
            "kind": "train",
            "step": step + 1,
            "loss": float(values.loss),
            "learning_rate": float(values.learning_rate),
            "grad_norm": float(values.grad_norm),
            "tokens": self.memory.tokens,
            "loss_tokens": self.memory.loss_tokens,
            "tokens_per_s": real / seconds,
            "loss_tokens_per_s": trained / seconds,
            "padding": 1 - real / slots,
            "data_wait": min(1.0, waited / seconds),
            "memory_mb": peak_memory_mb(),
            "task_loss": {n: float(a / w) for n, a, w in zip(names, sums.nll, sums.weight, strict=True) if w > 0},
            "task_tokens": {n: int(t) for n, t in zip(names, sums.tokens, strict=True) if t > 0},
            "skipped": not bool(values.applied),
        }
        if self.config.health.peak_flops:
            row["mfu"] = self.placed.flops_per_step(real) / seconds / self.config.health.peak_flops
        self.tracker.log(row)
        self.display.update(
            step + 1, loss=row["loss"], tokens_per_s=row["tokens_per_s"], loss_tokens_per_s=row["loss_tokens_per_s"],
            padding=row["padding"], data_wait=row["data_wait"],
        )  # fmt: skip

    def check_health(self, step: int, values: StepMetrics) -> None:
        """Stop on non-finite numbers beyond the budget; log spikes with the step's examples."""
        if not values.finite:
            self.memory.skipped += 1
            examples = self.job.describe_step(step)
            self.tracker.log({"kind": "nonfinite", "step": step + 1, "examples": examples})
            if self.memory.skipped > self.config.health.skip_budget:
                raise UserError(
                    f"step {step + 1}: not finite: loss {float(values.loss)}, gradient norm {float(values.grad_norm)}; "
                    f"health.skip_budget={self.config.health.skip_budget} allows no more. Lower the learning rate, or "
                    f"look at the examples of the step: {', '.join(examples[:8])}{' ...' if len(examples) > 8 else ''}"
                )
            return
        if not values.applied:
            self.memory.empty += 1
            return
        loss = float(values.loss)
        recent = self.memory.recent
        if len(recent) >= 10 and loss > self.config.health.spike_factor * statistics.median(recent):
            self.tracker.log(
                {"kind": "spike", "step": step + 1, "loss": loss, "examples": self.job.describe_step(step)}
            )
        self.memory.recent = [*recent[-49:], loss]

    def validate(self, state: TrainState, step: int) -> float | None:
        """Per-task validation loss into the metrics; returns the watched number, or None without validation data."""
        result = self.placed.validation_loss(state.measured)
        if result is None:
            return None
        self.tracker.log(
            {"kind": "eval", "step": step, "split": "validation", "loss": result.loss, "macro_loss": result.macro_loss,
             "task_loss": result.task_loss, "task_tokens": result.task_tokens, "task_accuracy": result.task_accuracy}
        )  # fmt: skip
        self.clock = time.monotonic()
        stopping = self.config.early_stopping
        return from_main(result.watched(stopping.aggregate, stopping.task))

    def score(self, state: TrainState, step: int, when: str) -> ScoreResult | None:
        """Answers to the test questions, scored; kept in generations.json.

        The base model's answers are the same in every arm of a sweep and generated once.
        """
        if not self.job.questions:
            return None
        key = (
            "before",
            str(self.job.folder),
            self.job.questions[0].id,
            len(self.job.questions),
            repr(self.config.eval),
        )
        result = self.memo.get(key) if when == "before" else None
        if result is None:
            result = self.placed.score(state.measured)
        if when == "before":
            self.memo[key] = result
        self.tracker.log(
            {"kind": "score", "step": step, "split": "test", "task_score": result.task_score,
             "macro_exact_match": result.macro_exact_match}
        )  # fmt: skip
        path = self.run_dir / "generations.json"
        if is_main():
            write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | {when: result.answers})
        return result

    def save(self, state: TrainState, step: int, watched: float | None) -> None:
        """Checkpoint after `step` updates."""
        extra = {"progress": dataclasses.asdict(self.memory), "plan_hash": self.job.plan.hash, "seed": self.config.seed}
        for name in ("best_value", "reference"):
            if math.isinf(extra["progress"][name]):
                extra["progress"][name] = None  # JSON has no infinity
        metrics = {} if watched is None else {self.config.checkpoint.metric: watched}
        self.checkpoints.save(step, state, extra, metrics)

    def finish(self, state: TrainState) -> None:
        """Score and export the parameters of the best checkpoint (of the last step where nothing was validated)."""
        step = int(state.step)
        best = self.checkpoints.best()
        if best is not None and best != step:
            state = self.checkpoints.restore(best, abstract(state))
            step = best
        self.exported_step = step
        self.after = self.placed.validation_loss(state.measured)
        self.after_score = self.score(state, step, "after")
        self.placed.export(state.measured, self.run_dir / "model")

    def summary(self, status: Status, step: int, seconds: float) -> dict[str, Any]:
        """Contents of summary.json."""
        after, score = self.after, self.after_score
        return {
            "status": status.value,
            "steps": step,
            "total_steps": self.job.total_steps,
            "before": runfolder.first_numbers(self.run_dir) if is_main() else {},
            "after": {
                **(
                    {}
                    if after is None
                    else {"loss": after.loss, "macro_loss": after.macro_loss, "task_loss": after.task_loss}
                ),
                **(
                    {}
                    if score is None
                    else {"task_score": score.task_score, "macro_exact_match": score.macro_exact_match}
                ),
            },
            "best": {
                "step": self.memory.best_step,
                "metric": self.config.early_stopping.aggregate.value,
                "value": None if math.isinf(self.memory.best_value) else self.memory.best_value,
            },
            "exported_step": self.exported_step,
            "ledger": {"examples": self.memory.task_examples, "loss_tokens": self.memory.task_tokens},
            "tokens": self.memory.tokens,
            "loss_tokens": self.memory.loss_tokens,
            "attention": {"backend": self.placed.attention.backend.value, "rejected": self.placed.attention.rejected},
            "skipped_steps": self.memory.skipped,
            "empty_steps": self.memory.empty,
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
        }


def evaluate_only(config: ExperimentConfig) -> dict[str, Any]:
    """Validation loss and test scores by task of a config's model, as it is."""
    enable_compilation_cache(config.compilation_cache)
    job = experiment.resolve(config)
    placed = place(job, Programs())
    with jax.set_mesh(placed.mesh):
        loss = placed.validation_loss(placed.base.trainable)
        score = placed.score(placed.base.trainable) if job.questions else None
    numbers: dict[str, Any] = {"model": str(job.folder)}
    if loss is not None:
        numbers |= {"loss": loss.loss, "macro_loss": loss.macro_loss, "task_loss": dict(loss.task_loss)}
        numbers |= {"task_accuracy": dict(loss.task_accuracy), "task_tokens": dict(loss.task_tokens)}
    if score is not None:
        numbers |= {"task_score": dict(score.task_score), "macro_exact_match": score.macro_exact_match}
    return numbers


def export_checkpoint(config: ExperimentConfig, run_dir: pathlib.Path, out: pathlib.Path, step: str, dtype: str | None):
    """Write a checkpoint of a run (`best`, `latest` or a step) as a Hugging Face folder."""
    job = experiment.resolve(config, questions=False)
    runfolder.check_same(run_dir, experiment.identity(job))
    placed = place(job, Programs())
    with Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint, read_only=True) as checkpoints:
        number = {"best": checkpoints.best, "latest": checkpoints.latest}.get(step, lambda: checkpoint_number(step))()
        if number is None:
            number = checkpoints.latest()  # nothing was validated, so no step is better than the last
        if number is None:
            raise UserError(f"{run_dir} holds no checkpoint")
        params = checkpoints.restore_params(number, abstract(placed.base.trainable))
    placed.export(params, out, dtype)


def checkpoint_number(text: str) -> int:
    """A step on the command line."""
    if not text.isdecimal():
        raise UserError(f"--step takes `best`, `latest` or a step number, got {text!r}")
    return int(text)
