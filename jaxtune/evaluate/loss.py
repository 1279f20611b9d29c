"""Held-out numbers by task: token loss, and scores of generated answers."""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Conversation, Tokenizer
from jaxtune.errors import UserError
from jaxtune.step.losses import LossSums
from jaxtune.tasks import Task, metrics

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

    every: int = 50
    """Steps between validations (the last step always validates). 0: only before and after."""
    rows: int = 32
    """Most rows per evaluation batch, rounded up to what the devices divide; no result depends on it."""
    max_examples: int | None = 200
    """Validation examples per task, the first of a seeded permutation; None: all."""
    generate: bool = True
    """Score test examples by greedy generation before and after tuning."""
    generate_examples: int = 60
    """Test examples per task for generation."""
    generate_rows: int = 64
    """Prompts per generation batch."""
    max_new_tokens: int = 64
    """Longest generated answer, tokens."""

    def __post_init__(self):
        lowest = {"every": 0, "rows": 1, "generate_examples": 1, "generate_rows": 1, "max_new_tokens": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UserError(f"eval.{name} must be at least {low}, got {getattr(self, name)}")
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"eval.max_examples must be at least 1, got {self.max_examples}")


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
                return max(self.task_loss.values())
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A held-out conversation up to its last answer, and that answer."""

    task: str
    id: str
    text: str
    """The last user message, for people."""
    prompt: list[int]
    """Token ids up to where the answer starts."""
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """Scores of generated answers."""

    task_score: Mapping[str, Mapping[str, float]]
    """Task -> {metric: mean over questions, "n": questions}."""
    macro_exact_match: float
    """Mean over tasks of the share of exactly matching answers."""
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    """Task -> {id, prompt, prediction, reference, correct} of every question."""


def question(
    task: str, conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer, name: str
) -> Question:
    """Cut a conversation before its last assistant turn."""
    cut = max((i for i, message in enumerate(conversation.messages) if message.role == "assistant"), default=None)
    if cut is None or cut == 0:
        raise UserError(
            f"task {task!r}, example {name}: no assistant turn after a user turn, so there is nothing to generate"
        )
    before = dataclasses.replace(conversation, messages=conversation.messages[:cut])
    return Question(
        task=task,
        id=name,
        text=before.messages[-1].content or "",
        prompt=chat.render_prompt(before, template, tokenizer),
        reference=conversation.messages[cut].content or "",
    )


def questions(
    tasks: Iterable[Task], split: str, template: ChatTemplate, tokenizer: Tokenizer, *, limit: int
) -> list[Question]:
    """The first `limit` examples of each task's split, with the task's first instruction template."""
    found = []
    for task in tasks:
        if split not in task.splits:
            continue
        source = task.source(split)
        for i in range(min(limit, len(source))):
            conversation = task.read(split, i)
            if isinstance(conversation, Conversation):  # records of token ids have no text to compare with
                found.append(question(task.name, conversation, template, tokenizer, conversation.id or source.where(i)))
    return found


def generation_scores(
    answer: Callable[[list[list[int]]], list[list[int]]],
    asked: Sequence[Question],
    tokenizer: Tokenizer,
    metric_of: Mapping[str, str],
    *,
    stop_ids: frozenset[int] | set[int],
) -> ScoreResult:
    """Generate all answers and score each with exact match and with its task's own metric."""
    generated = answer([q.prompt for q in asked])
    rows: dict[str, list[dict[str, Any]]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for q, ids in zip(asked, generated, strict=True):
        prediction = tokenizer.decode([i for i in ids if i not in stop_ids])
        scores = {"exact_match": metrics.exact_match(prediction, q.reference)}
        name = metric_of[q.task]
        scores[name] = metrics.METRICS[name](prediction, q.reference)
        for metric, value in scores.items():
            values.setdefault(q.task, {}).setdefault(metric, []).append(float(value))
        rows.setdefault(q.task, []).append(
            {"id": q.id, "prompt": q.text, "prediction": prediction, "reference": q.reference,
             "correct": bool(scores["exact_match"] == 1), "tokens": len(ids)}
        )  # fmt: skip
    task_score = {
        task: {metric: math.fsum(v) / len(v) for metric, v in by_metric.items()} | {"n": len(rows[task])}
        for task, by_metric in values.items()
    }
    exact = [scores["exact_match"] for scores in task_score.values()]
    return ScoreResult(
        task_score=task_score, macro_exact_match=math.fsum(exact) / len(exact) if exact else math.nan, answers=rows
    )
