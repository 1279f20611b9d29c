"""Programs that a model wrote: taken from its text, contained while they run, and counted."""

import itertools
import math
import os
import pathlib
import subprocess
import sys

import pytest

from jaxtune.errors import UserError
from jaxtune.evaluate import code_runs, contained
from jaxtune.evaluate.code_runs import CodeConfig, Program, check_containment, pass_at, program_of, run_programs


def ends(texts, limits, tests=""):
    return run_programs([Program(text=text, tests=tests) for text in texts], limits)


LIMITS = CodeConfig(run=True, seconds=20.0, memory_mb=400)
linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")

ENDS = {
    "assert sorted([2, 1]) == [1, 2]": "passed",
    "import math, re, random, datetime, heapq": "passed",
    "assert 1 == 2, 'no'": "failed: AssertionError: no",
    "raise SystemExit(0)": "failed: SystemExit: 0",
    "import os; os._exit(0)": "failed: it left without a word",
    "def f(:": "failed: SyntaxError",
    "x = [0] * 10**10": "failed: MemoryError",
    "import ctypes; ctypes.string_at(0)": "crashed: signal 11",
}
REFUSED = {
    "a process": "import os; os.fork()",
    "a shell": "import subprocess; subprocess.run(['ls'])",
    "another program": "import os; os.execv('/bin/true', ['true'])",
    "a file here": "open('f', 'w')",
    "a file elsewhere": "open({victim!r}, 'a')",
    "a lost file": "import os; os.unlink({victim!r})",
    "an emptied file": "import os; os.truncate({victim!r}, 0)",
    "a folder": "import os; os.mkdir('d')",
    "a socket": "import socket; socket.socket()",
    "a signal to the parent": "import os; os.kill(os.getppid(), 9)",
    "memory as a file": "import os; os.memfd_create('m')",
}


@linux
def test_programs_end_as_they_should_and_what_would_do_harm_is_refused(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    harmful = [text.format(victim=str(victim)) for text in REFUSED.values()]
    found = ends([*ENDS, *harmful], LIMITS)
    for said, expected in zip(found, ENDS.values(), strict=False):
        assert said.startswith(expected), (said, expected)
    for name, said in zip(REFUSED, found[len(ENDS) :], strict=True):
        assert said.startswith("failed: PermissionError: [Errno 1]"), (name, said)
    assert victim.read_text() == "kept"


@linux
def test_loops_sleep_and_floods_of_print_end_in_time_and_leave_no_process():
    fast = CodeConfig(run=True, seconds=1.5, memory_mb=400)
    slow = ["while True: pass", "import time; time.sleep(600)", "while True: print('x' * 10**6)"]
    assert ends(slow, fast) == ["out of time"] * 3
    running = [pathlib.Path(one, "cmdline") for one in pathlib.Path("/proc").glob("[0-9]*")]
    children = [path for path in running if path.exists() and b"contained.py" in path.read_bytes()]
    mine = [path for path in children if f"\nPPid:\t{os.getpid()}\n" in path.with_name("status").read_text()]
    assert not mine


EVERYWHERE = """import os
for fd in range(3, 64):
    try:
        os.write(fd, {said!r})
    except OSError:
        pass
"""
LEAVE = "os._exit(0)"
FORGED = {
    "the word": EVERYWHERE.format(said=b"passed") + LEAVE,
    "that it is done with the program": EVERYWHERE.format(said=contained.DONE) + LEAVE,
    "that it is done with all": EVERYWHERE.format(said=contained.DONE * 3) + LEAVE,
    "one time too often": EVERYWHERE.format(said=contained.DONE),
}


@linux
def test_an_answer_gives_no_verdict_on_itself():
    for name, said in zip(FORGED, ends(FORGED.values(), LIMITS, "assert False"), strict=True):
        assert said.startswith("failed: "), (name, said)
    assert ends(["import os; os.write = os.read = os._exit = None"], LIMITS, "assert os") == ["passed"]
    assert ends(["import os; os.closerange(3, 64)"], LIMITS) == ["failed: it left without a word"]
    assert ends(["input()"], LIMITS) == ["failed: EOFError: EOF when reading a line"]
    assert ends(["x = '" + "y" * 2**20 + "'"], LIMITS, "assert len(x) == 2**20\n" + "#" * 2**20) == ["passed"]


@linux
def test_the_filter_refuses_calls_of_other_tables_and_other_machines_are_told(monkeypatch):
    monkeypatch.setattr(contained.platform, "machine", lambda: "s390x")
    assert contained.contain() == "no list of calls for linux on s390x"
    for table in contained.TABLES.values():
        program = contained.call_filter(table)
        assert len(program) < 4096  # the kernel's limit
        for place, (code, true, false, _) in enumerate(program):  # every jump ends inside the program
            assert code == contained.RETURN or place + 1 + max(true, false) < len(program)


def test_where_programs_cannot_be_contained_nothing_runs(tmp_path, monkeypatch):
    script = tmp_path / "contained.py"
    script.write_text("import os, sys\nos.write(int(sys.argv[3]), b'uncontained: no seccomp here')\n")
    monkeypatch.setattr(code_runs, "CONTAINED", script)
    with pytest.raises(UserError, match="cannot be contained on this machine: no seccomp here"):
        check_containment(LIMITS)
    script.write_text("raise SystemExit(1)")
    with pytest.raises(UserError, match="an empty program failed: it left without a word"):
        check_containment(LIMITS)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\na = 1\n```\nbetter:\n```py\nb = 2\n```", "b = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("1. so\n   ```python\n   x = 1\n   ```", "   x = 1\n"),
    ],
)
def test_the_program_of_an_answer_is_its_last_block(answer, program):
    assert program_of(answer) == program


@pytest.mark.parametrize(("k", "n", "c"), [(1, 5, 2), (3, 5, 2), (5, 5, 0), (2, 4, 4), (3, 4, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_program_that_passes(k, n, c):
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at(k, n, c) == pytest.approx(sum(map(max, draws)) / len(draws))
    assert math.comb(n, k) == len(draws)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seconds", 0.0, r"eval.code.seconds is 0.0; it must be a number in \[0.1, 3600\]"),
        ("memory_mb", 1, "memory_mb"),
    ],
)
def test_limits_have_ranges(field, value, said):
    with pytest.raises(UserError, match=said):
        CodeConfig(**{field: value})


def test_the_script_needs_nothing_but_the_standard_library():
    code = f"import runpy, sys; sys.argv = ['x']; runpy.run_path({str(code_runs.CONTAINED)!r}, run_name='m')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
