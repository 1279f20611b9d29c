"""A run's own part of training: what it decides, counts, logs, saves and exports, step by step."""

import contextlib
import dataclasses
import enum
import math
import pathlib
import resource
import statistics
import time
from typing import Any

import jax

from jaxtune.errors import UserError
from jaxtune.evaluate.loss import LossResult, ScoreResult
from jaxtune.parallel.job import StopSignal, from_main, is_main
from jaxtune.reports import run as report
from jaxtune.runs import folder as runfolder
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.tracker import Tracker
from jaxtune.step.update import StepMetrics, TrainState
from jaxtune.storage.documents import read_json, read_object, write_json
from jaxtune.terminal.progress import RunProgress, TrainProgress
from jaxtune.train.profile import StepTrace
from jaxtune.train.session import Placed


class Status(enum.Enum):
    """How a run ended."""

    FINISHED = "finished"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"
    FAILED = "failed"


def is_finished(run_dir: pathlib.Path) -> bool:
    """Whether a run went to its end."""
    summary = run_dir / "summary.json"
    return summary.is_file() and read_json(summary)["status"] in (Status.FINISHED.value, Status.EARLY_STOPPED.value)


class NotFinite(UserError):
    """A run met more non-finite losses or gradients than its budget allows."""


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


def peak_memory_mb() -> float:
    """Peak MB on the first device; where the backend does not count them (CPU), peak resident size of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    status = pathlib.Path("/proc/self/status")  # Linux; getrusage there starts from the parent's peak
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Loop:
    """The loop's state with a lifetime: open trackers and checkpoints, counters, the display."""

    def __init__(
        self, placed: Placed, checkpoints: Checkpoints, tracker: Tracker, memory: Progressing, run_dir: pathlib.Path,
        memo: dict[Any, Any],
    ):  # fmt: skip
        self.placed, self.inputs, self.config = placed, placed.inputs, placed.config
        self.checkpoints, self.tracker, self.memory = checkpoints, tracker, memory
        self.run_dir, self.memo = run_dir, memo
        self.validated: tuple[int, LossResult | None] | None = None
        """Step of the last validation in this process, and its result."""
        self.after: LossResult | None = None
        self.seen: LossResult | None = None
        self.after_score: ScoreResult | None = None
        self.exported_step: int | None = None
        self.display: TrainProgress | RunProgress
        self.trained_with: list[str] = []
        """Names of runs that are computed in the same program; times and rates are then shared with them."""

    def steps(self, state: TrainState, start: int, stop: StopSignal) -> tuple[Status, TrainState, int]:
        """Train from `start` to the end, an early stop or a signal; returns status, state and exit code."""
        total = self.inputs.total_steps
        if self.memory.unvalidated:
            self.catch_up(state, start)
        if self.out_of_patience():
            return Status.EARLY_STOPPED, state, 0
        batches = self.placed.train_batches(start)
        pending: tuple[int, StepMetrics] | None = None
        trace = StepTrace(self.config.health.profile_steps, self.run_dir / "profile")
        with contextlib.closing(batches), TrainProgress(total) as self.display, trace:
            self.clock, self.waited = time.monotonic(), 0.0
            for step in range(start, total):
                trace.before(step + 1)
                asked = time.monotonic()
                batch = self.placed.put(next(batches))
                self.waited += time.monotonic() - asked
                state, metrics = self.placed.program.train_step(
                    state, self.placed.base.frozen, batch, self.placed.numbers
                )
                trace.after(step + 1, metrics)
                if pending is not None:
                    self.log(*pending)  # the previous step's numbers, while the device works
                pending = step, metrics
                done = step + 1
                stopping = stop.after(done)
                due, save = self.due(done), stopping or self.saves(done)
                if not (due or save):
                    continue
                self.log(*pending)
                pending = None
                watched = self.validate(state, done) if due and not stopping else None
                if self.improves(watched, done, unvalidated=due and stopping) or save:
                    self.save(state, done, watched)
                if (ended := self.ended(done, stopping)) is not None:
                    return ended, state, stop.exit_code if stopping else 0
        return Status.FINISHED, state, 0

    def due(self, done: int) -> bool:
        """Whether to validate after `done` updates."""
        every = self.config.eval.every
        return done == self.inputs.total_steps or bool(every and done % every == 0)

    def saves(self, done: int) -> bool:
        """Whether to save after `done` updates, whatever validation says."""
        return done == self.inputs.total_steps or done % self.config.checkpoint.save_every == 0

    def improves(self, watched: float | None, done: int, *, unvalidated: bool) -> bool:
        """Take note of a validation, or that one is still to be done; True if it is the best so far."""
        self.memory.unvalidated = unvalidated
        return watched is not None and self.memory.improves(watched, done, self.config.early_stopping.min_change)

    def ended(self, done: int, stopping: bool) -> Status | None:
        """How the run ends after `done` updates, said on the terminal; None: it goes on, or has done them all."""
        total = self.inputs.total_steps
        if stopping:
            self.display.write(f"stopped after step {done} of {total}; the same command with --resume continues")
            return Status.STOPPED
        if self.out_of_patience():
            self.display.write(f"stopped early after step {done}: best validation was at step {self.memory.best_step}")
            return Status.EARLY_STOPPED
        return None

    def out_of_patience(self) -> bool:
        """Whether early stopping ends the run now."""
        patience = self.config.early_stopping.patience
        return patience is not None and self.memory.since_best >= patience

    def catch_up(self, state: TrainState, step: int) -> None:
        """Do the validation that a stop signal left undone: the metrics become those of a run that never stopped."""
        self.caught_up(self.validate(state, step), step)

    def caught_up(self, watched: float | None, step: int) -> None:
        """Take note of a validation that was left undone."""
        self.improves(watched, step, unvalidated=False)
        if watched is not None:
            self.checkpoints.set_metrics(step, {self.config.checkpoint.metric: watched})

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Fetch one step's numbers, check them, count them, write them."""
        values = jax.device_get(metrics)
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        waited, self.waited = self.waited, 0.0
        sums, names = values.sums, self.inputs.task_names
        assert not sums.over_capacity, (
            f"step {step}: {sums.over_capacity} weighted positions beyond the planned capacity"
        )
        self.check_health(step, values)
        real, trained = int(values.real_tokens), int(sums.tokens.sum())
        self.memory.tokens += real
        self.memory.loss_tokens += trained
        slots = self.config.batch.rows * self.config.data.seq_len
        for name, count in self.inputs.examples_in(step).items():
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
            examples = self.inputs.describe_step(step)
            self.tracker.log({"kind": "nonfinite", "step": step + 1, "examples": examples})
            if self.memory.skipped > self.config.health.skip_budget:
                raise NotFinite(
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
                {"kind": "spike", "step": step + 1, "loss": loss, "examples": self.inputs.describe_step(step)}
            )
        self.memory.recent = [*recent[-49:], loss]

    def validate(self, state: TrainState, step: int) -> float | None:
        """Per-task validation loss into the metrics; returns the watched number, or None without validation data."""
        return self.record(self.placed.validation_loss(state.measured), step)

    def record(self, result: LossResult | None, step: int) -> float | None:
        """A validation into the metrics; returns the watched number."""
        self.validated = step, result
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
        if not self.inputs.questions:
            return None
        key = (
            "before",
            str(self.inputs.folder),
            self.inputs.questions[0].id,
            len(self.inputs.questions),
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
            write_json(path, (read_object(path) if path.exists() else {}) | {when: result.answers})
        return result

    def save(self, state: TrainState, step: int, watched: float | None) -> None:
        """Checkpoint after `step` updates."""
        extra = {
            "progress": dataclasses.asdict(self.memory),
            "plan_hash": self.inputs.plan.hash,
            "seed": self.config.seed,
        }
        for name in ("best_value", "reference"):
            if math.isinf(extra["progress"][name]):
                extra["progress"][name] = None  # JSON has no infinity
        metrics = {} if watched is None else {self.config.checkpoint.metric: watched}
        self.checkpoints.save(step, state, extra, metrics)

    def finish(self, state: TrainState) -> None:
        """Score and export the parameters of the best checkpoint (of the last step where nothing was validated)."""
        state = self.best_state(state)
        if self.validated is not None and self.validated[0] == int(state.step):
            self.export(state, self.validated[1])
        else:
            self.export(state, self.placed.validation_loss(state.measured))

    def best_state(self, state: TrainState) -> TrainState:
        """The state of the best checkpoint; `state` where nothing was validated."""
        best = self.checkpoints.best()
        return state if best is None or best == int(state.step) else self.checkpoints.restore(best, abstract(state))

    def export(self, state: TrainState, after: LossResult | None) -> None:
        """Score and export a state whose validation loss is `after`."""
        self.exported_step, self.after = int(state.step), after
        self.seen = self.placed.seen_loss(state.measured, self.exported_step)
        self.after_score = self.score(state, self.exported_step, "after")
        self.placed.export(state.measured, self.run_dir / "model", overwrite=True)  # of a run that ended while ending

    def conclude(self, status: Status, step: int, seconds: float) -> dict[str, Any]:
        """Write summary and report; returns the summary."""
        summary = self.summary(status, step, seconds)
        if is_main():
            write_json(self.run_dir / "summary.json", summary)
            report.write_report(self.run_dir)
        return summary

    def summary(self, status: Status, step: int, seconds: float) -> dict[str, Any]:
        """Contents of summary.json."""
        after, score = self.after, self.after_score
        return {
            "status": status.value,
            "steps": step,
            "total_steps": self.inputs.total_steps,
            "before": runfolder.first_numbers(self.run_dir) if is_main() else {},
            "after": {
                **(
                    {}
                    if after is None
                    else {"loss": after.loss, "macro_loss": after.macro_loss, "task_loss": after.task_loss}
                ),
                **({} if self.seen is None else {"seen_task_loss": self.seen.task_loss}),
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
            "trained_with": self.trained_with,
            "peak_memory_mb": peak_memory_mb(),
        }
