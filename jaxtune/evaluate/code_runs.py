"""Answers that are programs: taken out of a model's text, run against tests in contained processes, and counted."""

import concurrent.futures
import dataclasses
import math
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Annotated

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.evaluate.contained import DONE
from jaxtune.terminal.display import Phase

CONTAINED = pathlib.Path(__file__).parent / "contained.py"
PASSED = "passed"
"""Outcome of a program whose tests all held."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """Running of programs that a model wrote: off unless asked for. Linux only."""

    run: bool = False
    """Run the answers of tasks whose metric is `pass_at_k`, each in a process that can read files and compute, but not
    write files, start processes or reach a network."""
    seconds: Annotated[float, Range(0.1, 3600)] = 10.0
    """Longest time of one program, its tests included."""
    memory_mb: Annotated[int, Range(64, 2**20)] = 1024
    """Most memory of one program, MB of address space."""

    def __post_init__(self):
        check_fields(self, "eval.code")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program and what tests it, run one after the other with the same names."""

    text: str = ""
    tests: str = ""


def run_programs(programs: Sequence[Program], limits: CodeConfig) -> list[str]:
    """Outcome of each program: `passed`, `failed: ERROR`, `out of time`, or `crashed: SIGNAL`.

    As many run at a time as there are cores. Raises UserError where programs cannot be contained on this machine.
    """
    with (
        Phase("running answers", len(programs), unit="programs") as phase,
        tempfile.TemporaryDirectory(prefix="jaxtune-code-") as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        outcomes = []
        for outcome in pool.map(lambda program: run_program(program, limits, folder), programs):
            outcomes.append(outcome)
            phase.advance(1)
    return outcomes


def check_containment(limits: CodeConfig) -> None:
    """Raise UserError where programs cannot be contained on this machine."""
    with tempfile.TemporaryDirectory(prefix="jaxtune-code-") as folder:
        outcome = run_program(Program(), dataclasses.replace(limits, seconds=60.0), folder)
    if outcome != PASSED:
        raise UserError(f"eval.code.run: an empty program {outcome} on this machine; raise eval.code.memory_mb")


def run_program(program: Program, limits: CodeConfig, folder: str) -> str:
    """Outcome of one program, which works in `folder`."""
    ours, theirs = socket.socketpair()
    late = threading.Event()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-s", "-P", str(CONTAINED), str(math.ceil(limits.seconds)), str(limits.memory_mb),
                 str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
                env={"PYTHONHASHSEED": "0", "PATH": os.defpath, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip

        def end() -> None:
            late.set()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

        watch = threading.Timer(limits.seconds, end)  # whatever it waits for, its end ends the waiting here
        watch.start()
        try:
            said = verdict(ours, program)
            ours.close()  # a process that still waits for a word ends
            process.wait()
        finally:
            watch.cancel()
            watch.join()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if said.startswith("uncontained: "):
        raise UserError(f"eval.code.run: programs cannot be contained on this machine: {said.partition(': ')[2]}")
    if late.is_set() or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "out of time"
    if said:
        return said
    return f"crashed: signal {-process.returncode}" if process.returncode < 0 else "failed: it left without a word"


def verdict(channel: socket.socket, program: Program) -> str:
    """Verdict of a process of `contained` on a program: `passed`, `failed: ERROR`, `uncontained: WHY`; "" for none.

    It has passed when it sends back a secret that it is told only after its tests.
    """
    secret = secrets.token_bytes(16)
    try:
        for part in (program.text.encode(errors="replace"), program.tests.encode(errors="replace"), secret):
            said = channel.recv(4096)
            if said != DONE:
                break
            channel.sendall(len(part).to_bytes(8, "big") + part)
        else:
            said = channel.recv(4096)
    except OSError:  # it ended while it was spoken to; its exit code tells why
        return ""
    if said == secret:
        return PASSED
    if said and not said.startswith((b"failed: ", b"uncontained: ")):
        return "failed: it wrote into the channel of its own result"
    return said.decode(errors="replace")


def program_of(answer: str) -> str:
    """The program in an answer: its last fenced block, else the whole text."""
    blocks = re.findall(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", answer, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else answer


def pass_at(k: int, samples: int, passed: int) -> float:
    """Probability that one of k answers drawn from `samples`, of which `passed` pass, passes (arXiv:2107.03374)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
