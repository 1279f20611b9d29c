"""Encoding of conversations: tokens with loss weights, supervision proven, after the length policy."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune import chat
from jaxtune.batch import Example
from jaxtune.chat import ChatTemplate, Conversation, MaskPolicy, Tokenizer
from jaxtune.data.fit import Fitted, LengthPolicy, Outcome, fit_length
from jaxtune.data.store import Part
from jaxtune.errors import UserError
from jaxtune.tasks import RecordError, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a conversation becomes tokens with loss weights."""

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int
    """Longest example, tokens."""
    mask_policy: MaskPolicy = MaskPolicy.ASSISTANT
    length_policy: LengthPolicy = LengthPolicy.DROP
    prompt_loss_weight: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Everything about it that decides tokens, as plain JSON."""
        return {
            "template": self.template.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "mask_policy": self.mask_policy.value,
            "length_policy": self.length_policy.value,
            "prompt_loss_weight": self.prompt_loss_weight,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """One record that cannot be used."""

    rule: str
    text: str


def encode_records(task: Task, split: str, records: Sequence[int], encoding: Encoding) -> tuple[Part, list[Trouble]]:
    """Tokens and loss weights of records in every wording, supervision proven, after the length policy."""
    kept: list[list[Example]] = []
    numbers: list[int] = []
    outcomes: collections.Counter[str] = collections.Counter()
    troubles: list[Trouble] = []
    wordings = range(task.num_templates)
    read = [[_read(task, split, i, t) for t in wordings] for i in records]
    rendered = iter(_render([item for row in read for item in row if isinstance(item, Conversation)], encoding))
    for i, row in zip(records, read, strict=True):
        where = task.source(split).where(i)
        results = [
            _fit(next(rendered) if isinstance(item, Conversation) else item, item, where, encoding) for item in row
        ]
        fitted = [result for result in results if isinstance(result, Fitted)]
        if len(fitted) < len(results):
            troubles += next(result for result in results if not isinstance(result, Fitted))
            continue
        worst = max(fitted, key=lambda result: (result.example is None, result.outcome is not Outcome.KEPT))
        outcomes[worst.outcome.value] += 1
        if worst.example is not None:
            kept.append([result.example for result in fitted if result.example is not None])
            numbers.append(i)
    return _part(kept, numbers, outcomes, task.num_templates, encoding.prompt_loss_weight), troubles


def _read(task: Task, split: str, i: int, template: int) -> Conversation | Example | list[Trouble]:
    try:
        return task.read(split, i, template)
    except RecordError as error:
        return [Trouble(rule=problem.rule, text=str(problem)) for problem in error.problems]


def _render(conversations: Sequence[Conversation], encoding: Encoding) -> list[Example | UserError]:
    return chat.render_each(
        conversations, encoding.template, encoding.tokenizer, encoding.mask_policy, encoding.prompt_loss_weight
    )


def _fit(
    item: Example | UserError | list[Trouble],
    read: Conversation | Example | list[Trouble],
    where: str,
    encoding: Encoding,
) -> Fitted | list[Trouble]:
    """One rendered wording after the supervision check and the length policy."""
    if isinstance(item, list):
        return item
    if isinstance(item, UserError):
        return [Trouble(rule="cannot-render", text=f"{where}: {item}")]
    if len(item.tokens) and (largest := int(item.tokens.max())) >= encoding.tokenizer.vocab_size:
        text = f"{where}: bad-tokens: token {largest}, but the tokenizer has {encoding.tokenizer.vocab_size}"
        return [Trouble(rule="bad-tokens", text=f"{text}; tokenise the record with this tokenizer")]
    if isinstance(read, Conversation):
        problems = chat.check(
            item, read, encoding.template, encoding.tokenizer, encoding.mask_policy, encoding.prompt_loss_weight
        )
        if problems:
            return [Trouble(rule=p.rule, text=f"{where}: {p.rule}: {p.message}; {p.remedy}") for p in problems]
    try:
        return fit_length(
            item,
            encoding.max_length,
            encoding.length_policy,
            prompt_loss_weight=encoding.prompt_loss_weight,
            bos_id=encoding.tokenizer.bos_id,
        )
    except UserError as error:
        return [Trouble(rule="too-long", text=f"{where}: {error}")]


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
