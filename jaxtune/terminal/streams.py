"""The standard streams of a program that must outlive its terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class Surviving:
    """A text stream whose reader may go away: what cannot be written any more is dropped, and the program goes on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Method of a text stream; never raises OSError."""
        try:
            self._stream.write(text)
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Method of a text stream; never raises OSError."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """From now on the descriptor leads nowhere, for libraries that write to it by number as well."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def open_closed() -> None:
    """Let standard streams that were closed by the caller lead nowhere.

    Else the next file that is opened would get the number 1 or 2, and what is printed would be written into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def surviving(*names: str) -> Iterator[None]:
    """Inside the block the streams `stdout`, `stderr`, whichever are named, cannot end the program."""
    before = {name: getattr(sys, name) for name in names}
    for name, stream in before.items():
        setattr(sys, name, Surviving(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            with contextlib.suppress(ValueError):  # closed meanwhile
                getattr(sys, name).flush()
            setattr(sys, name, stream)
