"""Worker processes end with the process that started them, also when that one is killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOKENIZING = """
    import sys, time
    from jaxtune.chat import TEMPLATES, Conversation, Message
    from jaxtune.chat.tokenizer import ByteTokenizer
    from jaxtune.data import jobs
    from jaxtune.data.encoding import Encoding
    from jaxtune.tasks import Task, from_list

    def slow(record):
        open(sys.argv[1], "w").close()
        time.sleep(600)
        return Conversation([Message("user", "a"), Message("assistant", "b")])

    if __name__ == "__main__":
        jobs.PART = 1
        task = Task(name="slow", splits={"train": from_list([{"n": n} for n in range(4)])}, templates=(slow,))
        encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=64)
        jobs.tokenize([task], "train", encoding, sys.argv[1] + ".cache", processes=2, show_progress=False)
"""
READING = """
    import sys, time
    from jaxtune.data.batches import batches
    from tests.data.test_batches import ByteTokenizer, Encoding, StepBatches, TEMPLATES, make_plan, make_tasks, tokenize

    if __name__ == "__main__":
        encoding = Encoding(template=TEMPLATES["chatml"], tokenizer=ByteTokenizer(), max_length=128)
        stores = tokenize(make_tasks(), "train", encoding, sys.argv[1] + ".cache", show_progress=False)
        ahead = batches(StepBatches(make_plan(stores), stores), workers=2)
        next(ahead)
        open(sys.argv[1], "w").close()
        time.sleep(600)
"""


def children(process: int) -> set[int]:
    """Processes below another one."""
    listed = [path for path in Path("/proc").glob("[0-9]*/stat")]
    found: set[int] = set()
    for path in listed:
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(fields[1]) == process:
            number = int(path.parent.name)
            found |= {number} | children(number)
    return found


def alive(process: int) -> bool:
    """Whether a process is there and no mere entry of a table."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("program", [TOKENIZING, READING], ids=["tokenizing", "reading ahead"])
def test_workers_end_when_their_parent_is_killed(program, tmp_path):
    file, busy = tmp_path / "program.py", tmp_path / "busy"
    file.write_text(textwrap.dedent(program))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")])
    parent = subprocess.Popen([sys.executable, file, busy], env={**os.environ, "PYTHONPATH": paths})
    until = time.monotonic() + 120
    while not busy.exists() and time.monotonic() < until and parent.poll() is None:
        time.sleep(0.05)
    assert busy.exists()
    workers = children(parent.pid)
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [worker for worker in workers if alive(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left
