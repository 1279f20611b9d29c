"""Test questions, and scores of the answers that a model generates to them."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Conversation, Tokenizer
from jaxtune.errors import UserError
from jaxtune.tasks import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A held-out conversation up to its last answer, and that answer."""

    task: str
    id: str
    text: str
    """The last user message, for people."""
    context: str
    """What was said before it, one message a line with its role; empty for a question alone."""
    prompt: list[int]
    """Token ids up to where the answer starts."""
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """Scores of generated answers."""

    task_score: Mapping[str, Mapping[str, float]]
    """Task -> {metric: mean over questions, "n": questions}."""
    macro_exact_match: float
    """Mean over trained tasks of the share of exactly matching answers."""
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    """Task -> {id, prompt, prediction, reference, correct} of every question; `context` where something came before."""


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
        context="\n".join(f"{said.role}: {said.content or ''}" for said in before.messages[:-1]),
        prompt=chat.render_prompt(before, template, tokenizer),
        reference=conversation.messages[cut].content or "",
    )


def spread(asked: Sequence[Question], count: int) -> list[Question]:
    """A number of the questions: in turn the first of each task, the second of each, and so on."""
    places: dict[str, int] = {}
    turns = []
    for q in asked:
        turns.append(places.get(q.task, 0))
        places[q.task] = turns[-1] + 1
    chosen = sorted(sorted(range(len(asked)), key=lambda i: turns[i])[:count])
    return [asked[i] for i in chosen]


def generation_scores(
    answer: Callable[[list[list[int]]], list[list[int]]],
    asked: Sequence[Question],
    tokenizer: Tokenizer,
    metric_of: Mapping[str, str],
    *,
    stop_ids: frozenset[int] | set[int],
    held_out: Collection[str] = (),
) -> ScoreResult:
    """Generate all answers and score each with exact match and with its task's own metric.

    `held_out`: tasks whose scores stand beside the mean.
    """
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
        before = {"context": q.context} if q.context else {}
        rows.setdefault(q.task, []).append(
            {"id": q.id, **before, "prompt": q.text, "prediction": prediction, "reference": q.reference,
             "correct": bool(scores["exact_match"] == 1), "tokens": len(ids)}
        )  # fmt: skip
    task_score = {
        task: {metric: math.fsum(v) / len(v) for metric, v in by_metric.items()} | {"n": len(rows[task])}
        for task, by_metric in values.items()
    }
    exact = [scores["exact_match"] for task, scores in task_score.items() if task not in held_out]
    return ScoreResult(
        task_score=task_score, macro_exact_match=math.fsum(exact) / len(exact) if exact else math.nan, answers=rows
    )
