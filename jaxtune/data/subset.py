"""A part of a tokenised split: some of its examples, renumbered from 0."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxtune.batch import Example
from jaxtune.data.store import TaskTokens
from jaxtune.plan.lengths import LengthTable


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


def length_table(stores: Mapping[str, TaskTokens | Subset]) -> LengthTable:
    """Lengths of every example of some tasks; those of the responses apart only where prompts carry loss weight."""
    tokens = {name: store.lengths for name, store in stores.items()}
    loss_tokens = {name: store.loss_lengths for name, store in stores.items()}
    responses = {name: store.response_lengths for name, store in stores.items()}
    alike = all(np.array_equal(loss_tokens[name], responses[name]) for name in stores)
    return LengthTable(tokens, loss_tokens) if alike else LengthTable(tokens, loss_tokens, responses)
