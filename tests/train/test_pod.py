"""Jobs on hosts without a shared disk: each process has a working folder, a home and a cache of its own."""

import pathlib
import shutil
import signal
import textwrap
import time

import pytest
from helpers import tiny_model
from local_job import finish, spawn
from run_records import timeless, weights

from jaxtune.runs.history import read_run

pytestmark = pytest.mark.xdist_group("processes")


def write_config(folder: pathlib.Path, steps: int) -> pathlib.Path:
    """A config for two devices; caches are where each process has its own."""
    tiny_model(folder / "base")
    path = folder / "config.py"
    path.write_text(
        textwrap.dedent(f"""
        import dataclasses
        import pathlib
        from helpers import tiny_config
        from jaxtune.evaluate import EvalConfig
        from jaxtune.mixture.settings import Budget
        from jaxtune.parallel.mesh import MeshConfig

        def config():
            config = tiny_config(pathlib.Path({str(folder)!r}), mesh=MeshConfig(fsdp=2, devices=2))
            return dataclasses.replace(
                config, data=dataclasses.replace(config.data, cache_dir=None), duration=Budget(steps={steps}),
                eval=EvalConfig(every=20, rows=4, generate=False),
            )
        """)
    )
    return path


def make_hosts(folder: pathlib.Path) -> list[pathlib.Path]:
    """Two empty disks."""
    hosts = [folder / "host0", folder / "host1"]
    for host in hosts:
        shutil.rmtree(host, ignore_errors=True)
        host.mkdir()
    return hosts


def wait_until(path: pathlib.Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)


def test_a_local_folder_that_only_process_0_sees_ends_the_job_in_seconds(tmp_path):
    config, hosts = write_config(tmp_path, 6), make_hosts(tmp_path)
    job = spawn(["-m", "jaxtune.cli", "train", config, "--run-dir", "runs/x"], 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [1, 1], logs
    for log in logs:
        assert "process 1 of this job cannot see the folder runs/x of process 0" in log
        assert "--run-dir gs://" in log
    assert not any(path.name != ".cache" for host in hosts for path in host.iterdir())


@pytest.mark.slow
def test_only_process_0_needs_the_run_folder(tmp_path):
    config, hosts = write_config(tmp_path, 40), make_hosts(tmp_path)
    command = ["-m", "jaxtune.cli", "train", config, "--run-dir", "runs/x", "--restartable"]
    command += ["--checkpoint.directory", tmp_path / "shared"]
    job = spawn(command, 2, hosts)
    wait_until(tmp_path / "shared" / "00000002" / "checkpoint.json")
    job[1].send_signal(signal.SIGTERM)
    logs = finish(job)
    assert [child.returncode for child in job] == [75, 75], logs
    assert not (hosts[1] / "runs").exists()
    shutil.rmtree(hosts[1])
    hosts[1].mkdir()
    job = spawn(command, 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0], logs
    assert "resuming the run" in logs[0]
    assert not (hosts[1] / "runs").exists()
    assert [row.step for row in read_run(hosts[0] / "runs" / "x").train] == list(range(1, 41))


@pytest.mark.slow
def test_a_job_that_loses_all_disks_goes_on_from_the_bucket_bit_for_bit(tmp_path):
    config, bucket = write_config(tmp_path, 20), tmp_path / "bucket"
    train = lambda name: ["-m", "jaxtune.cli", "train", config, "--run-dir", f"file://{bucket}/{name}", "--restartable"]
    hosts = make_hosts(tmp_path)
    job = spawn(train("whole"), 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0], logs
    assert f"run folder: file://{bucket}/whole" in logs[0]
    for host in hosts:
        assert {path.name for path in host.iterdir()} <= {".cache"}, "something was written outside the cache"
    assert not (hosts[1] / ".cache" / "jaxtune" / "runs").exists()

    hosts = make_hosts(tmp_path)
    job = spawn(train("killed"), 2, hosts)
    wait_until(bucket / "killed" / "checkpoints" / "00000002" / "checkpoint.json")
    for child in job:
        child.kill()
    finish(job)
    saved = sorted(path.name for path in (bucket / "killed" / "checkpoints").iterdir())
    assert saved[-1] < "00000020", "the run had ended before it was killed"
    hosts = make_hosts(tmp_path)
    job = spawn(train("killed"), 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0], logs
    assert "resuming the run" in logs[0]
    assert timeless(bucket / "killed") == timeless(bucket / "whole")
    assert weights(bucket / "killed") == weights(bucket / "whole")

    hosts = make_hosts(tmp_path)  # a run that is finished is so for hosts that know nothing of it
    job = spawn(train("whole"), 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [0, 0] and "nothing to resume" in logs[0], logs
    assert weights(bucket / "killed") == weights(bucket / "whole")


@pytest.mark.slow
def test_a_job_with_all_inputs_in_the_bucket_goes_on_there_on_another_number_of_hosts(tmp_path):
    config, bucket = write_config(tmp_path, 20), tmp_path / "bucket"
    shutil.copytree(tmp_path / "base", bucket / "base")
    shutil.rmtree(tmp_path / "base")
    command = ["-m", "jaxtune.cli", "train", config, "--run-dir", f"file://{bucket}/x", "--restartable"]
    command += ["--model.path", f"file://{bucket}/base", "--data.cache-dir", f"file://{bucket}/cache"]
    job = spawn(command, 2, make_hosts(tmp_path))
    wait_until(bucket / "x" / "checkpoints" / "00000002" / "checkpoint.json", 300.0)
    for child in job:
        child.kill()
    finish(job)
    [host, _] = make_hosts(tmp_path)
    [alone] = spawn([*command, "--mesh.fsdp", "1", "--mesh.devices", "1"], 1, [host])
    [log] = finish([alone])
    assert alone.returncode == 0, log
    assert "resuming the run" in log
    assert log.count("fetching tokens") == 4, "those of two tasks and two splits, which the first hosts had sent"
    assert f"fetching file://{bucket}/base into" in log
    assert [row.step for row in read_run(bucket / "x").train] == list(range(1, 21))
    assert {path.name for path in host.iterdir()} <= {".cache"}, "something was written outside the cache"
