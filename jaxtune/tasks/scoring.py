"""Scoring of a task's answers: which metrics, and the fields of its records that they need."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from jaxtune.errors import Range, UserError, check_fields, did_you_mean
from jaxtune.tasks import metrics
from jaxtune.tasks.shapes import look_up

LIKELIHOODS = ("log_likelihood", "choice_accuracy", "choice_accuracy_norm")
"""Metrics of what the model thinks of given texts: the mean log p of the tokens of the reference, nats; whether the
likeliest of the `choices` is the reference, by log p, or by log p per character (`acc` and `acc_norm` of lm-eval)."""
PASS_AT = re.compile(r"pass_at_([1-9]\d{0,3})")
"""Metrics of answers that are programs: the probability that one of k answers passes the record's `tests`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """Scoring of the answers to a task's test questions.

    Task(name="qa", metric=Scoring(metrics=("squad_em", "squad_f1"), references="answers.text", source="title"), ...)
    """

    metrics: tuple[str, ...] = ("exact_match",)
    """Keys of `metrics.METRICS`, names of `metrics.CORPUS` and `LIKELIHOODS`, or `pass_at_1`, `pass_at_10` ... Exact
    match is always measured too."""
    references: str | None = None
    """Field with all accepted answers, a list of texts, which may be nested (`answers.text`): the best one counts.
    None: the record's own answer alone."""
    choices: str | None = None
    """Field with the answers to choose from, a list of texts; the record's own answer is one of them."""
    tests: str | None = None
    """Field with code that is run after an answer's program: it raises where the program is wrong (`assert`)."""
    prefix: str | None = None
    """Field with code that is run before an answer's program, where answers only go on with it."""
    samples: Annotated[int, Range(1, 1000)] = 1
    """Answers for `pass_at_k`, k at least. 1: the greedy one."""
    temperature: Annotated[float, Range(0, 100, above=True)] = 0.8
    """Temperature of several samples."""
    source: str | None = None
    """Field whose value is the same in questions of one source (a passage, a title, a seed problem). Intervals then
    count sources, not questions."""

    def __post_init__(self):
        check_fields(self, "metric")
        if not self.metrics:
            raise UserError("metric.metrics is empty; name at least one metric")
        twice = sorted({name for name in self.metrics if self.metrics.count(name) > 1})
        if twice:
            raise UserError(f"metric.metrics names {', '.join(twice)} twice")
        if any(name.startswith("choice_") for name in self.metrics) and self.choices is None:
            raise UserError("metric.choices must name the field with the answers to choose from")
        if self.tries and self.tests is None:
            raise UserError("metric.tests must name the field with the code that tests an answer")
        if self.tries and max(self.tries) > self.samples:
            raise UserError(f"pass_at_{max(self.tries)} needs at least so many metric.samples; they are {self.samples}")

    @property
    def tries(self) -> tuple[int, ...]:
        """k of every `pass_at_k`."""
        return tuple(int(found[1]) for name in self.metrics if (found := PASS_AT.fullmatch(name)))

    @property
    def texts(self) -> tuple[str, ...]:
        """Metrics of the greedy answer's text, exact match first."""
        names = ("exact_match", *(name for name in self.metrics if name not in (*LIKELIHOODS, *metrics.CORPUS)))
        return tuple(dict.fromkeys(name for name in names if not PASS_AT.fullmatch(name)))

    @property
    def corpus(self) -> tuple[str, ...]:
        """Metrics of all answers together."""
        return tuple(name for name in self.metrics if name in metrics.CORPUS)

    @property
    def likelihoods(self) -> tuple[str, ...]:
        """Metrics that need log-likelihoods."""
        return tuple(name for name in self.metrics if name in LIKELIHOODS)

    def check(self, task: str) -> None:
        """Raise UserError where a metric is unknown, or the package that computes it is not installed."""
        for name in (*self.texts, *self.corpus):
            if name not in metrics.METRICS and name not in metrics.CORPUS:
                known = (*metrics.METRICS, *metrics.CORPUS, *LIKELIHOODS, "pass_at_1")
                raise UserError(f"task {task}: no metric {name!r}; known: {sorted(known)}{did_you_mean(name, known)}")
            metrics.check_metric(name, task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """Facts of a record about its answer, besides the answer itself."""

    references: tuple[str, ...] = ()
    """Accepted answers; empty: the record's own."""
    choices: tuple[str, ...] = ()
    """Answers to choose from."""
    prefix: str = ""
    """Code before an answer's program."""
    tests: str = ""
    """Code after it."""
    source: str | None = None
    """Source that it shares with other questions."""


def expected(record: Mapping[str, Any], scoring: Scoring, task: str) -> Expected:
    """The facts in the fields that a scoring names. Raises UserError where one is missing or is no text."""
    source = None if scoring.source is None else _field(record, scoring.source, task, "source")
    if isinstance(source, (Mapping, list)):
        raise UserError(f"task {task}: metric.source={scoring.source!r} is no text or number: {_short(source)}")
    return Expected(
        references=_texts(record, scoring.references, task, "references"),
        choices=_texts(record, scoring.choices, task, "choices"),
        prefix="\n".join(_texts(record, scoring.prefix, task, "prefix")),
        tests="\n".join(_texts(record, scoring.tests, task, "tests")),
        source=None if source is None else str(source),
    )


def _texts(record: Mapping[str, Any], path: str | None, task: str, option: str) -> tuple[str, ...]:
    """The texts in a field; a text alone is a list of one."""
    if path is None:
        return ()
    value = _field(record, path, task, option)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
        raise UserError(f"task {task}: metric.{option}={path!r} must be a list of texts; got {_short(value)}")
    return tuple(found)


def _field(record: Mapping[str, Any], path: str, task: str, option: str) -> Any:
    try:
        return look_up(record, path)
    except KeyError:
        message = f"task {task}: no field {path!r}, which metric.{option} names; the record has {sorted(record)}"
        raise UserError(message) from None


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
