"""Progress of a long job: a live bar in a terminal, one line every few seconds anywhere else. Writes to stderr."""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxtune.terminal.foreign import TextConsole
from jaxtune.terminal.numbers import duration, quantity

Item = TypeVar("Item")
Clock = Callable[[], float]

MOST_SHOWN = 6
"""Runs of a group whose losses are shown one by one."""
WINDOW = 60.0
"""Seconds of history that a rate is taken from."""
LEAST_REPORTS = 20
"""Reports that it is taken from at least, so that a validation is not taken for the pace."""


class Pace:
    """Items per second over the last minute or the last twenty reports, and the seconds left.

    The clock starts at the first report, not at the start of the job, so compiling the first step is not counted.
    """

    def __init__(self, total: int, clock: Clock):
        self.total = total
        self.done = 0
        self._clock = clock
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def report(self, done: int) -> None:
        """`done` items of the total are finished now."""
        self.done = done
        self._seen.append((self._clock(), done))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW and len(self._seen) > LEAST_REPORTS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Items per second; NaN before the second report."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return math.nan
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start)

    @property
    def seconds_left(self) -> float:
        """Seconds until the total at the present rate; NaN when unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 else math.nan


class Display:
    """A bar with one line of text behind it, or that text as a plain line every `interval` seconds.

    A context manager; `write` prints a lasting line above the bar.
    """

    def __init__(self, label: str, total: int, *, console: Console | None, interval: float, clock: Clock):
        self.label = label
        self.total = total
        self.console = console if console is not None else TextConsole(stderr=True)
        self._interval = interval
        self._clock = clock
        self._last_line = -math.inf
        self._unprinted = ""
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24))
            self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console)
            self._task = self._bar.add_task(label, total=total, text="")

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        _SHOWN.append(self)
        return self

    def __exit__(self, *unused: object) -> None:
        _SHOWN.remove(self)
        if self._bar is not None:
            self._bar.stop()
        elif self._unprinted:
            self._line(self._unprinted)

    def show(self, done: int, text: str) -> None:
        """`done` of the total are finished; `text` says the rest."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
            return
        self._unprinted = text
        if done >= self.total or self._clock() - self._last_line >= self._interval:
            self._line(text)

    def write(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self._last_line = self._clock()
        self._unprinted = ""
        self.write(f"{self.label}  {text}")


_SHOWN: list[Display] = []
"""Displays that are open, the innermost last: lines of a `Phase` go above its bar."""


class Phase:
    """Work without a bar of its own: a line after `first` seconds, then one every `interval` seconds, and its end.

    A context manager; what is quick says nothing. `total` and `advance` count items where there are some.
    """

    def __init__(self, label: str, total: int = 0, *, unit: str = "", first: float = 2.0, interval: float = 10.0):
        self._label, self._total, self._unit = label, total, unit
        self._first, self._interval = first, interval
        self._done = 0
        self._over = threading.Event()
        self._spoke = False
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> "Phase":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        self._over.set()
        self._thread.join()
        if self._spoke and kind is None:
            self._line("done")

    def advance(self, items: int = 1) -> None:
        """`items` more are finished."""
        self._done += items

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def _speak(self) -> None:
        wait = self._first
        while not self._over.wait(wait):
            self._line(f"{self._done:,} of {self._total:,} {self._unit}" if self._total else "...")
            wait = self._interval

    def _line(self, text: str) -> None:
        self._spoke = True
        line = f"{self._label}: {text}, {duration(time.monotonic() - self._started)}"
        if _SHOWN:
            _SHOWN[-1].write(line)
        else:
            Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


class TrainProgress:
    """Training: step, loss, tokens per second (all real ones and those that carry loss), padding, data wait, time left.

    A context manager.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        label: str = "train",
        console: Console | None = None,
        interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):
        self._display = Display(label, total_steps, console=console, interval=interval, clock=clock)
        self._pace = Pace(total_steps, clock)

    def __enter__(self) -> "TrainProgress":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.__exit__(*exception)

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
        parts = [f"{step:>{len(str(self._pace.total))}}/{self._pace.total}", f"loss {loss:.3f}"]
        if math.isfinite(tokens_per_s):
            parts.append(f"{quantity(tokens_per_s)} tok/s ({quantity(loss_tokens_per_s)} trained)")
        if math.isfinite(padding):
            parts.append(f"padding {padding:.1%}")
        if math.isfinite(data_wait):
            parts.append(f"data wait {data_wait:.1%}")
        parts.append(f"{duration(self._pace.seconds_left)} left")
        self._display.show(step, "  ".join(parts))

    def of(self, name: str) -> "TrainProgress":
        """Display of the only run."""
        return self

    def show(self, running: Collection[str]) -> None:
        """After a round, as for a group; a single run has shown its numbers already."""

    def write(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._display.write(text)


class GroupProgress:
    """Several runs that train together: their losses one beside the other, tokens per second of all. A context manager.

    A run reports through its `of(name)`, which has the methods of a `TrainProgress`; `show` is called once a round.
    """

    def __init__(
        self,
        names: Sequence[str],
        total_steps: int,
        *,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Clock = time.monotonic,
    ):
        self.total, self.latest = total_steps, dict.fromkeys(names, RoundNumbers())
        total = total_steps * len(names)
        self._display = Display(f"train {len(names)} runs", total, console=console, interval=interval, clock=clock)
        self._pace = Pace(total, clock)

    def __enter__(self) -> "GroupProgress":
        self._display.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.__exit__(*exception)

    def of(self, name: str) -> "RunProgress":
        """Display of one run of the group."""
        return RunProgress(self, name)

    def show(self, running: Collection[str]) -> None:
        """After every running one has reported its step; the others' steps to come count as done."""
        steps = {name: numbers.step if name in running else self.total for name, numbers in self.latest.items()}
        self._pace.report(sum(steps.values()))
        now = [self.latest[name] for name in running]
        if not now:
            return
        step, losses = max(numbers.step for numbers in now), [f"{numbers.loss:.3f}" for numbers in now]
        shown = " ".join(losses) if len(now) <= MOST_SHOWN else f"{min(losses, key=float)} to {max(losses, key=float)}"
        parts = [f"{step:>{len(str(self.total))}}/{self.total}", f"{len(now)} running", f"loss {shown}"]
        rate, trained = sum(n.tokens_per_s for n in now), sum(n.loss_tokens_per_s for n in now)
        parts.append(f"{quantity(rate)} tok/s ({quantity(trained)} trained)")
        parts.append(f"{duration(self._pace.seconds_left)} left")
        self._display.show(self._pace.done, "  ".join(parts))

    def write(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._display.write(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundNumbers:
    """Last report of a run of a group."""

    step: int = 0
    loss: float = math.nan
    tokens_per_s: float = math.nan
    loss_tokens_per_s: float = math.nan


class RunProgress:
    """One run of a group, with the methods of a `TrainProgress`."""

    def __init__(self, group: GroupProgress, name: str):
        self._group, self._name = group, name

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
        """After `step` updates; the group shows it with its round."""
        self._group.latest[self._name] = RoundNumbers(
            step=step, loss=loss, tokens_per_s=tokens_per_s, loss_tokens_per_s=loss_tokens_per_s
        )

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
        rate, left = quantity(self._pace.rate), duration(self._pace.seconds_left)
        done = f"{self._pace.done:,}/{self._pace.total:,} {self._unit}"
        self._display.show(self._pace.done, f"{done}  {rate} {self._unit}/s  {left} left")

    def write(self, text: str) -> None:
        """Print a line that stays above the bar."""
        self._display.write(text)


def track(items: Iterable[Item], label: str, total: int, *, unit: str = "examples") -> Iterator[Item]:
    """Yield the items while showing how many are done."""
    with ItemProgress(label, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
