"""`jaxtune sweep` as a job of two real processes without a shared disk: the runs of one process, arm by arm."""

import csv
import json
import pathlib
import shutil
import signal
import textwrap
import time

import pytest
from helpers import tiny_model
from local_job import finish, spawn
from run_records import timeless, weights

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]

GRID = ["--grid", "optim.peak_lr=1e-2,3e-3,1e-3"]
NAMES = ["peak_lr=1e-2_seed=0", "peak_lr=3e-3_seed=0", "peak_lr=1e-3_seed=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and a config for two devices; each process has its caches where it has its home."""
    folder = tmp_path_factory.mktemp("sweep-job")
    tiny_model(folder / "base")
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        import dataclasses
        import pathlib
        from helpers import tiny_config
        from jaxtune.parallel.mesh import MeshConfig

        def config():
            config = tiny_config(pathlib.Path({str(folder)!r}), mesh=MeshConfig(fsdp=2, devices=2))
            return dataclasses.replace(
                config, data=dataclasses.replace(config.data, cache_dir=None),
                eval=dataclasses.replace(config.eval, generate=False),
            )
        """)
    )
    return folder


def make_hosts(folder: pathlib.Path, count: int = 2) -> list[pathlib.Path]:
    """Empty disks."""
    hosts = [folder / f"host{i}" for i in range(count)]
    for host in hosts:
        shutil.rmtree(host, ignore_errors=True)
        host.mkdir(parents=True)
    return hosts


def sweep(place: pathlib.Path, sweep_dir: object, *more: object) -> list[object]:
    return ["-m", "jaxtune.cli", "sweep", place / "config.py", "--sweep-dir", sweep_dir, *GRID, *more]


def assert_same_runs(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Every run of two sweep folders has the same rows and the same weights, bit for bit."""
    assert sorted(path.name for path in (ours / "runs").iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert timeless(ours / "runs" / name) == timeless(theirs / "runs" / name), name
        assert weights(ours / "runs" / name) == weights(theirs / "runs" / name), name
    rows = list(csv.DictReader((ours / "results.csv").read_text().splitlines()))
    assert len(rows) == 3 and {row["status"] for row in rows} == {"finished"}


@pytest.fixture(scope="module")
def alone(place):
    """The sweep in one process with two devices."""
    [host] = make_hosts(place / "alone", 1)
    [child] = spawn(sweep(place, place / "alone" / "s"), 1, [host], devices=2)
    [log] = finish([child])
    assert child.returncode == 0, log
    return place / "alone" / "s"


def test_all_processes_train_each_run_together_and_lose_nothing_with_their_disks(place, alone, tmp_path):
    command, bucket = sweep(place, f"file://{tmp_path}/bucket/s"), tmp_path / "bucket" / "s"
    job = spawn(command, 2, make_hosts(tmp_path))
    wait_for_checkpoint(bucket, NAMES[1])
    job[1].send_signal(signal.SIGTERM)
    logs = finish(job)
    assert [child.returncode for child in job] == [75, 75], logs
    assert "stopped; the same command continues" in logs[0]
    hosts = make_hosts(tmp_path)
    job = spawn(command, 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0], logs
    assert f"{NAMES[0]}: finished before" in logs[0] and f"{NAMES[1]}: goes on from its last checkpoint" in logs[0]
    assert NAMES[0] not in logs[1], "process 0 tells"
    assert_same_runs(bucket, alone)
    for host in hosts:
        files = [path.relative_to(host) for path in host.rglob("*") if path.is_file()]  # matplotlib makes empty folders
        assert not [path for path in files if path.parts[0] != ".cache"], "something was written outside the cache"
    assert not (hosts[1] / ".cache" / "jaxtune" / "runs").exists(), "only process 0 needs the folder"


def wait_for_checkpoint(bucket: pathlib.Path, name: str) -> None:
    until = time.monotonic() + 300
    while not list(bucket.glob(f"runs/{name}/checkpoints/*/checkpoint.json")):
        assert time.monotonic() < until, f"{name} was not saved"
        time.sleep(0.02)


def test_stacked_runs_train_side_by_side_on_two_hosts_with_the_bits_of_one_process(place, tmp_path):
    side_by_side = ["--mesh.fsdp", "1", "--mesh.trial", "2", "--stacked"]
    [host] = make_hosts(tmp_path / "one", 1)
    [child] = spawn(sweep(place, tmp_path / "one" / "s", *side_by_side), 1, [host], devices=2)
    job = spawn(sweep(place, f"file://{tmp_path}/bucket/s", *side_by_side), 2, make_hosts(tmp_path))
    logs = finish(job)
    assert [process.returncode for process in job] == [0, 0], logs
    assert logs[0].count("together with 2 others") == 3
    [log] = finish([child])
    assert child.returncode == 0, log
    assert_same_runs(tmp_path / "bucket" / "s", tmp_path / "one" / "s")


REFUSALS = [
    (["--mesh.fsdp", "3", "--mesh.devices", "-1"], "needs a multiple of 3 devices, but there are 2; change the axes"),
    ([], "process 1 of this job cannot see the folder runs/s of process 0"),
]


@pytest.mark.parametrize(("more", "message"), REFUSALS, ids=["mesh", "disks"])
def test_what_cannot_be_is_told_in_one_line_on_every_host(place, tmp_path, more, message):
    hosts = make_hosts(tmp_path)
    job = spawn(sweep(place, "runs/s", *more), 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [1, 1], logs
    for number, log in enumerate(logs):
        [told] = [line for line in log.splitlines() if f"process {number} of 2: " in line]
        assert message in told
        assert "Traceback" not in log
    assert not any(path.name != ".cache" for host in hosts for path in host.iterdir())


def test_processes_that_are_asked_for_other_runs_are_told_so(place, tmp_path):
    hosts = make_hosts(tmp_path)
    for number, host in enumerate(hosts):
        (host / "arms.jsonl").write_text(json.dumps({"overrides": {"optim.peak_lr": f"1e-{number + 2}"}}) + "\n")
    command = ["-m", "jaxtune.cli", "sweep", place / "config.py", "--sweep-dir", f"file://{tmp_path}/bucket/s"]
    job = spawn([*command, "--arms", "arms.jsonl"], 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [1, 1], logs
    assert all("process 1 differs from process 0 in runs" in log for log in logs)
    assert not (tmp_path / "bucket").exists()
