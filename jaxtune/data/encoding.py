"""Encoding of conversations: tokens with loss weights, supervision proven, after the length policy."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune import chat
from jaxtune.batch import Example
from jaxtune.chat import ChatTemplate, Conversation, MaskPolicy, Proven, Response, Tokenizer
from jaxtune.data.fit import FitOutcome, Fitted, LengthPolicy, fit_length
from jaxtune.data.store import Part
from jaxtune.errors import UserError
from jaxtune.tasks import Problem, RecordError, Task
from jaxtune.tasks.shapes import record_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """Settings that turn a conversation into tokens with loss weights."""

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int
    """Longest example, tokens."""
    mask_policy: MaskPolicy = MaskPolicy.ASSISTANT
    length_policy: LengthPolicy = LengthPolicy.DROP
    prompt_loss_weight: float = 0.0
    embedding_rows: int | None = None
    """Rows of the model's embedding: examples with a token beyond are refused, spare tokens are not."""

    def facts(self) -> dict[str, Any]:
        """Everything about it that decides tokens, as plain JSON."""
        return {
            "template": self.template.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "mask_policy": self.mask_policy.value,
            "length_policy": self.length_policy.value,
            "prompt_loss_weight": self.prompt_loss_weight,
            "token_limit": self.token_limit,
        }

    @property
    def token_limit(self) -> int:
        """All token ids of examples are below it."""
        return min(self.tokenizer.vocab_size, self.embedding_rows or self.tokenizer.vocab_size)


def encode_records(task: Task, split: str, records: Sequence[int], encoding: Encoding) -> tuple[Part, list[Problem]]:
    """Tokens and loss weights of records in every wording, supervision proven, after the length policy.

    A record with an error is in the problems and not in the part; of one that was cut or dropped a warning is there.
    """
    kept: list[list[Example]] = []
    numbers: list[int] = []
    outcomes: collections.Counter[str] = collections.Counter()
    problems: list[Problem] = []
    wordings = range(task.num_templates)
    read = [[_read(task, split, i, t) for t in wordings] for i in records]
    rendered = iter(_render([item for row in read for item in row if isinstance(item, Conversation)], encoding))
    for i, row in zip(records, read, strict=True):
        results = [_fit(next(rendered) if isinstance(item, Conversation) else item, encoding) for item in row]
        fitted = [result for result in results if isinstance(result, _Measured)]
        if len(fitted) < len(results):
            errors = next(result for result in results if not isinstance(result, _Measured))
            problems += _placed(errors, task, split, i)
            continue
        worst = max(fitted, key=lambda result: (result.example is None, result.outcome is not FitOutcome.KEPT))
        outcomes[worst.outcome.value] += 1
        problems += _placed(worst.warnings(encoding.max_length), task, split, i)
        if worst.example is not None:
            kept.append([result.example for result in fitted if result.example is not None])
            numbers.append(i)
    return _part(kept, numbers, outcomes, task.num_templates, encoding.prompt_loss_weight), problems


_CUT = {FitOutcome.PROMPT_TRUNCATED: "prompt-cut", FitOutcome.RESPONSE_TRUNCATED: "answer-cut"}


@dataclasses.dataclass(frozen=True)
class _Measured(Fitted):
    """A fitted example that remembers how long it was, and which of its responses carry no weight."""

    length: int
    aside: tuple[Response, ...] = ()

    def warnings(self, max_length: int) -> list[Problem]:
        """Warnings of one record: that it was cut or dropped, and each response that carries no weight."""
        found = [
            Problem(
                rule="set-aside", message=f"message {response.message} {response.aside.value}; it carries no weight"
            )
            for response in self.aside
            if response.aside
        ]
        if self.outcome in (FitOutcome.KEPT, FitOutcome.KEPT_IN_PART):
            return found
        message = f"{self.length:,} tokens, {max_length:,} fit: {self.outcome.value}"
        return [*found, Problem(rule=_CUT.get(self.outcome, "left-out"), message=message)]


def _placed(problems: Sequence[Problem], task: Task, split: str, i: int) -> list[Problem]:
    """Problems with the place and the id of a record, where they have none."""
    if all(problem.file for problem in problems):
        return list(problems)
    source = task.source(split)
    place: Any = {"file": source.file(i), "line": source.line(i), "id": record_id(source[i], task.columns)}
    return [problem if problem.file else dataclasses.replace(problem, **place) for problem in problems]


def _read(task: Task, split: str, i: int, template: int) -> Conversation | Example | list[Problem]:
    try:
        return task.read(split, i, template)
    except RecordError as error:
        return list(error.problems)


def _render(conversations: Sequence[Conversation], encoding: Encoding) -> list[Proven | UserError]:
    return chat.render_proven(
        conversations, encoding.template, encoding.tokenizer, encoding.mask_policy, encoding.prompt_loss_weight
    )


def _fit(item: Example | Proven | UserError | list[Problem], encoding: Encoding) -> _Measured | list[Problem]:
    """One rendered wording after the supervision check and the length policy."""
    if isinstance(item, list):
        return item
    if isinstance(item, UserError):
        return [Problem(rule="not-renderable", message=str(item))]
    aside: tuple[Response, ...] = ()
    if isinstance(item, Proven):
        if item.violations:
            return [
                Problem(rule="supervision", message=f"{v.rule}: {v.message}", advice=v.remedy) for v in item.violations
            ]
        item, aside = item.example, item.aside
    elif padded := _padding(item, encoding.tokenizer):
        return [padded]
    largest = int(item.tokens.max()) if len(item.tokens) else -1
    if largest >= encoding.tokenizer.vocab_size:
        message = f"token {largest}, but the tokenizer has {encoding.tokenizer.vocab_size}"
        return [Problem(rule="bad-tokens", message=message, advice="tokenise the record with this tokenizer")]
    if encoding.embedding_rows is not None and largest >= encoding.embedding_rows:
        piece = encoding.tokenizer.piece(largest)
        message = f"token {largest} ({piece!r}), but the model's embedding has {encoding.embedding_rows} rows"
        advice = "remove its text, or use the tokenizer that belongs to the model"
        return [Problem(rule="bad-tokens", message=message, advice=advice)]
    try:
        fitted = fit_length(
            item,
            encoding.max_length,
            encoding.length_policy,
            prompt_loss_weight=encoding.prompt_loss_weight,
            bos_id=encoding.tokenizer.bos_id,
        )
    except UserError as error:
        return [Problem(rule="too-long", message=str(error).partition(". ")[0])]
    outcome = FitOutcome.KEPT_IN_PART if aside and fitted.outcome is FitOutcome.KEPT else fitted.outcome
    return _Measured(fitted.example, outcome, len(item.tokens), aside)


def _padding(example: Example, tokenizer: Tokenizer) -> Problem | None:
    """The problem of a record of token ids that is padded, and does not say where: padding would be attended to."""
    if tokenizer.pad_id is None:
        return None
    real = np.flatnonzero(example.tokens != tokenizer.pad_id)
    sides = (real[0], len(example.tokens) - 1 - real[-1]) if len(real) else (len(example.tokens), 0)
    if max(sides) < 2:  # one alone may be the end of the text, or its beginning
        return None
    where = f"the first {sides[0]}" if sides[0] >= sides[1] else f"the last {sides[1]}"
    message = f"{where} tokens are padding ({tokenizer.piece(tokenizer.pad_id)!r}) that no attention_mask tells of"
    return Problem(rule="bad-tokens", message=message, advice="give attention_mask with 0 there, or leave them off")


def _part(
    kept: list[list[Example]], numbers: list[int], outcomes: Mapping[str, int], templates: int, prompt_weight: float
) -> Part:
    """The arrays of the kept examples. The first token is nobody's target and counts for no loss; responses are what
    weighs other than prompts do."""
    flat = [example for row in kept for example in row]
    shape = (len(kept), templates)

    def counted(counts: list[int]) -> np.ndarray:
        return np.array(counts, np.int32).reshape(shape)

    return Part(
        tokens=np.concatenate([np.zeros(0, np.int32), *(example.tokens for example in flat)]),
        weights=np.concatenate([np.zeros(0, np.float32), *(example.loss_weights for example in flat)]),
        lengths=counted([len(example.tokens) for example in flat]),
        loss_lengths=counted([int((example.loss_weights[1:] > 0).sum()) for example in flat]),
        response_lengths=counted(
            [int((example.loss_weights[1:] != np.float32(prompt_weight)).sum()) for example in flat]
        ),
        records=np.array(numbers, np.int64),
        outcomes=dict(outcomes),
    )
