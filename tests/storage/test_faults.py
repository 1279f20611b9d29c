"""Faults of the disk become one line with place and remedy, wherever they are met; what was written before stays."""

import errno
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from jaxtune import cli, commands
from jaxtune.storage import faults
from jaxtune.storage.faults import describe_fault

WRITERS = {
    "write_json": "documents.write_json(folder / 'old.json', {'a': 'b' * 5000})",
    "write_sealed": "documents.write_sealed(folder / 'old.json', {'a': 'b' * 5000})",
    "metrics": "JsonlTracker(folder).log({'kind': 'train', 'step': 1, 'text': 'b' * 5000})",
    "token part": "part.write(folder / 'old.json', 10)",
    "token store": "store.merge([folder / 'part'], folder / 'store', task='a', split='train', facts={})",
    "sweep": "sweep.write_results(folder / 'sweep')",
}
PROGRAM = """
import pathlib, resource, sys
import numpy as np
import toy_runs
from jaxtune.data import store
from jaxtune.runs.tracker import JsonlTracker
from jaxtune.storage import documents
from jaxtune.storage.faults import describe_fault
from jaxtune.sweep import run as sweep
folder = pathlib.Path(sys.argv[1])
sizes = np.full((1, 1), 2000, np.int32)
part = store.Part(tokens=np.zeros(2000, np.int32), weights=np.ones(2000, np.float32), lengths=sizes,
                  loss_lengths=sizes, response_lengths=sizes, records=np.zeros(1, np.int64), outcomes={"used": 1})
part.write(folder / "part", 10)
toy_runs.write_toy_sweep(folder / "sweep", steps=6)
documents.write_json(folder / "old.json", {"whole": True})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for number, statement in enumerate(sys.argv[2:]):
    try:
        exec(statement)
        print("no fault")
    except OSError as error:
        print(describe_fault(error))
"""


@pytest.mark.parametrize("code", sorted(faults.FAULTS))
def test_every_fault_is_told_with_place_and_remedy_however_it_is_wrapped(tmp_path, code):
    said = OSError(code, os.strerror(code), str(tmp_path / "file"))
    try:
        try:
            raise said
        except OSError as error:
            raise RuntimeError("a library failed") from error
    except RuntimeError as error:
        wrapped = error
    as_text = ValueError(f"INTERNAL: Error writing '{tmp_path}/file': {os.strerror(code)} [source locations ...]")
    for error in (said, wrapped, ExceptionGroup("several", [ValueError("other"), said]), as_text):
        told = describe_fault(error)
        assert told is not None and told.startswith(f"{tmp_path}/file: {faults.FAULTS[code][0]}"), told
        assert told.endswith(faults.FAULTS[code][1]) and "\n" not in told
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert "MB are free" in str(describe_fault(said)) and "--resume" in str(describe_fault(said))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no such file", "x"), ValueError("bad value"), KeyError("x"), OSError()]
)
def test_bugs_stay_bugs(error):
    assert describe_fault(error) is None


def test_the_command_line_tells_a_fault_in_one_line(tmp_path, monkeypatch, capsys):
    def full(arguments):
        raise RuntimeError("saving failed") from OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(commands, "run_mix", full)
    assert cli.main(["mix", "--sizes", "a=1"]) == 74
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/x: no space is left") and said.count("\n") == 1

    def no_path(arguments):
        raise OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300)

    monkeypatch.setattr(commands, "run_mix", no_path)
    assert cli.main(["mix", "--sizes", "a=1"]) == 1
    assert "the name is too long; give a shorter path" in capsys.readouterr().err

    def bug(arguments):
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    monkeypatch.setattr(commands, "run_mix", bug)
    with pytest.raises(FileNotFoundError):
        cli.main(["mix", "--sizes", "a=1"])


class Dropped:
    """An object that raises while nobody can catch it."""

    def __init__(self, error: BaseException):
        self.error = error

    def __del__(self):
        raise self.error


def raise_in_thread(error: BaseException) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def log(error: BaseException) -> None:
    logging.getLogger("absl").error("saving failed", exc_info=error)


@pytest.fixture
def of_python(monkeypatch, capsys):
    """The hooks and filters as Python has them, and again afterwards."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    for name in faults.FaultsOfThreads.LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setattr(logging.getLogger("absl"), "handlers", [logging.lastResort])


@pytest.mark.parametrize("way", [Dropped, raise_in_thread, log])
def test_what_threads_meet_of_a_fault_is_shown_unless_the_command_tells_it(of_python, monkeypatch, capsys, way):
    full, closed, bug = OSError(errno.ENOSPC, "No space left"), RuntimeError("Event loop is closed"), KeyError("a bug")

    def in_threads(arguments):
        for error in (full, closed, bug):
            way(error)
        print("the command ends", file=sys.stderr)
        if arguments.json:
            raise full

    monkeypatch.setattr(commands, "run_mix", in_threads)
    assert cli.main(["mix", "--sizes", "a=1"]) == 0
    before, after = capsys.readouterr().err.split("the command ends")
    assert "KeyError: 'a bug'" in before and "No space left" not in before and "closed" not in before
    assert "OSError: [Errno 28] No space left" in after and "RuntimeError: Event loop is closed" in after
    assert cli.main(["mix", "--sizes", "a=1", "--json"]) == 74
    way(closed)  # while the interpreter ends
    before, after = capsys.readouterr().err.split("the command ends")
    assert "KeyError: 'a bug'" in before and "No space left" not in before and "closed" not in before
    assert after.startswith("\nerror: ") and after.count("\n") == 2


def test_a_fault_that_names_no_file_is_told_with_the_folder(tmp_path):
    unnamed = [OSError(errno.ENOSPC, "No space left on device"), ValueError("INTERNAL: No space left on device [..]")]
    for error in unnamed:
        with pytest.raises(OSError) as told, faults.faults_at(tmp_path / "run"):
            raise error
        assert str(describe_fault(told.value)).startswith(f"{tmp_path}/run: no space is left on the device (")
    named = ValueError(f"INTERNAL: Error writing '{tmp_path}/file': No space left on device")
    for error in (named, ValueError("bad value"), KeyError("x")):
        with pytest.raises(type(error)) as same, faults.faults_at(tmp_path / "run"):
            raise error
        assert same.value is error


def test_every_writer_names_its_file_and_leaves_the_old_one_whole(tmp_path):
    paths = {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, *WRITERS.values()],
        capture_output=True, text=True, env=os.environ | paths, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = dict(zip(WRITERS, done.stdout.splitlines(), strict=True))
    for name, line in told.items():
        assert line.startswith(f"{tmp_path}/") and "may not grow that large" in line, (name, line)
    assert json.loads((tmp_path / "old.json").read_text()) == {"whole": True}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written is left"
    assert not (tmp_path / "store").exists()
