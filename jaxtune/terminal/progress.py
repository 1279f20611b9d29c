"""Progress of a long job: of training, alone or in groups, and of many items. See `display` for what is shown where."""

import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console

from jaxtune.terminal.display import Display, Part
from jaxtune.terminal.numbers import duration, quantity
from jaxtune.terminal.pace import Clock, Pace

Item = TypeVar("Item")
Steps = TypeVar("Steps", bound="StepsProgress")
"""A display as itself; the runtime type checks of the tests do not know `Self`."""

MOST_SHOWN = 6
"""Runs of a group whose losses are shown one by one."""


class StepsProgress:
    """A display of training steps: its bar, its pace, and the time of what is not a step. A context manager."""

    def __init__(
        self, label: str, total: int, *, console: Console | None = None, interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):  # fmt: skip
        self._display = Display(label, total, console=console, interval=interval, clock=clock)
        self._pace = Pace(total, clock)
        self._expected = 0.0

    def __enter__(self: Steps) -> Steps:
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.__exit__(*exception)

    def write(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._display.write(text)

    @property
    def live(self) -> bool:
        """Whether it is drawn in a terminal, where a line that changes costs nothing."""
        return self._display.console.is_terminal

    @property
    def seconds_a_step(self) -> float:
        """Seconds that a step takes at the present rate; NaN when unknown."""
        return 1 / self._pace.rate if self._pace.rate > 0 else math.nan

    @property
    def seconds_left(self) -> float:
        """Seconds to the end at the present rate, with those that are expected beside the steps; NaN when unknown."""
        return self._pace.seconds_left + self._expected

    def pause(self, seconds: float) -> None:
        """The last seconds were no training step: a validation, a checkpoint."""
        self._pace.pause(seconds)

    def expect(self, seconds: float) -> None:
        """Set the seconds that will still be spent on other things than training steps."""
        self._expected = seconds


class TrainProgress(StepsProgress):
    """Training: step, loss, tokens per second (all real ones and those that carry loss), padding, data wait, time left.

    A context manager.
    """

    def __init__(
        self, total_steps: int, *, label: str = "train", console: Console | None = None, interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):  # fmt: skip
        super().__init__(label, total_steps, console=console, interval=interval, clock=clock)

    def update(
        self,
        step: int,
        *,
        loss: float,
        tokens_per_s: float = math.nan,
        loss_tokens_per_s: float = math.nan,
        padding: float = math.nan,
        data_wait: float = math.nan,
    ) -> None:
        """After `step` updates; `padding` is a share of the slots, `data_wait` of the time. What is NaN is left out."""
        self._pace.report(step)
        parts = [Part(f"{step:>{len(str(self._pace.total))}}/{self._pace.total}"), Part(f"loss {loss:.3f}", 2)]
        if math.isfinite(tokens_per_s):
            parts.append(Part(f"{quantity(tokens_per_s)} tok/s", 3))
        if math.isfinite(loss_tokens_per_s):
            parts.append(Part(f"{quantity(loss_tokens_per_s)} trained", 4))
        if math.isfinite(padding):
            parts.append(Part(f"padding {padding:.1%}", 6))
        if math.isfinite(data_wait):
            parts.append(Part(f"data wait {data_wait:.1%}", 5))
        self._display.show(step, [*parts, Part(f"{duration(self.seconds_left)} left", 1)])

    def of(self, name: str) -> "TrainProgress":
        """The display of the run, which is the only one."""
        return self

    def show(self, running: Collection[str]) -> None:
        """After a round, as for a group; a single run has shown its numbers already."""


class GroupProgress(StepsProgress):
    """Several runs that train together: their losses one beside the other, tokens per second of all. A context manager.

    A run reports through its `of(name)`, which has the methods of a `TrainProgress`; `show` is called once a round.
    """

    def __init__(
        self, total_steps: Mapping[str, int], *, console: Console | None = None, interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):  # fmt: skip
        """`total_steps`: by the names of the runs."""
        self.total, self.latest = total_steps, dict.fromkeys(total_steps, RoundNumbers())
        label, total = f"train {len(total_steps)} runs", sum(total_steps.values())
        super().__init__(label, total, console=console, interval=interval, clock=clock)

    def of(self, name: str) -> "RunProgress":
        """The part of the display in which one run reports."""
        return RunProgress(self, name)

    def show(self, running: Collection[str]) -> None:
        """After every running one has reported its step; the others' steps to come count as done."""
        steps = {name: numbers.step if name in running else self.total[name] for name, numbers in self.latest.items()}
        self._pace.report(sum(steps.values()))
        now = [self.latest[name] for name in running]
        if not now:
            return
        step, losses = max(numbers.step for numbers in now), [f"{numbers.loss:.3f}" for numbers in now]
        shown = " ".join(losses) if len(now) <= MOST_SHOWN else f"{min(losses, key=float)} to {max(losses, key=float)}"
        rate, trained = sum(n.tokens_per_s for n in now), sum(n.loss_tokens_per_s for n in now)
        most = max(self.total[name] for name in running)
        parts = [Part(f"{step:>{len(str(most))}}/{most}"), Part(f"{len(now)} running", 5)]
        parts += [Part(f"loss {shown}", 2), Part(f"{quantity(rate)} tok/s", 3), Part(f"{quantity(trained)} trained", 4)]
        self._display.show(self._pace.done, [*parts, Part(f"{duration(self.seconds_left)} left", 1)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundNumbers:
    """Numbers that a run of a group last reported."""

    step: int = 0
    loss: float = math.nan
    tokens_per_s: float = math.nan
    loss_tokens_per_s: float = math.nan
    padding: float = math.nan
    data_wait: float = math.nan


class RunProgress:
    """One run of a group, with the methods of a `TrainProgress`."""

    def __init__(self, group: GroupProgress, name: str):
        self._group, self._name = group, name

    def update(self, step: int, **numbers: float) -> None:
        """After `step` updates, with the numbers of `TrainProgress.update`; the group shows it with its round."""
        self._group.latest[self._name] = RoundNumbers(step=step, **numbers)

    def write(self, text: str) -> None:
        """Print a line that stays above the bar, with the run's name."""
        self._group.write(f"{self._name}: {text}")


class ItemProgress:
    """Tokenising, evaluating, generating: items done, rate, time left. A context manager."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str = "examples",
        console: Console | None = None,
        interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):
        self._display = Display(label, total, console=console, interval=interval, clock=clock)
        self._unit = unit
        self._pace = Pace(total, clock)
        self._pace.report(0)

    def __enter__(self) -> "ItemProgress":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.__exit__(*exception)

    def advance(self, items: int = 1) -> None:
        """`items` more are finished."""
        self._pace.report(self._pace.done + items)
        done = f"{self._pace.done:,}/{self._pace.total:,} {self._unit}"
        rate, left = f"{quantity(self._pace.rate)} {self._unit}/s", f"{duration(self._pace.seconds_left)} left"
        self._display.show(self._pace.done, [Part(done), Part(rate, 2), Part(left, 1)])

    def write(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._display.write(text)


def track(items: Iterable[Item], label: str, total: int, *, unit: str = "examples") -> Iterator[Item]:
    """Yield the items while showing how many are done."""
    with ItemProgress(label, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
