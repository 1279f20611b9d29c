"""Held-out token loss by task, and the one number of it that early stopping and the best checkpoint watch."""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

import jax
import numpy as np

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.step.losses import LossSums

Data = TypeVar("Data")


class Aggregate(enum.Enum):
    """How per-task validation losses become the one number that early stopping and the best checkpoint watch."""

    TOKEN_MEAN = "token_mean"  # every validation token counts the same
    MACRO_MEAN = "macro_mean"  # every task counts the same
    WORST_TASK = "worst_task"  # the largest per-task loss
    TASK = "task"  # one task, named beside it


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out numbers during and around training."""

    every: Annotated[int, Range(0, 1e9)] = 50
    """Steps between validations (the last step always validates). 0: only before and after."""
    rows: Annotated[int, Range(1, 2**20)] = 32
    """Most rows per evaluation batch, rounded up to what the devices divide; no result depends on it."""
    max_examples: Annotated[int, Range(1, 1e9)] | None = 200
    """Validation examples per task, the first of a seeded permutation; None: all."""
    generate: bool = True
    """Score test examples by greedy generation before and after tuning."""
    generate_examples: Annotated[int, Range(1, 1e9)] = 60
    """Test examples per task for generation."""
    generate_rows: Annotated[int, Range(1, 2**20)] = 64
    """Prompts per generation batch."""
    max_new_tokens: Annotated[int, Range(1, 2**20)] = 64
    """Longest generated answer, tokens."""

    def __post_init__(self):
        check_fields(self, "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossResult:
    """Validation loss in nats per token. Mappings are by task name and hold only tasks that have trained tokens."""

    loss: float
    """Mean over all tokens."""
    macro_loss: float
    """Mean of the tasks' means."""
    task_loss: Mapping[str, float]
    task_tokens: Mapping[str, int]
    task_accuracy: Mapping[str, float]
    """Share of tokens whose target has the highest logit."""

    def watched(self, aggregate: Aggregate, task: str | None = None) -> float:
        """The one number that early stopping compares."""
        match aggregate:
            case Aggregate.TOKEN_MEAN:
                return self.loss
            case Aggregate.MACRO_MEAN:
                return self.macro_loss
            case Aggregate.WORST_TASK:
                return float(np.max(list(self.task_loss.values())))  # NaN where one is: `max` would pass over it
            case Aggregate.TASK:
                assert task is not None
                return self.task_loss[task]


def per_task_loss(eval_step: Callable[[Data], LossSums], batches: Iterable[Data], tasks: Sequence[str]) -> LossResult:
    """Sums over all batches, divided once: the result depends on neither batch size, padding nor devices."""
    totals = {name: np.zeros(len(tasks)) for name in ("nll", "weight", "tokens", "correct")}
    pending: list[LossSums] = []
    for batch in batches:
        pending.append(eval_step(batch))  # dispatched; fetched one batch later, so that host and device overlap
        if len(pending) > 1:
            _add(totals, pending.pop(0))
    for sums in pending:
        _add(totals, sums)
    if not totals["weight"].sum():
        raise UserError("no validation token carries loss weight; check the validation files and the mask policy")
    held = [i for i in range(len(tasks)) if totals["weight"][i] > 0]
    task_loss = {tasks[i]: float(totals["nll"][i] / totals["weight"][i]) for i in held}
    return LossResult(
        loss=float(totals["nll"].sum() / totals["weight"].sum()),
        macro_loss=math.fsum(task_loss.values()) / len(task_loss),
        task_loss=task_loss,
        task_tokens={tasks[i]: int(totals["tokens"][i]) for i in held},
        task_accuracy={tasks[i]: float(totals["correct"][i] / totals["tokens"][i]) for i in held},
    )


def _add(totals: dict[str, np.ndarray], sums: LossSums) -> None:
    fetched = jax.device_get(sums)
    assert not fetched.over_capacity, "the loss capacity must cover every weighted position"
    for name, total in totals.items():
        total += np.asarray(getattr(fetched, name), np.float64)[: len(total)]  # float64: batches of any size agree
