"""Test questions, and scores of the answers that a model generates to them."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Conversation, Tokenizer
from jaxtune.errors import UserError
from jaxtune.evaluate.code_runs import PASSED, Program, pass_at, program_of
from jaxtune.evaluate.harness import Measured
from jaxtune.evaluate.likelihood import Likelihood, Scorer
from jaxtune.science.intervals import Estimate, jackknife_half, mean_in_clusters
from jaxtune.tasks import metrics
from jaxtune.tasks.scoring import Expected, Scoring


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
    """The record's own answer."""
    expected: Expected = Expected()

    @property
    def references(self) -> tuple[str, ...]:
        """Accepted answers."""
        return self.expected.references or (self.reference,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """Scores of generated answers."""

    task_score: Mapping[str, Mapping[str, float]]
    """Task -> {metric: mean over questions, "n": questions}."""
    task_interval: Mapping[str, Mapping[str, tuple[float, float]]]
    """Task -> {metric: 95 % interval of the mean for other questions of the kind}; metrics without one are left out."""
    macro_exact_match: float
    """Mean over trained tasks of the share of exactly matching answers."""
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    """Task -> {id, prompt, prediction, reference, correct, scores} of every question; `context` where something came
    before, `source` where questions share one."""
    harness: Measured | None = None
    """What lm-eval measured; None where it was not asked to."""


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


def text_scores(prediction: str, asked: Question, scoring: Scoring) -> dict[str, float]:
    """Metrics of one answer's text; exact match first."""
    return {name: metrics.score(name, prediction, asked.references) for name in scoring.texts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Respondent:
    """A model as far as scores need it: every function takes all that is asked and answers in its order."""

    answer: Callable[[list[list[int]]], list[list[int]]]
    """Greedy answers to prompts, token ids."""
    sample: Callable[[list[list[int]], float], list[list[int]]]
    """Answers drawn at a temperature; a prompt that is given n times gets n draws."""
    likelihoods: Scorer
    run: Callable[[list[Program]], list[str]]
    """Outcomes of programs (see `code_runs`)."""


def generation_scores(
    respondent: Respondent,
    asked: Sequence[Question],
    tokenizer: Tokenizer,
    scoring_of: Mapping[str, Scoring],
    *,
    stop_ids: frozenset[int] | set[int],
    held_out: Collection[str] = (),
) -> ScoreResult:
    """Generate all answers and score each with exact match and with its task's own metrics.

    `held_out`: tasks whose scores stand beside the mean.
    """
    says = lambda ids: tokenizer.decode([i for i in ids if i not in stop_ids])
    generated = respondent.answer([q.prompt for q in asked])
    texts = [says(ids) for ids in generated]
    liked = likelihood_scores(respondent.likelihoods, asked, tokenizer, scoring_of)
    ran = program_scores(respondent, asked, texts, says, scoring_of)
    rows: dict[str, list[dict[str, Any]]] = {}
    for i, (q, ids, text) in enumerate(zip(asked, generated, texts, strict=True)):
        more = (found for by_question in (liked, ran) if (found := by_question.get(i)) is not None)
        rows.setdefault(q.task, []).append(
            answer_row(q, text, len(ids), [Marks(scores=text_scores(text, q, scoring_of[q.task])), *more])
        )
    return summed_up(rows, held_out, {task: scoring_of[task].corpus for task in rows})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """Scores of one question by some metrics."""

    scores: Mapping[str, float]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What they come from, for the row of the question."""


def likelihood_scores(
    scorer: Scorer, asked: Sequence[Question], tokenizer: Tokenizer, scoring_of: Mapping[str, Scoring]
) -> dict[int, Marks]:
    """Metrics of log-likelihoods by the number of the question, for tasks that have some.

    Texts are tokenised apart from their prompts, as answers are in training, without the token that ends a turn.
    """
    pairs, owners = [], []
    for i, q in enumerate(asked):
        wanted = scoring_of[q.task].likelihoods
        texts: tuple[str, ...] = (q.reference,) if "log_likelihood" in wanted else ()
        texts += q.expected.choices if any(name.startswith("choice_") for name in wanted) else ()
        pairs += [(q.prompt, tokenizer.encode(text)) for text in texts]
        owners += [(i, text) for text in texts]
    found: dict[int, list[tuple[str, Likelihood]]] = {}
    for (i, text), one in zip(owners, scorer(pairs) if pairs else (), strict=True):
        found.setdefault(i, []).append((text, one))
    return {i: likelihood_marks(asked[i], scoring_of[asked[i].task].likelihoods, one) for i, one in found.items()}


def likelihood_marks(q: Question, wanted: Sequence[str], found: Sequence[tuple[str, Likelihood]]) -> Marks:
    """Metrics of one question from the likelihoods of its reference, where asked for, and its choices."""
    scores: dict[str, float] = {}
    if "log_likelihood" in wanted:
        scores["log_likelihood"] = found[0][1].mean
    choices = found[len(scores) :]
    details: dict[str, Any] = {"choices": [[text, one.total] for text, one in choices]} if choices else {}
    for name in (name for name in wanted if name.startswith("choice_")):
        each = [one.total / (len(text) if name == "choice_accuracy_norm" else 1) for text, one in choices]
        scores[name] = float(choices[each.index(max(each))][0] == q.reference)
    return Marks(scores=scores, details=details)


def program_scores(
    respondent: Respondent, asked: Sequence[Question], texts: Sequence[str], says: Callable[[list[int]], str],
    scoring_of: Mapping[str, Scoring],
) -> dict[int, Marks]:  # fmt: skip
    """`pass_at_k` by the number of the question, for tasks that have it: of the greedy answers, or of samples."""
    tried = [i for i, q in enumerate(asked) if scoring_of[q.task].tries]
    answers = {i: [texts[i]] for i in tried if scoring_of[asked[i].task].samples == 1}
    for heat in sorted({scoring_of[asked[i].task].temperature for i in tried if i not in answers}):
        drawn = [i for i in tried if i not in answers and scoring_of[asked[i].task].temperature == heat]
        owners = [i for i in drawn for _ in range(scoring_of[asked[i].task].samples)]
        answers |= {i: [] for i in drawn}
        for i, ids in zip(owners, respondent.sample([asked[i].prompt for i in owners], heat), strict=True):
            answers[i].append(says(ids))
    programs = [
        Program(text=f"{asked[i].expected.prefix}\n{program_of(said)}", tests=asked[i].expected.tests)
        for i in tried for said in answers[i]
    ]  # fmt: skip
    outcomes = iter(respondent.run(programs) if programs else ())
    marks = {}
    for i in tried:
        ended = [next(outcomes) for _ in answers[i]]
        scores = {f"pass_at_{k}": pass_at(k, len(ended), ended.count(PASSED)) for k in scoring_of[asked[i].task].tries}
        marks[i] = Marks(scores=scores, details={"programs": list(zip(answers[i], ended, strict=True))})
    return marks


def answer_row(q: Question, prediction: str, tokens: int, marks: Sequence[Marks]) -> dict[str, Any]:
    """A question with its answer of so many tokens and its scores, as generations.json keeps it."""
    row: dict[str, Any] = {"id": q.id}
    row |= {"context": q.context} if q.context else {}
    row |= {"prompt": q.text, "prediction": prediction, "reference": q.reference}
    row |= {"references": list(q.expected.references)} if q.expected.references else {}
    scores = {name: value for one in marks for name, value in one.scores.items()}
    row |= {"correct": bool(scores["exact_match"] == 1), "tokens": tokens, "scores": scores}
    row |= {name: value for one in marks for name, value in one.details.items()}
    return row if q.expected.source is None else row | {"source": q.expected.source}


def summed_up(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], held_out: Collection[str],
    corpus_of: Mapping[str, Sequence[str]],
) -> ScoreResult:  # fmt: skip
    """Means of the rows of each task, with intervals that count sources where questions share some.

    `corpus_of`: by task, the metrics of all its answers together.
    """
    scored, intervals = {}, {}
    for task, answers in rows.items():
        estimates = {name: mean_of(answers, name) for name in answers[0]["scores"]}
        estimates |= {name: corpus_estimate(answers, name) for name in corpus_of.get(task, ())}
        scored[task] = {name: one.mean for name, one in estimates.items()} | {"n": len(answers)}
        known = {name: one for name, one in estimates.items() if math.isfinite(one.low)}
        intervals[task] = {name: in_range(name, one) for name, one in known.items()}
    exact = [scores["exact_match"] for task, scores in scored.items() if task not in held_out]
    return ScoreResult(
        task_score=scored, task_interval=intervals, answers=rows,
        macro_exact_match=math.fsum(exact) / len(exact) if exact else math.nan,
    )  # fmt: skip


def in_range(metric: str, estimate: Estimate) -> tuple[float, float]:
    """The interval of a mean; of a share, its part in [0, 1]."""
    if metric == "log_likelihood":
        return estimate.low, estimate.high
    return max(0.0, estimate.low), min(1.0, estimate.high)


def mean_of(answers: Sequence[Mapping[str, Any]], metric: str) -> Estimate:
    """Mean of a metric over the rows of a task."""
    return mean_in_clusters([float(row["scores"][metric]) for row in answers], sources_of(answers))


def sources_of(answers: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Source of every row of a task; a row without one is its own."""
    return [row.get("source", ("alone", i)) for i, row in enumerate(answers)]


def corpus_estimate(answers: Sequence[Mapping[str, Any]], metric: str) -> Estimate:
    """A metric of all answers of a task together, with the interval of a jackknife over blocks of sources."""

    def of(chosen: Sequence[Mapping[str, Any]]) -> float:
        references = [row.get("references", [row["reference"]]) for row in chosen]
        return metrics.corpus_score(metric, [row["prediction"] for row in chosen], references)

    sources = sources_of(answers)
    number = {source: i for i, source in enumerate(dict.fromkeys(sources))}
    blocks = [number[source] % BLOCKS for source in sources]
    left_out = [
        [row for row, block in zip(answers, blocks, strict=True) if block != out] for out in sorted(set(blocks))
    ]
    whole = of(answers)
    if len(left_out) < 2:
        return Estimate(mean=whole, n=len(answers))
    half = jackknife_half([of(part) for part in left_out])
    return Estimate(mean=whole, low=whole - half, high=whole + half, n=len(answers))


BLOCKS = 20
"""Most parts of a test set that a jackknife leaves out in turn."""
