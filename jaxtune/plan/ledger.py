"""Ledger of a run: examples and tokens drawn from each task."""

import dataclasses

import numpy as np
from jaxtyping import Int

COLUMNS = ("examples", "tokens", "loss_tokens", "response_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """Examples and tokens drawn from each task, in the order of `tasks`."""

    tasks: tuple[str, ...]
    examples: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]
    loss_tokens: Int[np.ndarray, " n"]
    """Tokens that carry loss weight and are a target (the first token of an example is none)."""
    response_tokens: Int[np.ndarray, " n"]
    """Tokens of responses; the others are prompt. The same as `loss_tokens` where prompts carry no weight."""

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(tasks=self.tasks, **{name: getattr(self, name) + getattr(other, name) for name in COLUMNS})

    def to_json(self) -> dict[str, dict[str, int]]:
        """{task: {examples, tokens, loss_tokens, response_tokens}}"""
        return {task: {name: int(getattr(self, name)[i]) for name in COLUMNS} for i, task in enumerate(self.tasks)}
