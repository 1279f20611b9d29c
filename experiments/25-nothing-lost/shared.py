"""What all areas of the campaign share: log of cases, commands as child processes, the project that is attacked."""

import contextlib
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtune.parallel.compilation import COMPILED_FAST, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "06-kill-and-resume"))
# Compiling is most of a short run. All commands are compiled alike, so that bits can be compared.
os.environ.setdefault("XLA_FLAGS", flags(COMPILED_FAST))
killing = importlib.import_module("kill")
"""The script of 06-kill-and-resume: its project and its reading of a run's end."""

SECONDS, MEMORY = 120, 12 << 30
"""Bounds of a command: wall-clock time, and address space (JAX maps a few GB that it does not use)."""
STACKS = signal.SIGUSR1
"""On this signal a child writes into its log where its threads are."""
CRASHED = 99
"""Exit code of a command that raised: a traceback, which is a bug."""


MODULES = (
    *(
        "jaxtune.cli",
        "jaxtune.train.run",
        "jaxtune.verify",
        "jaxtune.preview",
        "jaxtune.sweep.run",
        "jaxtune.hf.inspection",
    ),
    *("jaxtune.validate", "jaxtune.validate.experiment", "jaxtune.reports.sweep", "tokenizers", "pyarrow.parquet"),
)
"""Imported once, for all children."""


@dataclasses.dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    text: str
    seconds: float
    timed_out: bool

    @property
    def crashed(self) -> bool:
        """Whether it ended by a traceback, a signal or the time limit."""
        return (
            self.timed_out or self.code < 0 or self.code == CRASHED or "Traceback (most recent call last)" in self.text
        )

    @property
    def refused(self) -> bool:
        """Whether it ended with a message and the exit code of unusable input or usage."""
        return not self.crashed and self.code in (1, 2)

    def in_short(self) -> str:
        """The last lines, for the log."""
        how = "too slow; " if self.timed_out else ""
        return f"{how}exit {self.code}: {' | '.join(self.text.strip().splitlines()[-4:])[-600:]}"


class Log:
    """The cases that were tried, one JSON line each; a campaign that is started again goes on behind the last one."""

    folder: pathlib.Path | None = None
    """Where the campaign works; its path is left out of what is written down."""

    def __init__(self, path: pathlib.Path, most: int):
        self.path, self.left = path, most
        lines = path.read_text().splitlines() if path.exists() else []
        self.cases = {(case["area"], case["case"]): case for case in map(json.loads, lines)}

    def wants(self, area: str, case: str) -> bool:
        """Whether a case is still to be tried, and may be tried in this call."""
        return (area, case) not in self.cases and self.left > 0

    def add(self, area: str, case: str, kind: str, right: bool, said: str, *, tried: int = 1) -> None:
        """Write one case down. `tried`: how many attacks it consists of."""
        said = said.replace(f"{self.folder}/", "") if self.folder is not None else said
        line = {"area": area, "case": case, "kind": kind, "tried": tried, "right": right, "said": said}
        self.cases[area, case] = line
        self.left -= tried
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        mark = "right" if right else "LOST "
        done = sum(one["tried"] for (where, _), one in self.cases.items() if where == area)
        print(f"{mark} {area} {done:4d} {kind}, {case}: {said[:160]}", flush=True)


def start(command: Callable[[], int], output: pathlib.Path, environ: Mapping[str, str] | None = None) -> int:
    """A child process that runs a function with its output appended to a file; modules are imported already."""
    child = os.fork()
    if child:
        return child
    code = CRASHED
    try:
        os.setpgid(0, 0)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environ or {})
        faulthandler.register(STACKS, file=2, all_threads=True)
        code = command()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or on a full device, as the case wants it
                stream.flush()
        os._exit(code)


def jaxtune(*arguments: object) -> Callable[[], int]:
    """`jaxtune ...` as a function."""

    def command() -> int:
        from jaxtune import cli

        return cli.main([str(argument) for argument in arguments])

    return command


def run(
    command: Callable[[], int], output: pathlib.Path, *, seconds: float = SECONDS, memory: int = MEMORY,
    before: Callable[[], object] | None = None, environ: Mapping[str, str] | None = None,
) -> Said:  # fmt: skip
    """Run a function in a child process within bounds; `before` is called there first."""

    def bounded() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if before is not None:
            before()
        return command()

    output.unlink(missing_ok=True)
    begun = time.monotonic()
    child = start(bounded, output, environ)
    code = None
    while code is None and time.monotonic() < begun + seconds:
        code = killing.ended(child)
        time.sleep(0.002)
    timed_out = code is None
    if code is None:
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = output.read_bytes().decode(errors="replace") if output.exists() else ""
    return Said(code, text, time.monotonic() - begun, timed_out)


def in_child(function: Callable[[], Any], place: pathlib.Path) -> Any:
    """The JSON value that a function returns in a child process: making arrays starts threads, which forbid forks."""
    answer = place / "answer.json"

    def command() -> int:
        answer.write_text(json.dumps(function()))
        return 0

    said = run(command, place / "answer.log", seconds=600)
    assert said.code == 0, said.text
    return json.loads(answer.read_text())


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """The project of 06-kill-and-resume in `folder`, made once; returns its config file."""
    for name in MODULES:
        importlib.import_module(name)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    if not config.exists():
        shutil.rmtree(folder / "making", ignore_errors=True)
        (folder / "making").mkdir()
        in_child(lambda: str(killing.write_project(folder / "making")), folder)
        for path in (folder / "making").iterdir():
            path.rename(folder / path.name)
    return config


def end_of(config: pathlib.Path, run_dir: pathlib.Path) -> dict[str, Any]:
    """What must be equal in two runs: every leaf of the last state, metrics, summary, model, answers; clocks aside."""
    end = in_child(lambda: killing.read_end(config, run_dir), run_dir.parent)
    end["summary"].pop("trained_with", None)
    return end


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of what differs in two ends."""
    return [key for key in expected if found.get(key) != expected[key]]


def quick(*arguments: object) -> Sequence[object]:
    """Options of runs that shall be short: 24 steps."""
    return (*arguments, "--duration.steps", 24)
