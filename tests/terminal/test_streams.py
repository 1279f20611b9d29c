"""A run outlives its terminal: closed and full streams end no program, and no file takes the number of one."""

import subprocess
import sys

PROGRAM = """
import os, sys
from jaxtune.terminal import streams
streams.open_closed()
handle = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
assert handle > 2, handle
with streams.surviving("stdout", "stderr"):
    for _ in range(3):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
        sys.stdout.flush()
    os.write(2, b"a library's line")
os.write(handle, b"done")
"""


def run(tmp_path, redirection: str) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    line = f'"{sys.executable}" "{program}" "{tmp_path}/out" {redirection}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


def test_a_program_goes_on_without_its_streams(tmp_path):
    for redirection in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "| true", "2> >(true)"):
        (tmp_path / "out").unlink(missing_ok=True)
        done = run(tmp_path, redirection)
        assert done.returncode == 0, (redirection, done.stderr[-500:])
        assert (tmp_path / "out").read_text() == "done", redirection


def test_streams_that_work_get_everything(tmp_path):
    done = run(tmp_path, "")
    assert done.stdout == ("x" * 100_000 + "\n") * 3
    assert done.stderr == ("y" * 100_000 + "\n") * 3 + "a library's line"
