"""Answers that are programs: taken out of a model's text, run against tests in contained processes, and counted."""

import concurrent.futures
import dataclasses
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Annotated

from jaxtune.errors import Range, UserError, check_fields
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


def run_programs(programs: Sequence[str], limits: CodeConfig) -> list[str]:
    """Outcome of each program: `passed`, `failed: ERROR`, `out of time`, or `crashed: SIGNAL`.

    As many run at a time as there are cores. Raises UserError where programs cannot be contained on this machine.
    """
    with (
        Phase("running answers", len(programs), unit="programs") as phase,
        tempfile.TemporaryDirectory(prefix="jaxtune-code-") as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        outcomes = []
        for outcome in pool.map(lambda text: run_program(text, limits, folder), programs):
            outcomes.append(outcome)
            phase.advance(1)
    return outcomes


def check_containment(limits: CodeConfig) -> None:
    """Raise UserError where programs cannot be contained on this machine."""
    with tempfile.TemporaryDirectory(prefix="jaxtune-code-") as folder:
        outcome = run_program("", dataclasses.replace(limits, seconds=60.0), folder)
    if outcome != PASSED:
        raise UserError(f"eval.code.run: an empty program {outcome} on this machine; raise eval.code.memory_mb")


def run_program(text: str, limits: CodeConfig, folder: str) -> str:
    """Outcome of one program, which works in `folder`."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(CONTAINED), str(math.ceil(limits.seconds)), str(limits.memory_mb),
             str(writing)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
            env={"PYTHONHASHSEED": "0", "PATH": os.defpath, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(writing,), start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        writing = -1
        late = False
        try:
            process.communicate(text.encode(errors="replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = os.read(reading, 4096).decode(errors="replace")
    finally:
        os.close(reading)
        if writing != -1:
            os.close(writing)
    if said.startswith("uncontained"):
        raise UserError(f"eval.code.run: programs cannot be contained on this machine: {said.partition(': ')[2]}")
    if late or process.returncode == -signal.SIGXCPU or process.returncode == -signal.SIGKILL:
        return "out of time"
    if said:
        return said
    return f"crashed: signal {-process.returncode}" if process.returncode < 0 else "failed: it left without a word"


def program_of(answer: str) -> str:
    """The program in an answer: its last fenced block, else the whole text."""
    blocks = re.findall(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", answer, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else answer


def pass_at(k: int, samples: int, passed: int) -> float:
    """Probability that one of k answers drawn from `samples`, of which `passed` pass, passes (arXiv:2107.03374)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
