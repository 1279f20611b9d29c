"""The training loop: the one place with side effects. It reads top to bottom."""

import contextlib
import dataclasses
import enum
import json
import math
import pathlib
import resource
import shutil
import signal
import statistics
import time
from collections import deque
from collections.abc import Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np

from jaxtune import config as configs
from jaxtune import evaluate, experiment, hf, manifest, report, sharding
from jaxtune.checkpoint import Checkpoints, abstract
from jaxtune.config import ExperimentConfig
from jaxtune.distributed import Guard, StopSignal
from jaxtune.errors import UserError
from jaxtune.evaluate import LossResult, ScoreResult
from jaxtune.experiment import Experiment
from jaxtune.generate import SamplingConfig, generate
from jaxtune.programs import Programs
from jaxtune.progress import TrainProgress
from jaxtune.step import Params, StepMetrics, TrainState, hparams
from jaxtune.mirrors import make_mirror
from jaxtune.tracking import JsonlTracker, Trackers, write_json

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
    best_step: int = -1
    since_best: int = 0
    """Validations since the best one."""

    def improves(self, value: float, step: int, min_change: float) -> bool:
        """Take note of a watched value; True if it is the best so far."""
        if value < self.best_value - min_change:
            self.best_value, self.best_step, self.since_best = value, step, 0
            return True
        self.since_best += 1
        return False


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
    check_run_dir(run_dir, resume=resume, overwrite=overwrite)
    enable_compilation_cache(config.compilation_cache)

    # 2. Data, tokenizer, mixture, plan: everything that can be wrong with the input shows here.
    job = experiment.resolve(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.local_rows(mesh, job.micro_rows)

    # 3. Model and optimizer.
    base = experiment.load_base(job, mesh)
    program = (programs or Programs()).get(experiment.program_spec(job, mesh), base.trainable)
    state = program.init(base.trainable)
    numbers = hparams(config.optim.peak_lr, config.optim.weight_decay)

    # 4. The run folder, new or resumed.
    identity = experiment.identity(job)
    if resume:
        experiment.check_same(run_dir, identity)
    else:
        prepare_run_dir(run_dir, overwrite=overwrite)
        write_facts(run_dir, job, identity, command)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(Checkpoints(run_dir / "checkpoints", config.checkpoint))
        memory = Progressing()
        start = 0
        if resume:
            state, memory, start = restore(checkpoints, state, resume_step, job)
        tracker = Trackers([JsonlTracker(run_dir, resume_step=start if resume else None), *mirrors(config, run_dir)])
        stack.callback(tracker.close)
        run = Loop(config, job, mesh, program, base, numbers, checkpoints, tracker, memory, run_dir)

        # 5. Before tuning.
        if start == 0 and not resume:
            run.validate(state, 0)
            run.score(state, 0, "before")

        # 6. The loop.
        status, state, step, exit_code = run.steps(state, start, stack.enter_context(StopSignal()))

        # 7. Finish: the best parameters, scores, export, summary, report.
        if status in (Status.FINISHED, Status.EARLY_STOPPED):
            run.finish(state, step)
        summary = run.summary(status, step, time.monotonic() - started)
        write_json(run_dir / "summary.json", summary)
    report.write_report(run_dir)
    return Outcome(status=status, exit_code=exit_code, run_dir=run_dir, summary=summary)


class Loop:
    """The loop's state with a lifetime: open trackers and checkpoints, counters, the display."""

    def __init__(self, config, job: Experiment, mesh, program, base, numbers, checkpoints, tracker, memory, run_dir):
        self.config: ExperimentConfig = config
        self.job, self.mesh, self.program, self.base = job, mesh, program, base
        self.numbers, self.checkpoints, self.tracker = numbers, checkpoints, tracker
        self.memory: Progressing = memory
        self.run_dir: pathlib.Path = run_dir
        self.recent: deque[float] = deque(maxlen=50)
        self.last_eval: LossResult | None = None

    def steps(self, state: TrainState, start: int, stop: StopSignal) -> tuple[Status, TrainState, int, int]:
        """Train from `start` to the end, an early stop or a signal; returns status, state, steps done, exit code."""
        total, config = self.job.total_steps, self.config
        batches = self.job.train_batches(start, self.mesh)
        pending: tuple[int, StepMetrics] | None = None
        with contextlib.closing(batches), TrainProgress(total) as display:
            self.display, self.clock, self.waited = display, time.monotonic(), 0.0
            for step in range(start, total):
                asked = time.monotonic()
                batch = sharding.put_batch(self.mesh, next(batches), self.job.micro_rows)
                self.waited += time.monotonic() - asked
                state, metrics = self.program.train_step(state, self.base.frozen, batch, self.numbers)  # does not wait
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
                if save or improved:
                    self.save(state, done, watched)
                if stopping:
                    display.write(
                        f"stopped by {signal.Signals(stop.received or 0).name} after step {done}; continue with --resume"
                    )
                    return Status.STOPPED, state, done, stop.exit_code
                patience = config.early_stopping.patience
                if patience is not None and self.memory.since_best >= patience:
                    display.write(
                        f"stopped early after step {done}: best validation was at step {self.memory.best_step}"
                    )
                    return Status.EARLY_STOPPED, state, done, 0
        return Status.FINISHED, state, total, 0

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
            row["mfu"] = self.job.flops_per_step(real) / seconds / self.config.health.peak_flops
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
                    f"step {step + 1}: loss {float(values.loss)}, gradient norm {float(values.grad_norm)} (not finite); "
                    f"health.skip_budget={self.config.health.skip_budget} allows no more. Examples of the step: "
                    f"{', '.join(examples[:8])}{' ...' if len(examples) > 8 else ''}. Lower the learning rate, or look at them."
                )
            return
        if not values.applied:
            self.memory.empty += 1
            return
        loss = float(values.loss)
        if len(self.recent) >= 10 and loss > self.config.health.spike_factor * statistics.median(self.recent):
            self.tracker.log(
                {"kind": "spike", "step": step + 1, "loss": loss, "examples": self.job.describe_step(step)}
            )
        self.recent.append(loss)

    def validate(self, state: TrainState, step: int) -> float | None:
        """Per-task validation loss into the metrics; returns the watched number, or None without validation data."""
        if not self.job.eval_tasks:
            return None
        result = self.job.evaluate(self.program, state.params, self.base.frozen, self.mesh)
        self.last_eval = result
        self.tracker.log(
            {"kind": "eval", "step": step, "split": "validation", "loss": result.loss, "macro_loss": result.macro_loss,
             "task_loss": result.task_loss, "task_tokens": result.task_tokens, "task_accuracy": result.task_accuracy}
        )  # fmt: skip
        self.clock = time.monotonic()
        stopping = self.config.early_stopping
        return result.watched(stopping.aggregate, stopping.task)

    def score(self, state: TrainState, step: int, when: str) -> ScoreResult | None:
        """Generate answers to the test questions, score them, keep them."""
        if not self.config.eval.generate or not self.job.questions:
            return None
        result = self.job.score(self.full_params(state))
        self.tracker.log(
            {"kind": "score", "step": step, "split": "test", "task_score": result.task_score,
             "macro_exact_match": result.macro_exact_match}
        )  # fmt: skip
        path = self.run_dir / "generations.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, kept | {when: result.answers})
        return result

    def save(self, state: TrainState, step: int, watched: float | None) -> None:
        """Checkpoint after `step` updates."""
        extra = {"progress": dataclasses.asdict(self.memory), "plan_hash": self.job.plan.hash, "seed": self.config.seed}
        if math.isinf(self.memory.best_value):
            extra["progress"]["best_value"] = None  # JSON has no infinity
        metrics = {} if watched is None else {self.config.checkpoint.metric: watched}
        self.checkpoints.save(step, state, extra, metrics)

    def finish(self, state: TrainState, step: int) -> None:
        """Score and export the best checkpoint's parameters (the last ones where nothing was validated)."""
        best = self.checkpoints.best()
        if best is not None and best != step:
            params = self.checkpoints.restore_params(best, abstract(state.params))
            state = dataclasses.replace(state, params=params)
            step = best
        self.exported_step = step
        self.after = (
            self.job.evaluate(self.program, state.params, self.base.frozen, self.mesh) if self.job.eval_tasks else None
        )
        self.after_score = self.score(state, step, "after")
        if jax.process_index() == 0:
            self.job.export(self.full_params(state), self.run_dir / "model")

    def full_params(self, state: TrainState) -> Params:
        """Model parameters with adapters merged in."""
        return self.job.merged(state.params, self.base.frozen)

    def summary(self, status: Status, step: int, seconds: float) -> dict[str, Any]:
        """Contents of summary.json."""
        first = experiment.first_numbers(self.run_dir)
        after = getattr(self, "after", None)
        score = getattr(self, "after_score", None)
        return {
            "status": status.value,
            "steps": step,
            "total_steps": self.job.total_steps,
            "before": first,
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
            "exported_step": getattr(self, "exported_step", None),
            "ledger": {"examples": self.memory.task_examples, "loss_tokens": self.memory.task_tokens},
            "tokens": self.memory.tokens,
            "loss_tokens": self.memory.loss_tokens,
            "skipped_steps": self.memory.skipped,
            "empty_steps": self.memory.empty,
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
        }
