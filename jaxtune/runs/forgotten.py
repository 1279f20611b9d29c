"""Forgetting of runs: losses of their retention texts before and after tuning, and the gain on their tasks."""

import dataclasses
import math

from jaxtune.runs.history import Run
from jaxtune.runs.results import reached
from jaxtune.storage.documents import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgotten:
    """One retention text of a run, before and after tuning; NaN where it was not measured."""

    text: str
    before: float
    """Nats per token."""
    after: float
    kl: float
    """KL(base || tuned), nats per token."""
    exact_before: float
    exact_after: float
    documents: int

    @property
    def loss(self) -> float:
        """Nats per token more than before: the forgetting."""
        return self.after - self.before


def forgotten(run: Run) -> list[Forgotten]:
    """Every retention text of a run that was measured before and after."""
    before, after = (run.summary.get(when, {}).get("retention", {}) for when in ("before", "after"))
    return [
        Forgotten(
            text=name,
            before=number(before[name].get("loss")),
            after=number(new.get("loss")),
            kl=number(new.get("kl")),
            exact_before=number(before[name].get("exact")),
            exact_after=number(new.get("exact")),
            documents=int(new.get("n", 0)),
        )
        for name, new in after.items()
        if name in before
    ]


def forget(run: Run) -> float:
    """Mean over texts of what a run forgot, nats per token; NaN where it has no retention texts."""
    found = [one.loss for one in forgotten(run)]
    return math.fsum(found) / len(found) if found else math.nan


def gain(run: Run) -> float:
    """Validation loss before tuning minus after, mean over trained tasks, nats per token."""
    return reached(run, "before").loss - reached(run).loss
