"""Two processes work on one sweep folder: each run is trained by one of them, once."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
from helpers import tiny_model
from run_records import timeless

TESTS = pathlib.Path(__file__).parent.parent
CONFIG = """
import dataclasses
import pathlib

from helpers import tiny_config


def config():
    found = tiny_config(pathlib.Path({folder!r}))
    changes = dict(eval=dataclasses.replace(found.eval, generate=False))
    return dataclasses.replace(found, data=dataclasses.replace(found.data, cache_dir=None), **changes)
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


def on_host(host: pathlib.Path, config: pathlib.Path, sweep_dir: str) -> subprocess.Popen:
    """The sweep's command on a host with a working folder, a home and a cache of its own."""
    work, home, cache = (host / name for name in ("work", "home", "cache"))
    for folder in (work, home):
        folder.mkdir(parents=True)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-m", "jaxtune", "sweep", str(config), "--sweep-dir", sweep_dir]
    command += ["--grid", "optim.peak_lr=1e-2,3e-3,1e-3"]
    return subprocess.Popen(
        command, cwd=work, env=os.environ | {"PYTHONPATH": paths, "HOME": str(home), "JAXTUNE_CACHE": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_hosts_without_a_shared_disk_share_a_sweep_in_a_bucket_bit_for_bit_as_one_host_alone(tmp_path):
    tiny_model(tmp_path / "base")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=str(tmp_path)))
    bucket = f"file://{tmp_path}/bucket/s"
    killed = on_host(tmp_path / "killed", config, bucket)
    runs = tmp_path / "bucket" / "s" / "runs"
    until = time.monotonic() + 300
    while not list(runs.glob("*/checkpoints/*/checkpoint.json")) and time.monotonic() < until:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    [claimed] = [path.parent.name for path in runs.glob("*/.writer")]
    hosts = [on_host(tmp_path / name, config, bucket) for name in ("one", "two")]
    outputs = [process.communicate(timeout=500) for process in hosts]
    assert [process.returncode for process in hosts] == [0, 0], outputs
    trained = [re.findall(r"^\[\d/3\] (\S+)$", out, re.MULTILINE) for out, _ in outputs]
    names = sorted(path.name for path in runs.iterdir())
    assert len(names) == 3 and sorted(trained[0] + trained[1]) == names and all(trained)
    assert f"{claimed}: goes on from its last checkpoint" in outputs[0][0] + outputs[1][0]
    alone = on_host(tmp_path / "alone", config, str(tmp_path / "local"))
    assert alone.communicate(timeout=500) and alone.returncode == 0
    for name in names:
        here, there = tmp_path / "local" / "runs" / name, runs / name
        assert timeless(there) == timeless(here)
        assert (there / "model/model.safetensors").read_bytes() == (here / "model/model.safetensors").read_bytes()
    rows = list(csv.DictReader((tmp_path / "bucket" / "s" / "results.csv").read_text().splitlines()))
    assert len(rows) == 3 and not list(runs.glob("*/.writer"))
    assert not list((tmp_path / "one" / "work").iterdir()), "something was written outside the cache"
