"""Displays of long jobs: live lines in a terminal, plain lines elsewhere. Writes to stderr."""

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from jaxtune.terminal.foreign import TextConsole
from jaxtune.terminal.numbers import duration, quantity
from jaxtune.terminal.pace import Clock, Pace

Item = TypeVar("Item")

BAR = 24
"""Cells of a bar where a terminal is wide enough; half of them where it is narrow."""
NARROW = 100
"""Columns below which a terminal is narrow."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a line. Where a terminal is too narrow for all, those with the highest `rank` are left out."""

    text: str
    rank: int = 0


def fitting(parts: Sequence[Part], width: int) -> str:
    """The parts that fit into so many cells, in their order, two blanks between them; the most important always."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part.text) + 2 for part in kept) - 2 > width:
        worst = max(kept, key=lambda part: part.rank)
        kept.remove(worst)
    return "  ".join(part.text for part in kept)


class PartsColumn(ProgressColumn):
    """The text behind the bar: as many of the task's parts as there is room for."""

    def __init__(self, board: "Board"):
        self._board = board
        super().__init__()

    def render(self, task: Task) -> Text:
        """The parts that fit at the terminal's present width."""
        return Text(fitting(task.fields["parts"], self._board.room), no_wrap=True)


class Board:
    """The live lines at the foot of a terminal: one for each display that is open, drawn by rich.

    It is drawn until the last of its lines is closed, whichever of them opened it: a phase's line comes from a thread
    of its own, and may open after and close before or after the lines of what goes on inside the phase.
    """

    def __init__(self, console: Console):
        self.console = console
        self.bar = BarColumn(bar_width=BAR)
        columns = (SpinnerColumn(), TextColumn("[bold]{task.description}"), self.bar, PartsColumn(self))
        # what a program prints to a file or a pipe must not end in the terminal
        whole = sys.stdout is not None and sys.stdout.isatty()
        self.lines = Progress(*columns, console=console, refresh_per_second=4.0, redirect_stdout=whole)

    def open(self, label: str, total: int, parts: Sequence[Part]) -> TaskID:
        """A new line; the first one starts the drawing."""
        line = self.lines.add_task(label, total=total or None, parts=tuple(parts))
        self.lines.start()
        return line

    def close(self, line: TaskID, *, stays: bool) -> None:
        """End a line: as it is, if it `stays`, or without a trace. The last one ends the drawing."""
        others = len(self.lines.tasks) > 1
        if stays and others:
            [task] = [task for task in self.lines.tasks if task.id == line]
            self.console.print(self.lines.make_tasks_table([task]))
        if others or not stays:
            self.lines.remove_task(line)
        if not others:
            self.lines.live.transient = not stays
            self.lines.stop()

    @property
    def room(self) -> int:
        """Cells that spinner, labels and bar leave for a line's text; sets the bar's width too."""
        width = self.console.width
        self.bar.bar_width = BAR if width >= NARROW else BAR // 2
        label = max((len(task.description) for task in self.lines.tasks if task.visible), default=0)
        return width - label - self.bar.bar_width - len("s   ")


class Display:
    """One line of progress: a bar with text behind it, or that text as a plain line every `interval` seconds.

    A context manager; `write` prints a lasting line above the bars. The line of a display that is `transient`, or that
    is opened inside another and shares its terminal, vanishes at its end.
    """

    def __init__(
        self, label: str, total: int, *, console: Console | None = None, interval: float = 10.0,
        clock: Clock = time.monotonic, transient: bool = False,
    ):  # fmt: skip
        self.label, self.total, self._transient = label, total, transient
        outer = _SHOWN[-1].console if _SHOWN else None
        self.console = console or outer or TextConsole(stderr=True)
        self._interval, self._clock = interval, clock
        self._at_start = (Part(f"0/{total:,}"),) if total else ()
        self._last_line = -math.inf
        self._unprinted = ""
        self._board: Board | None = None
        self._first = False
        self._task: TaskID | None = None

    def __enter__(self) -> "Display":
        with _OPENING:
            outer = _SHOWN[-1] if _SHOWN else None
            if outer is not None and outer.console is self.console:
                self._board = outer._board
            elif self.console.is_terminal:
                self._board, self._first = Board(self.console), True
            if self._board is not None:
                self._task = self._board.open(self.label, self.total, self._at_start)
            _SHOWN.append(self)
        return self

    def __exit__(self, *unused: object) -> None:
        with _OPENING:
            _SHOWN.remove(self)
            if self._board is not None:
                assert self._task is not None
                self._board.close(self._task, stays=self._first and not self._transient)
        if self._board is None and self._unprinted:
            self._line(self._unprinted)

    def show(self, done: int, parts: Sequence[Part]) -> None:
        """`done` of the total are finished; `parts` say the rest."""
        if self._board is not None and self._task is not None:
            self._board.lines.update(self._task, completed=done, parts=tuple(parts))
            return
        text = "  ".join(part.text for part in parts)
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
"""Displays that are open, the innermost last."""
_OPENING = threading.Lock()
"""Held while a display is opened or closed: a phase does so in a thread of its own."""


class Phase:
    """Work that may take long and has no display of its own: what is quick says nothing.

    A context manager. In a terminal it is a live line from `first` seconds on, which vanishes at the end; elsewhere a
    line after `first` seconds, one every `interval` seconds, and its end. `total` and `advance` count items where there
    are some. `expected`: seconds that it will take, where that is known and its items cannot be counted.
    """

    def __init__(
        self, label: str, total: int = 0, *, unit: str = "", first: float = 2.0, interval: float = 10.0,
        expected: float = math.nan,
    ):  # fmt: skip
        self._label, self._total, self._unit, self._expected = label, total, unit, expected
        self._first, self._interval = first, interval
        self._pace = Pace(total, time.monotonic)
        self._over = threading.Event()
        self._spoke = False
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> "Phase":
        self._started, self._outside = time.monotonic(), len(_SHOWN)
        self._pace.report(0)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        self._over.set()
        self._thread.join()
        if self._spoke and kind is None:
            self._line("done")

    def advance(self, items: int = 1) -> None:
        """`items` more are finished."""
        self._pace.report(self._pace.done + items)

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _parts(self) -> list[Part]:
        """How far it is: counted, or estimated from the time that is expected."""
        if not self._total:
            return []
        if math.isfinite(self._expected):
            done = min(self._total - 1, int(self._total * self._elapsed / self._expected))
            return [Part(f"about {done:,} of {self._total:,} {self._unit}")]
        parts = [Part(f"{self._pace.done:,} of {self._total:,} {self._unit}")]
        if math.isfinite(self._pace.seconds_left):
            parts += [Part(f"{quantity(self._pace.rate)}/s", 3), Part(f"{duration(self._pace.seconds_left)} left", 1)]
        return parts

    def _speak(self) -> None:
        """The thread that says how far the work is."""
        if self._over.wait(self._first):
            return
        console = _SHOWN[-1].console if _SHOWN else TextConsole(stderr=True)
        if not console.is_terminal:
            while True:
                if len(_SHOWN) == self._outside:  # else what goes on inside speaks for itself
                    self._line(", ".join(part.text for part in self._parts()) or "...")
                if self._over.wait(self._interval):
                    return
        with Display(self._label, self._total, console=console, transient=True) as display:
            while True:
                display.show(self._pace.done, [*self._parts(), Part(duration(self._elapsed), 2)])
                if self._over.wait(0.5):
                    return

    def _line(self, text: str) -> None:
        self._spoke = True
        line = f"{self._label}: {text}, {duration(self._elapsed)}"
        if _SHOWN:
            _SHOWN[-1].write(line)
        else:
            TextConsole(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
