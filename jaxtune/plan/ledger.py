"""What was drawn from each task: examples and tokens, counted from a plan or from the batches themselves."""

import dataclasses

import numpy as np
from jaxtyping import Int

from jaxtune.batch import Batch

COLUMNS = ("examples", "tokens", "loss_tokens", "response_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What was drawn from each task."""

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


def count_batch(batch: Batch, tasks: tuple[str, ...], prompt_loss_weight: float = 0.0) -> Ledger:
    """Ledger of one host batch, read from its arrays alone; responses are what weighs other than prompts do."""
    task, real = np.asarray(batch.task_ids), np.asarray(batch.segment_ids) > 0
    weights = np.asarray(batch.loss_weights)
    first = real & (np.asarray(batch.positions) == 0)
    later = real & ~first
    counted = {
        "examples": first,
        "tokens": real,
        "loss_tokens": later & (weights > 0),
        "response_tokens": later & (weights != np.float32(prompt_loss_weight)),
    }
    return Ledger(
        tasks=tasks, **{name: np.bincount(task[chosen], minlength=len(tasks)) for name, chosen in counted.items()}
    )
