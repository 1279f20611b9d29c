"""A config with its data, validated as a run would read it: whatever `train` refuses before its first step."""

import functools
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from jaxtune.config import ExperimentConfig
from jaxtune.data.encoding import Encoding
from jaxtune.errors import UserError
from jaxtune.tasks import Problem, ProblemLog, RecordError, Shape, Task
from jaxtune.tasks.splits import TEST, VALIDATION
from jaxtune.train.resolution import prepare, resolve
from jaxtune.validate.report import KEPT, Report
from jaxtune.validate.tokens import token_problems
from jaxtune.validate.validation import validate_tasks

Result = TypeVar("Result")


def validate_config(config: ExperimentConfig) -> Report:
    """Every problem of a config and its data: of records, of their tokens, of test questions, of the plan.

    Records are read as `train` reads them, by the same code; and where nothing else is wrong, the run is planned, so
    that the report has an error exactly where `train` would stop before its first step. No device is touched.
    """
    start = time.monotonic()
    refused: list[Problem] = []
    prepared = _attempt(lambda: prepare(config), config, refused)
    if prepared is None:
        report = validate_tasks(config.tasks)
    else:
        report = validate_tasks(prepared.everyone, controls=tuple(prepared.tokenizer.controls.ids))
        unsaid = _unsaid(report)
        for split, tasks in prepared.tokenised.items():
            for task in tasks:
                add = functools.partial(_add_tokens, report, unsaid, task, split, prepared.encoding_of(split))
                _attempt(add, config, refused)
        log = ProblemLog(KEPT)
        _attempt(lambda: prepared.questions(log), config, refused)
        report.add(*filter(unsaid, [*log.kept, *refused]))
        refused.clear()
    report.add(*refused, *_unwatched(config.tasks), *(_unasked(config.tasks) if config.eval.generate else ()))
    if not report.num_errors:
        _attempt(lambda: resolve(config, show_progress=False), config, refused)
        report.add(*refused)
    report.seconds = time.monotonic() - start
    return report


def _attempt(step: Callable[[], Result], config: ExperimentConfig, refused: list[Problem]) -> Result | None:
    """The result of a step; None where the step refuses, which is noted."""
    try:
        return step()
    except RecordError as error:
        refused += error.problems
    except UserError as error:
        refused.append(Problem(rule="config-refused", message=str(error), file=f"config {config.name}"))
    return None


def _add_tokens(report: Report, unsaid: Callable[[Problem], bool], task: Task, split: str, encoding: Encoding) -> None:
    """Adds what tokenising a split says, and reading its records did not say already."""
    for problem in token_problems(task, split, encoding):
        if unsaid(problem):
            report.add(problem)


def _unsaid(report: Report) -> Callable[[Problem], bool]:
    """Whether a problem stands at a place that the report, as it is now, does not have under the same rule."""
    said = {(problem.rule, problem.file, problem.line) for problem in report.problems}
    full = {rule for rule, count in report.counts.items() if count > KEPT}
    return lambda problem: problem.rule not in full and (problem.rule, problem.file, problem.line) not in said


def _unwatched(tasks: Iterable[Task]) -> list[Problem]:
    """That nothing of a task is measured while it trains, for each task without validation."""
    return [
        Problem(rule="no-validation", message=f"its splits: {', '.join(task.splits)}", file=f"task {task.name}")
        for task in tasks
        if VALIDATION not in task.splits
    ]


def _unasked(tasks: Iterable[Task]) -> list[Problem]:
    """That a task's test records are not asked, for each task where they are token ids."""
    return [
        Problem(rule="not-asked", message="its test records are token ids, without a text", file=f"task {task.name}")
        for task in tasks
        if TEST in task.splits and _shape_of_test(task) is Shape.TOKENS
    ]


def _shape_of_test(task: Task) -> Shape | None:
    try:
        return task.shape_in(TEST)
    except UserError:  # told where the records are read
        return None
