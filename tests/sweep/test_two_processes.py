"""Two processes work on one sweep folder: each run is trained by one of them, once."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from helpers import tiny_model

TESTS = pathlib.Path(__file__).parent.parent
CONFIG = """
import dataclasses
import pathlib

from helpers import tiny_config


def config():
    found = tiny_config(pathlib.Path({folder!r}))
    return dataclasses.replace(found, eval=dataclasses.replace(found.eval, generate=False))
"""


@pytest.mark.slow
def test_each_run_of_a_grid_is_trained_once_by_one_of_two_processes(tmp_path):
    tiny_model(tmp_path / "base")
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    grid = ["--grid", "optim.peak_lr=1e-2,3e-3,1e-3", "mixture.temperature=1,inf"]
    command = [sys.executable, "-m", "jaxtune", "sweep", str(tmp_path / "config.py")]
    command += ["--sweep-dir", str(tmp_path / "s"), *grid]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    started = [
        subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=500) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    trained = [re.findall(r"^\[\d/6\] (\S+)$", out, re.MULTILINE) for out, _ in outputs]
    names = sorted(path.name for path in (tmp_path / "s" / "runs").iterdir())
    assert len(names) == 6 and sorted(trained[0] + trained[1]) == names, "every run once, by one of the two"
    assert all(trained), "both found something to do"
    for name in names:
        lines = (tmp_path / "s" / "runs" / name / "metrics.jsonl").read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]
        assert steps == [1, 2, 3, 4, 5, 6]
    rooms = {(tmp_path / "s" / "runs" / name / "program.json").read_text() for name in names}
    assert len(rooms) == 1, "both processes put all runs into one room"
    rows = list(csv.DictReader((tmp_path / "s" / "results.csv").read_text().splitlines()))
    assert len(rows) == 6 and {row["status"] for row in rows} == {"finished"}
