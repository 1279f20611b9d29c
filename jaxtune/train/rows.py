"""Rows of metrics.jsonl and the contents of summary.json. Pure functions."""

import dataclasses
import math
import pathlib
import resource
from collections.abc import Collection, Mapping
from typing import Any

import jax

from jaxtune.evaluate.answers import ScoreResult
from jaxtune.evaluate.loss import LossResult
from jaxtune.step.update import StepMetrics
from jaxtune.storage.documents import number
from jaxtune.train.decisions import Counters, Status
from jaxtune.train.session import Session, flops_per_token

Row = dict[str, Any]


def train_row(
    step: int, values: StepMetrics, counters: Counters, session: Session, *, seconds: float, waited: float
) -> Row:
    """The row of the update that makes `step` updates done; `seconds`: its time, of which data took `waited`."""
    sums, names, config = values.sums, session.inputs.task_names, session.config
    real, trained = int(values.real_tokens), int(sums.tokens.sum())
    row = {
        "kind": "train",
        "step": step,
        "loss": float(values.loss),
        "learning_rate": float(values.learning_rate),
        "grad_norm": float(values.grad_norm),
        "tokens": counters.tokens,
        "loss_tokens": counters.loss_tokens,
        "tokens_per_s": real / seconds,
        "loss_tokens_per_s": trained / seconds,
        "padding": 1 - real / (config.batch.rows * config.data.seq_len),
        "data_wait": min(1.0, waited / seconds),
        "memory_mb": peak_memory_mb(),
        "task_loss": {n: float(a / w) for n, a, w in zip(names, sums.nll, sums.weight, strict=True) if w > 0},
        "task_tokens": {n: int(t) for n, t in zip(names, sums.tokens, strict=True) if t > 0},
        "skipped": not bool(values.applied),
    }
    if config.health.peak_flops:
        row["mfu"] = flops_per_token(session) * real / seconds / config.health.peak_flops
    return row


def eval_row(step: int, result: LossResult, seen: LossResult | None = None) -> Row:
    """The row of a validation; `seen`: losses of training examples by the same parameters."""
    return {"kind": "eval", "step": step, "split": "validation", **losses_of(result), **seen_of(seen),
            "task_tokens": result.task_tokens, "task_accuracy": result.task_accuracy}  # fmt: skip


def logged_losses(row: Mapping[str, Any], held_out: Collection[str]) -> LossResult:
    """The validation losses that `eval_row` wrote."""
    return LossResult(
        loss=number(row["loss"]), macro_loss=number(row["macro_loss"]),
        task_loss={task: number(loss) for task, loss in row["task_loss"].items()},
        task_tokens=row["task_tokens"], task_accuracy=row["task_accuracy"], held_out=frozenset(held_out),
    )  # fmt: skip


def score_row(step: int, result: ScoreResult) -> Row:
    """The row of scored answers to the test questions."""
    return {"kind": "score", "step": step, "split": "test", **scores_of(result)}


def answers_row(step: int, result: ScoreResult) -> Row:
    """The row of the answers to the fixed questions at a validation."""
    return {"kind": "answers", "step": step, "answers": result.answers}


def losses_of(result: LossResult | None) -> Row:
    """Validation losses as JSON; nothing where none were measured."""
    if result is None:
        return {}
    prompts = {"task_prompt_loss": result.prompt_loss} if result.prompt_loss else {}
    return {"loss": result.loss, "macro_loss": result.macro_loss, "task_loss": result.task_loss, **prompts}


def seen_of(result: LossResult | None) -> Row:
    """Losses of training examples as JSON; nothing where none were measured."""
    return {} if result is None else {"seen_task_loss": result.task_loss}


def scores_of(result: ScoreResult | None) -> Row:
    """Scores of generated answers as JSON; nothing where none were measured."""
    if result is None:
        return {}
    harness = {} if result.harness is None else {"lm_eval": result.harness.scores}
    return {
        "task_score": result.task_score, "task_interval": result.task_interval,
        "macro_exact_match": result.macro_exact_match, **harness,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """The state that a run exported: its step, its losses of unseen and seen examples, its scores."""

    step: int
    loss: LossResult | None
    seen: LossResult | None
    score: ScoreResult | None
    retention: Row | None = None
    """What the retention texts became; None without any."""

    def to_json(self) -> Row:
        """The numbers `after` tuning."""
        return {**losses_of(self.loss), **seen_of(self.seen), **scores_of(self.score),
                **({} if self.retention is None else {"retention": self.retention})}  # fmt: skip


def summary(
    session: Session, counters: Counters, status: Status, step: int, exported: Exported | None, *,
    before: Mapping[str, Any], seconds: float, trained_with: list[str],
) -> Row:  # fmt: skip
    """Contents of summary.json for a run that ended as `status` after `step` updates."""
    return {
        "status": status.value,
        "steps": step,
        "total_steps": session.inputs.total_steps,
        "before": dict(before),
        "after": {} if exported is None else exported.to_json(),
        "best": {
            "step": counters.best_step,
            "metric": session.config.early_stopping.aggregate.value,
            "value": counters.best_value if math.isfinite(counters.best_value) else None,
        },
        "exported_step": None if exported is None else exported.step,
        "ledger": {"examples": counters.task_examples, "loss_tokens": counters.task_tokens},
        "tokens": counters.tokens,
        "loss_tokens": counters.loss_tokens,
        "compute": {
            "dtype": session.program.spec.compute_dtype,
            "compiler_options": dict(session.program.compiler_options or {}),
        },
        "attention": {"backend": session.attention.backend.value, "rejected": session.attention.rejected},
        "skipped_steps": counters.skipped,
        "empty_steps": counters.empty,
        "seconds": seconds,
        "trained_with": trained_with,
        "peak_memory_mb": peak_memory_mb(),
    }


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
