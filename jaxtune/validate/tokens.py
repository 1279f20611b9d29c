"""The records of a task as tokens: what tokenising would refuse, drop or cut, with its place."""

from collections.abc import Iterator

from jaxtune.data.encoding import Encoding, encode_records
from jaxtune.tasks import Problem, Task
from jaxtune.tasks.problems import RULES, Severity

CHUNK = 256
"""Records that are encoded together."""

FEW_LOSS_TOKENS = 0.01
"""Share of trained tokens below which a task is reported as `few-loss-tokens`."""


def token_problems(task: Task, split: str, encoding: Encoding) -> Iterator[Problem]:
    """Everything that tokenising a split of a task says of its records, and of the split as a whole.

    Raises `UserError` where the split cannot be read at all.
    """
    source = task.source(split)
    usable = tokens = trained = errors = 0
    reasons: dict[str, int] = {}
    for start in range(0, len(source), CHUNK):
        part, problems = encode_records(task, split, range(start, min(start + CHUNK, len(source))), encoding)
        usable += len(part.records)
        tokens += int(part.lengths.sum())
        trained += int(part.loss_lengths.sum())
        errors += sum(RULES[problem.rule].severity is Severity.ERROR for problem in problems)
        for reason, count in part.outcomes.items():
            reasons[reason] = reasons.get(reason, 0) + count
        yield from problems
    if tokens and trained < FEW_LOSS_TOKENS * tokens:
        text = f"task {task.name}, {split}: {trained:,} of {tokens:,} tokens are trained"
        yield Problem(rule="few-loss-tokens", message=text, file=source.name)
    if not usable and not errors:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "no records"
        text = f"task {task.name} has no usable example in {split}: {counted}"
        yield Problem(rule="no-usable-example", message=text, file=source.name)
