"""A part of a tokenised split: some of its examples, renumbered from 0."""

import dataclasses

import numpy as np
from jaxtyping import Int

from jaxtune.batch import Example
from jaxtune.data.store import TaskTokens


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

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        return self.store.example(int(self.numbers[number]), template)

    def check_unchanged(self) -> None:
        """Raises UserError when the tokenised data changed since they were opened."""
        self.store.check_unchanged()
