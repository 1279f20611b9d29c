"""Held-out token loss by task, and the one number of it that early stopping and the best checkpoint watch."""

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

import jax
import numpy as np

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.evaluate.code_runs import CodeConfig
from jaxtune.evaluate.harness import LmEvalConfig
from jaxtune.step.losses import LossSums

Data = TypeVar("Data")


class Aggregate(enum.Enum):
    """Rule that makes per-task validation losses the one number which early stopping and the best checkpoint watch."""

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
    answers: Annotated[int, Range(0, 1e6)] = 4
    """Test questions, spread over the tasks, that are answered at every validation too; the report shows the answers,
    and from 20 on the share of right ones over the steps. 0: none. They are the same at every validation."""
    print_answers: bool = False
    """Show those answers on the terminal."""
    retention: tuple[str, ...] = ()
    """JSONL files of texts that are not trained on, measured before and after tuning to see what it makes the model
    forget: records `{"text": ...}` or `{"prompt": ..., "completion": ...}`. `builtin` and `builtin-completions` are
    those of the built-in base model."""
    code: CodeConfig = CodeConfig()
    lm_eval: LmEvalConfig = LmEvalConfig()

    def __post_init__(self):
        check_fields(self, "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Stop when validation no longer improves. The best checkpoint is kept whether or not this is on."""

    patience: Annotated[int, Range(1, 1e9)] | None = None
    """Validations without improvement before the run stops; None: never stops early."""
    min_change: Annotated[float, Range(0, 1e6)] = 0.0
    """Decrease of the watched loss that counts as improvement, nats per token."""
    aggregate: Aggregate = Aggregate.MACRO_MEAN
    task: str | None = None
    """The task to watch when `aggregate` is `task`."""
    forget_weight: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of a nat lost on the retention texts beside one of the watched loss; 0: they are not watched."""

    def __post_init__(self):
        check_fields(self, "early_stopping")
        if (self.aggregate is Aggregate.TASK) != (self.task is not None):
            raise UserError(
                "early_stopping.task names the watched task when aggregate is `task`, and is empty otherwise"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossResult:
    """Validation loss in nats per token. Mappings are by task name and hold only tasks that have response tokens.

    Held-out tasks stand in the mappings alone: no mean, and so no decision of a run, depends on them.
    """

    loss: float
    """Mean over all tokens of trained tasks; NaN where none of them was measured."""
    macro_loss: float
    """Mean of the trained tasks' means; NaN where none of them was measured."""
    task_loss: Mapping[str, float]
    task_tokens: Mapping[str, int]
    task_accuracy: Mapping[str, float]
    """Share of tokens whose target has the highest logit."""
    prompt_loss: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Loss of the prompts by task, where the run trains on them."""
    held_out: frozenset[str] = frozenset()
    """Tasks of the mappings that the run does not train on."""

    def watched(self, aggregate: Aggregate, task: str | None = None) -> float:
        """The one number that early stopping compares; of trained tasks only."""
        trained = {name: loss for name, loss in self.task_loss.items() if name not in self.held_out}
        match aggregate:
            case Aggregate.TOKEN_MEAN:
                return self.loss
            case Aggregate.MACRO_MEAN:
                return self.macro_loss
            case Aggregate.WORST_TASK:
                return float(np.max(list(trained.values()) or [np.nan]))  # NaN where one is, which `max` passes over
            case Aggregate.TASK:
                assert task is not None
                return trained[task]


def per_task_loss(
    eval_step: Callable[[Data], LossSums], batches: Iterable[Data], tasks: Sequence[str],
    held_out: Collection[str] = (),
) -> LossResult:  # fmt: skip
    """Sums over all batches, divided once: the result depends on neither batch size, padding nor devices.

    `held_out`: those of `tasks` that stand beside the means.
    """
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
    trained = [i for i in held if tasks[i] not in held_out]
    means = [task_loss[tasks[i]] for i in trained]
    return LossResult(
        loss=float(totals["nll"][trained].sum() / totals["weight"][trained].sum()) if trained else math.nan,
        macro_loss=math.fsum(means) / len(means) if means else math.nan,
        task_loss=task_loss,
        task_tokens={tasks[i]: int(totals["tokens"][i]) for i in held},
        task_accuracy={tasks[i]: float(totals["correct"][i] / totals["tokens"][i]) for i in held},
        held_out=frozenset(held_out),
    )


def _add(totals: dict[str, np.ndarray], sums: LossSums) -> None:
    fetched = jax.device_get(sums)
    assert not fetched.over_capacity, "the loss capacity must cover every weighted position"
    for name, total in totals.items():
        total += np.asarray(getattr(fetched, name), np.float64)[: len(total)]  # float64: batches of any size agree
