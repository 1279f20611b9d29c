"""A part of a tokenised split: some of its examples, renumbered from 0."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxtune.batch import Example
from jaxtune.data.encoding import Encoding, encode_records
from jaxtune.data.store import TaskTokens
from jaxtune.plan.lengths import LengthTable
from jaxtune.tasks import Task
from jaxtune.tasks.problems import Severity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subset:
    """Some examples of a tokenised split, renumbered from 0."""

    store: TaskTokens
    numbers: Int[np.ndarray, " chosen"]

    @property
    def lengths(self) -> Int[np.ndarray, "chosen templates"]:
        """Tokens of each example under each template."""
        return np.asarray(self.store.lengths)[self.numbers]

    @property
    def loss_lengths(self) -> Int[np.ndarray, "chosen templates"]:
        """Trained tokens of each example under each template."""
        return np.asarray(self.store.loss_lengths)[self.numbers]

    @property
    def response_lengths(self) -> Int[np.ndarray, "chosen templates"]:
        """Tokens of the responses of each example under each template."""
        return np.asarray(self.store.response_lengths)[self.numbers]

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        return self.store.example(int(self.numbers[number]), template)

    def check_unchanged(self) -> None:
        """Raises UserError when the tokenised data changed since they were opened."""
        self.store.check_unchanged()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples that were encoded just now and lie in memory; only their first wording is there."""

    examples: tuple[Example, ...]

    @property
    def lengths(self) -> Int[np.ndarray, "examples 1"]:
        """Tokens of each example."""
        return np.array([[len(example.tokens)] for example in self.examples], np.int32).reshape(-1, 1)

    @property
    def loss_lengths(self) -> Int[np.ndarray, "examples 1"]:
        """Trained tokens of each example; the first token is nobody's target."""
        counts = [[int((example.loss_weights[1:] > 0).sum())] for example in self.examples]
        return np.array(counts, np.int32).reshape(-1, 1)

    @property
    def response_lengths(self) -> Int[np.ndarray, "examples 1"]:
        """Tokens of the responses of each example: those that weigh, as no prompt does."""
        return self.loss_lengths

    def example(self, number: int, template: int = 0) -> Example:
        """One example."""
        return self.examples[number]

    def check_unchanged(self) -> None:
        """Nothing: what lies in memory does not change."""


def encode_again(task: Task, split: str, part: Subset, encoding: Encoding) -> Encoded:
    """The examples of a part in their first wording, encoded in another way; without those that it drops."""
    records = [part.store.record(int(number)) for number in part.numbers]
    found, problems = encode_records(dataclasses.replace(task, templates=task.templates[:1]), split, records, encoding)
    assert not any(problem.severity is Severity.ERROR for problem in problems), "the records were encoded before"
    ends = np.cumsum(found.lengths.reshape(-1))
    cuts = zip(np.split(found.tokens, ends)[:-1], np.split(found.weights, ends)[:-1], strict=True)
    return Encoded(examples=tuple(Example(tokens=tokens, loss_weights=weights) for tokens, weights in cuts))


def length_table(stores: Mapping[str, TaskTokens | Subset | Encoded]) -> LengthTable:
    """Lengths of every example of some tasks; those of the responses apart only where prompts carry loss weight."""
    tokens = {name: store.lengths for name, store in stores.items()}
    loss_tokens = {name: store.loss_lengths for name, store in stores.items()}
    responses = {name: store.response_lengths for name, store in stores.items()}
    alike = all(np.array_equal(loss_tokens[name], responses[name]) for name in stores)
    return LengthTable(tokens, loss_tokens) if alike else LengthTable(tokens, loss_tokens, responses)
