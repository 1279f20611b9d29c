"""The test questions of a run, each proven to be answerable before anything is loaded."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from jaxtune.chat import ChatTemplate, Conversation, Tokenizer
from jaxtune.errors import UserError
from jaxtune.evaluate.answers import Question, question, text_scores
from jaxtune.tasks import Problem, ProblemLog, RecordError, Task
from jaxtune.tasks.scoring import Expected, Scoring, expected
from jaxtune.tasks.splits import TEST


def ask(
    tasks: Iterable[Task], template: ChatTemplate, tokenizer: Tokenizer, *, limit: int, context: int, log: ProblemLog
) -> list[Question]:
    """The first `limit` records of each task's test split as questions, in the task's first wording.

    `context`: tokens that the model can see; a prompt must be shorter, so that an answer can begin. Records that cannot
    be asked, and references that the task's metric refuses, go into `log`. Records of token ids are passed over: they
    have no text to compare with.
    """
    return [
        found
        for task in tasks
        if TEST in task.splits
        for i in range(min(limit, len(task.source(TEST))))
        for found in _asked(task, i, template, tokenizer, context, log)
    ]


def _asked(
    task: Task, i: int, template: ChatTemplate, tokenizer: Tokenizer, context: int, log: ProblemLog
) -> Iterator[Question]:
    source = task.source(TEST)
    place: dict[str, Any] = {"file": source.file(i), "line": source.line(i)}
    try:
        conversation = task.read(TEST, i)
        if not isinstance(conversation, Conversation):
            return
        place["id"] = conversation.id
        found = question(task.name, conversation, template, tokenizer, conversation.id or source.where(i))
        if len(found.prompt) >= context:
            raise UserError(
                f"task {task.name!r}: the prompt has {len(found.prompt):,} tokens and the model's context {context:,}: "
                "no answer fits"
            )
        found = dataclasses.replace(found, expected=expected(source[i], task.scoring, task.name))
        check_likelihoods(found, task.scoring)
        for reference in found.references:
            text_scores(reference, dataclasses.replace(found, expected=Expected(), reference=reference), task.scoring)
    except RecordError as error:
        log.add(error.problems)
    except UserError as error:
        log.add([Problem(rule="question-unusable", message=str(error), **place)])
    else:
        yield found


def check_likelihoods(asked: Question, scoring: Scoring) -> None:
    """Raise UserError where a question's texts cannot be weighed: none is the reference, one is empty or twice."""
    wanted, choices = scoring.likelihoods, asked.expected.choices
    if "log_likelihood" in wanted and not asked.reference:
        raise UserError(f"task {asked.task!r}: the reference is empty, so it has no likelihood")
    if not choices:
        return
    if asked.reference not in choices:
        raise UserError(f"task {asked.task!r}: the answer {asked.reference!r} is none of the choices {list(choices)}")
    if "" in choices or len(set(choices)) < len(choices):
        raise UserError(f"task {asked.task!r}: choices must differ and hold text; got {list(choices)}")
