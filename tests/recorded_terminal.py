"""A program run on a pseudo-terminal of a given width, and what stood on its screen at each moment."""

import codecs
import dataclasses
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path

_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")

_CUT = re.compile(r"\x1b(\[[0-9;?]*)?$")
"""An escape sequence whose end has not come yet."""


class Screen:
    """As much of a terminal as progress bars need: text that wraps, returns, moves up, erased lines."""

    def __init__(self, columns: int):
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        """Take output; an escape sequence that is cut in two is not expected."""
        for argument, command, back, down, shown in _PIECE.findall(text):
            if back:
                self.column = 0
            elif down:
                self._down()
            elif command == "A":
                self.row = max(0, self.row - int(argument or 1))
            elif command == "K":
                line = self.lines[self.row]
                self.lines[self.row] = "" if argument == "2" else line[: self.column]
            for char in shown:
                self._put(char)

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, char: str) -> None:
        if self.column == self.columns:
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
        self.column += 1

    @property
    def text(self) -> str:
        """What stands there."""
        return "\n".join(line.rstrip() for line in self.lines)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Screens of a program, each with the seconds since its start, where something on it had changed."""

    screens: Sequence[tuple[float, str]]
    code: int

    @property
    def longest_silence(self) -> tuple[float, str]:
        """The most seconds in which nothing changed, and the last line that stood there."""
        pairs = zip(self.screens, self.screens[1:], strict=False)
        gaps = [(later - earlier, text.strip().rpartition("\n")[2]) for (earlier, text), (later, _) in pairs]
        return max(gaps)

    @property
    def bars(self) -> list[str]:
        """Every line with a bar that ever stood there."""
        lines = {line for _, text in self.screens for line in text.split("\n") if "━" in line}
        return sorted(lines)


def record(command: Sequence[str], *, columns: int, folder: Path, seconds: float) -> Recording:
    """Run a program on a terminal of so many columns until it ends, at most so many seconds."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    started = time.monotonic()
    program = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
    )
    os.close(theirs)
    screen, rest, screens = Screen(columns), "", [(0.0, "")]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while time.monotonic() - started < seconds:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            output = os.read(ours, 65536)
        except OSError:  # the program has closed its side
            break
        rest += decoder.decode(output)
        cut = _CUT.search(rest)
        whole = rest[: cut.start()] if cut else rest
        rest = rest[len(whole) :]
        screen.feed(whole)
        if select.select([ours], [], [], 0.01)[0]:
            continue  # a screen is looked at between two writes, not in the middle of one
        if screen.text != screens[-1][1]:
            screens.append((time.monotonic() - started, screen.text))
    os.close(ours)
    program.kill()
    code = program.wait()
    screens.append((time.monotonic() - started, screen.text + "\n"))
    return Recording(screens=screens, code=code)
