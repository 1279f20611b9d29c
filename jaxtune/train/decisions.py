"""Decisions after each update: validate, save, end. Pure functions of counters and rules.

The loop asks after every update, and a second time with the validation loss where the first answer was to validate.
"""

import dataclasses
import enum
import math
import statistics
from collections.abc import Mapping
from typing import Any

from jaxtune.config import ExperimentConfig
from jaxtune.train.staging import ends_of

RECENT = 50
"""Losses that a spike is compared with, and how many of them it takes at least."""
FEWEST_RECENT = 10


class Status(enum.Enum):
    """Status of a run that ended."""

    FINISHED = "finished"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"
    PAUSED = "paused"  # at a step where its sweep compares settings
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The numbers that decide when a run validates, saves and ends."""

    total: int
    """Updates of the whole run."""
    validate_every: int | None
    """Updates between two validations; 0: only after the last one; None: there are no validation data."""
    save_every: int
    patience: int | None = None
    """Validations without an improvement that end the run; None: no number of them does."""
    min_change: float = 0.0
    """Decrease of the validation loss that patience takes for an improvement."""
    until: int | None = None
    """Updates after which the run is saved and waits; None: it goes to its end."""
    stage_ends: frozenset[int] = frozenset()
    """Updates after which a stage ends, with a validation that sets the shares of the next one."""

    def validates(self, done: int) -> bool:
        """Whether to validate after `done` updates."""
        every = self.validate_every
        ends = (self.total, self.until, *self.stage_ends)
        return every is not None and (done in ends or bool(every and done % every == 0))

    def saves(self, done: int) -> bool:
        """Whether to save after `done` updates, whatever validation says."""
        return done == self.total or done % self.save_every == 0


def rules(config: ExperimentConfig, total: int, *, validated: bool, until: int | None = None) -> Rules:
    """The rules of a config; `validated`: there are validation data. `until`: the updates after which it waits."""
    return Rules(
        total=total,
        validate_every=config.eval.every if validated else None,
        save_every=config.checkpoint.save_every,
        patience=config.early_stopping.patience,
        min_change=config.early_stopping.min_change,
        until=until,
        stage_ends=frozenset(ends_of(config)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters that a run carries from update to update besides its train state; saved with every checkpoint."""

    tokens: int = 0
    loss_tokens: int = 0
    skipped: int = 0
    """Updates withheld because the loss or the gradient was not finite."""
    empty: int = 0
    """Updates withheld because no token of the batch carried weight."""
    task_examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    task_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    best_value: float = math.inf
    """Lowest watched validation loss so far."""
    best_step: int = -1
    """Updates done when it was measured; -1 before the first."""
    reference: float = math.inf
    """The validation loss that patience compares with: the last one that was lower by more than the minimum change."""
    since_reference: int = 0
    """Validations since `reference` was last set; early stopping compares it with `patience`."""
    unvalidated: bool = False
    """A stop signal came at a step whose validation is still to be done."""
    recent: tuple[float, ...] = ()
    """Losses of the last steps, for the spike log."""

    def validated(self, value: float, step: int, min_change: float) -> "Counters":
        """The counters with a watched validation loss in them. What is not finite is never the best."""
        improved = math.isfinite(value) and value < self.reference - min_change
        best = math.isfinite(value) and value < self.best_value
        return dataclasses.replace(
            self,
            unvalidated=False,
            reference=value if improved else self.reference,
            since_reference=0 if improved else self.since_reference + 1,
            best_value=value if best else self.best_value,
            best_step=step if best else self.best_step,
        )

    def recounted(self, losses: Mapping[int, float], min_change: float) -> "Counters":
        """The counters as if these validations, step -> watched loss, had been the ones so far."""
        fresh = Counters()
        for step in sorted(losses):
            fresh = fresh.validated(losses[step], step, min_change)
        names = ("best_value", "best_step", "reference", "since_reference")
        return dataclasses.replace(self, **{name: getattr(fresh, name) for name in names})

    def without_best(self, losses: Mapping[int, float]) -> "Counters":
        """The counters after the best checkpoint was lost; `losses`: step -> validation loss of those that are left."""
        finite = [(loss, step) for step, loss in losses.items() if math.isfinite(loss)]
        value, step = min(finite, default=(math.inf, -1))
        return dataclasses.replace(self, best_value=value, best_step=step)

    def counted(self, *, tokens: int, task_examples: Mapping[str, int], task_tokens: Mapping[str, int]) -> "Counters":
        """The counters with a step's real tokens, examples and trained tokens added."""
        return dataclasses.replace(
            self,
            tokens=self.tokens + tokens,
            loss_tokens=self.loss_tokens + sum(task_tokens.values()),
            task_examples=_added(self.task_examples, task_examples),
            task_tokens=_added(self.task_tokens, task_tokens),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which has no infinity: None stands for it."""
        plain = dataclasses.asdict(self)
        for name in ("best_value", "reference"):
            plain[name] = plain[name] if math.isfinite(plain[name]) else None
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Counters":
        """The counters that `to_json` wrote."""
        numbers = {name: math.inf if plain[name] is None else plain[name] for name in ("best_value", "reference")}
        return cls(**{**plain, **numbers, "recent": tuple(plain["recent"])})


def _added(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in [*left, *(n for n in right if n not in left)]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Actions after an update, in this order."""

    validate: bool = False
    """Validate, and ask again with the result: nothing else is decided yet."""
    save: bool = False
    end: Status | None = None

    @property
    def waits(self) -> bool:
        """Whether there is anything to do before the next update."""
        return self.validate or self.save or self.end is not None


def decide(
    counters: Counters, done: int, rules: Rules, *, stopping: bool = False, watched: float | None = None
) -> tuple[Counters, Decision]:
    """Counters and decision after `done` updates.

    `stopping`: a signal asks the run to stop; it saves and leaves its validation to the resumed run. `watched`: the
    validation loss after these updates, once it is known.
    """
    due = rules.validates(done)
    if stopping:
        return dataclasses.replace(counters, unvalidated=due), Decision(save=True, end=Status.STOPPED)
    if due and watched is None:
        return counters, Decision(validate=True)
    if watched is not None:
        counters = counters.validated(watched, done, rules.min_change)
    best, end = watched is not None and counters.best_step == done, ended(counters, done, rules)
    return counters, Decision(save=best or rules.saves(done) or end is Status.PAUSED, end=end)


def ended(counters: Counters, done: int, rules: Rules) -> Status | None:
    """Status with which a run ends after `done` validated updates; None while it goes on."""
    if rules.patience is not None and counters.since_reference >= rules.patience:
        return Status.EARLY_STOPPED
    if done == rules.total:
        return Status.FINISHED
    return Status.PAUSED if done == rules.until else None


class Health(enum.Enum):
    """Health of an update, by its numbers."""

    GOOD = enum.auto()
    EMPTY = enum.auto()  # nothing carried weight
    SPIKE = enum.auto()  # a loss far above the recent ones
    NOT_FINITE = enum.auto()


def judge(
    counters: Counters, loss: float, *, applied: bool, finite: bool, spike_factor: float
) -> tuple[Counters, Health]:
    """The counters with an update's loss in them, and its health."""
    if not finite:
        return dataclasses.replace(counters, skipped=counters.skipped + 1), Health.NOT_FINITE
    if not applied:
        return dataclasses.replace(counters, empty=counters.empty + 1), Health.EMPTY
    recent = counters.recent
    spike = len(recent) >= FEWEST_RECENT and loss > spike_factor * statistics.median(recent)
    counters = dataclasses.replace(counters, recent=(*recent[1 - RECENT :], loss))
    return counters, Health.SPIKE if spike else Health.GOOD
