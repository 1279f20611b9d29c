"""Jobs of several processes: real ones on this machine, joined by JAX's runtime, stopped and killed."""

import errno
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import distributed_worker as worker
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from local_job import finish, spawn, wait_for

from jaxtune.errors import UserError
from jaxtune.parallel import job as distributed
from jaxtune.parallel import sharding
from jaxtune.parallel.job import Place, Source
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.storage.faults import foreseen

pytestmark = pytest.mark.xdist_group("processes")  # they fill the machine: one at a time


def launch(folder: pathlib.Path, processes: int, *options: str) -> list[subprocess.Popen]:
    return spawn([worker.__file__, folder, *options], processes)


def records(folder: pathlib.Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("process_*.json"))]


def alone(steps: int) -> tuple[list[float], str]:
    """Losses and final weights of the same training by one process on four devices."""
    mesh = make_mesh(MeshConfig(fsdp=2, devices=4))
    state = worker.State(jnp.zeros((), jnp.int32), {"w": jnp.ones((worker.SEQ, 4))})
    losses = []
    for step in range(steps):
        x = sharding.put_batch(mesh, worker.batch(step, np.arange(worker.ROWS)), worker.ROWS)
        state, loss = jax.jit(worker.update)(state, x)
        losses.append(float(loss))
    return losses, hashlib.sha256(np.asarray(state.params["w"]).tobytes()).hexdigest()


def check_batches(found: list[dict]) -> None:
    """Every process held its own rows of the same global batches, bit for bit, and together they held all rows."""
    rows = [row for record in found for row in record["rows"]]
    assert sorted(rows) == list(range(worker.ROWS))
    for record in found:
        for step, first, digest in record["batches"]:
            held = worker.ROWS // 4  # rows of each of the four devices
            whole = worker.batch(step, np.arange(worker.ROWS))
            assert hashlib.sha256(whole[first : first + held].tobytes()).hexdigest() == digest


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Two processes train until SIGTERM reaches one; four go on, and one of them is killed; four finish."""
    folder = tmp_path_factory.mktemp("job")
    job = launch(folder, 2, "--steps", "1000", "--pause", "0.02")
    wait_for(job[1], "step 4 done")
    job[1].send_signal(signal.SIGTERM)
    stopped = finish(job), [child.returncode for child in job], records(folder)
    step = stopped[2][0]["saved"]
    four = ("--pause", "0.02", "--devices", "1")
    job = launch(folder, 4, "--steps", "1000", "--kill-at", str(step + 3), *four)
    killed = finish(job), [child.returncode for child in job]
    job = launch(folder, 4, "--steps", str(step + 5), *four)
    finished = finish(job), [child.returncode for child in job], records(folder)
    return folder, step, stopped, killed, finished


def test_a_stop_signal_to_one_process_stops_all_after_the_same_step(story):
    _, step, (logs, codes, found), _, _ = story
    assert codes == [distributed.EXIT_STOPPED] * 2, logs
    assert [record["saved"] for record in found] == [step, step]
    assert [len(record["losses"]) for record in found] == [step, step]


def test_two_processes_see_the_batches_and_the_losses_of_one(story):
    _, step, (_, _, found), _, _ = story
    check_batches(found)
    assert found[0]["losses"] == found[1]["losses"]
    np.testing.assert_allclose(found[0]["losses"], alone(step)[0], rtol=1e-6)


def test_a_decision_of_process_0_is_everyones(story):
    _, _, (_, _, found), _, _ = story
    assert [record["extra"] for record in found] == [{"decided": 0.5}] * 2


def test_there_is_one_checkpoint_and_four_processes_resume_from_that_of_two(story):
    folder, step, _, _, (logs, codes, found) = story
    assert codes == [0] * 4, logs
    assert [record["start"] for record in found] == [step] * 4
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [step, step + 5]
        assert checkpoints.problems(step) == checkpoints.problems(step + 5) == []


def test_each_process_digests_what_it_wrote_and_process_0_reads_nobodys_arrays(story):
    """The document is that of one process that reads all; what remains for process 0 is small."""
    folder, step, (_, _, two), _, (_, _, four) = story
    for at, found in ((step, two), (step + 5, four)):
        files = json.loads((folder / "checkpoints" / f"{at:08d}" / "checkpoint.json").read_text())["files"]
        read = [record["digested"] for record in found]
        assert {name: digest for own in read for name, digest in own.items()} == files
        assert sum(map(len, read)) == len(files), "no file is read twice"
        for process, own in enumerate(read):
            shares = [int(name[1]) for path in own if (name := re.search(r"ocdbt\.process_(\d+)/d/", path))]
            assert set(shares) == {process}, "each wrote a part of the weights"


def test_four_processes_see_the_batches_and_the_losses_of_one(story):
    _, step, _, _, (_, _, found) = story
    check_batches(found)
    assert all(record["losses"] == found[0]["losses"] and record["w"] == found[0]["w"] for record in found)
    np.testing.assert_allclose(found[0]["losses"], alone(step + 5)[0][step:], rtol=1e-6)


def test_when_a_process_is_killed_all_others_say_so_and_leave(story):
    """Process 0 holds the job together: once it has left, JAX's runtime may end the rest before they notice."""
    _, _, _, (logs, codes), _ = story
    assert codes[:2] == [distributed.EXIT_HOST_LOST, -signal.SIGKILL], logs
    assert set(codes[2:]) <= {distributed.EXIT_HOST_LOST, -signal.SIGABRT}, logs
    assert "process 0 of 4: another process of this job died" in logs[0]
    assert "--resume" in logs[0] and "Traceback" not in logs[0]
    assert all(re.search("another (task|process)", logs[process]) for process in (2, 3)), logs


def test_bad_input_on_one_process_ends_all_and_its_message_is_printed_once(tmp_path):
    job = launch(tmp_path, 2, "--steps", "1000", "--pause", "0.02", "--fail-at", "2", "--devices", "1")
    logs = finish(job)
    assert [child.returncode for child in job] == [distributed.EXIT_HOST_LOST, 1], logs
    assert "process 1 of 2: file data.jsonl, line 7: no JSON" in logs[1] and "Traceback" not in logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_save_that_fails_on_one_process_ends_all_with_its_reason(tmp_path, victim):
    begin = time.monotonic()
    job = launch(tmp_path, 2, "--steps", "2", "--devices", "1", "--unread", str(victim))
    logs = finish(job)
    assert time.monotonic() - begin < 90, "nobody waits for the hour that a save may take"
    assert all(child.returncode for child in job), logs
    assert "the disk of this process is broken" in logs[victim]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_for_a_dead_one_is_ended_within_the_heartbeat(tmp_path, victim):
    """With several devices in a process a lost peer leaves its collective operations hanging; the runtime ends it."""
    job = launch(tmp_path, 2, "--steps", "1000", "--pause", "0.02")
    wait_for(job[victim], "step 3 done")
    job[victim].kill()
    survivor = job[1 - victim]
    output = survivor.communicate(timeout=60)[0]
    finish([job[victim]])
    assert survivor.returncode in (-signal.SIGABRT, distributed.EXIT_HOST_LOST)
    assert re.search("another (task|process)", output)


DIES = """
import os, sys
import jax
from jaxtune.parallel import job
if os.environ["JAXTUNE_PROCESS"] == sys.argv[1]:
    jax.distributed.initialize = lambda *_, **__: os._exit(9)
job.start(job.detect(os.environ), heartbeat_seconds=10, timeout_seconds=60)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_between_the_call_and_joining_ends_the_other_in_one_line(victim):
    begin = time.monotonic()
    job = spawn(["-c", DIES, victim], 2)
    logs = finish(job)
    assert time.monotonic() - begin < 40, "it does not wait for the time of the start to be over"
    assert [child.returncode for child in job] == [9, distributed.EXIT_HOST_LOST][:: 1 - 2 * victim], logs
    line = f"process {1 - victim} of 2: process {victim} ended before all had joined; start the job again"
    assert logs[1 - victim].strip() == line


SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        (
            SLURM,
            Place(source=Source.SLURM, coordinator="gpu003:61444", processes=16, process=9, local_devices=(1,)),
        ),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            Place(source=Source.SLURM, coordinator="gpu003:61444", processes=2, process=1),
        ),
        (
            {**SLURM, "JAXTUNE_COORDINATOR": "a:1", "JAXTUNE_PROCESSES": "4", "JAXTUNE_PROCESS": "3"},
            Place(source=Source.VARIABLES, coordinator="a:1", processes=4, process=3),
        ),
        (
            {"JAXTUNE_COORDINATOR": "job-0.pods:1234", "JAXTUNE_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"},
            Place(source=Source.VARIABLES, coordinator="job-0.pods:1234", processes=4, process=2),
        ),
    ],
)
def test_a_process_finds_its_place(environ, place, monkeypatch):
    """Machines without TPUs."""
    monkeypatch.setattr(distributed, "_on_tpu", lambda: False)
    assert distributed.detect(environ) == place


GKE = {
    "TPU_SKIP_MDS_QUERY": "true", "TPU_WORKER_ID": "3", "TPU_ACCELERATOR_TYPE": "v5p-32", "TPU_TOPOLOGY": "2x2x4",
    "TPU_WORKER_HOSTNAMES": "job-0-0.job,job-0-1.job,job-0-2.job,job-0-3.job", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}  # fmt: skip
ALONE_ON_GKE = GKE | {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_TOPOLOGY": "2x2x1"}
COLAB = {
    "COLAB_RELEASE_TAG": "release-colab_20260801", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
}  # fmt: skip
ENVIRONMENTS = {
    "Compute Engine": ({"HOME": "/root"}, Source.TPU),
    "GKE, one slice of four hosts": (GKE, Source.TPU),
    "GKE, an index of the job and nothing for jaxtune": (GKE | {"JOB_COMPLETION_INDEX": "3"}, Source.TPU),
    "GKE, one host": (ALONE_ON_GKE, None),
    "GKE, two slices of one host": (
        ALONE_ON_GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"},
        Source.TPU,
    ),
    "GKE, one slice of a kind that names slices": (ALONE_ON_GKE | {"MEGASCALE_NUM_SLICES": "1"}, None),
    "Colab": (COLAB, None),
    "Kaggle": ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "TPU_PROCESS_ADDRESSES": "local"}, None),
    "Slurm on hosts with TPUs": (SLURM | {"TPU_SKIP_MDS_QUERY": "1"}, Source.SLURM),
    "metadata switched off, nothing else said": ({"TPU_SKIP_MDS_QUERY": "1"}, None),
}


@pytest.mark.parametrize(("environ", "source"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_host_with_tpus_knows_whether_it_is_one_of_several(environ, source, monkeypatch):
    monkeypatch.setattr(distributed, "_on_tpu", lambda: True)
    place = distributed.detect(environ)
    assert (None if place is None else place.source) == source
    monkeypatch.setattr(distributed, "_on_tpu", lambda: False)  # a pod beside it, without devices
    place = distributed.detect(environ)
    assert place is None or place.source is Source.SLURM


def test_arguments_come_first_and_tpu_metadata_before_slurm(monkeypatch):
    monkeypatch.setattr(distributed, "_on_tpu", lambda: True)
    assert distributed.detect(SLURM) == Place(source=Source.TPU)
    skipped = distributed.detect(SLURM | {"TPU_SKIP_MDS_QUERY": "1"})
    assert skipped is not None and skipped.source is Source.SLURM
    given = distributed.detect(SLURM, coordinator="h:9", processes=2, process=0)
    assert given == Place(source=Source.ARGUMENTS, coordinator="h:9", processes=2, process=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "h:9", "process": 1}, "missing: --processes"),
        ({"coordinator": "h", "processes": 2, "process": 1}, "host:port of process 0, .*got 'h'"),
        ({"coordinator": "h:9", "processes": 2, "process": 2}, "this is process 2 of 2"),
        ({"coordinator": "h:65536", "processes": 2, "process": 1}, r"the port in \[1, 65535\], got 'h:65536'"),
        ({"coordinator": f"h:{'9' * 40}", "processes": 2, "process": 1}, "host:port of process 0"),
        ({"coordinator": "\x1b[2J:1", "processes": 2, "process": 1}, r"host:port of process 0, .* got '\\x1b\[2J:1'"),
        ({"coordinator": "h:9", "processes": 10**30, "process": 0}, "a job has between 1 and 100000 processes"),
    ],
)
def test_an_incomplete_or_impossible_place_is_a_user_error(given, message):
    with pytest.raises(UserError, match=message):
        distributed.detect({}, **given)


@pytest.mark.parametrize("given", [{"heartbeat_seconds": 0}, {"timeout_seconds": -1}, {"timeout_seconds": 10**12}])
def test_times_that_no_job_can_have_are_refused_before_anybody_is_called(given):
    with pytest.raises(UserError, match=r"--(heartbeat|start)-seconds is -?\d+; it must be .* \[1, 86400\]"):
        distributed.start(None, **given)


def test_variables_that_are_no_numbers_or_incomplete_are_user_errors():
    with pytest.raises(UserError, match="missing: JAXTUNE_PROCESS$"):
        distributed.detect({"JAXTUNE_COORDINATOR": "h:9", "JAXTUNE_PROCESSES": "2"})
    with pytest.raises(UserError, match="must be integers"):
        distributed.detect({"JAXTUNE_COORDINATOR": "h:9", "JAXTUNE_PROCESSES": "two", "JAXTUNE_PROCESS": "0"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("a[1,3]b,c", "a1b"),
        ("x-1-[07-9]", "x-1-07"),
    ],
)
def test_the_first_slurm_host_is_read(nodes, first):
    assert distributed.first_host(nodes) == first


def test_a_process_alone_stops_when_asked(capfd):
    before = signal.getsignal(signal.SIGTERM)
    for number, code in ((signal.SIGTERM, distributed.EXIT_STOPPED), (signal.SIGINT, 130)):
        with distributed.StopSignal() as stop:
            assert not stop.after(1)
            os.kill(os.getpid(), number)
            assert stop.after(2) and stop.exit_code == code
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1


BUSY = """
import hashlib, sys
from jaxtune.parallel.job import StopSignal

with StopSignal() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # many minutes outside Python, where it runs no signal handler
print("went on")
"""


def test_signals_are_answered_and_a_second_interrupt_leaves_while_the_devices_are_busy():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", BUSY], **pipes) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            assert child.stderr is not None
            answer = next(line for line in iter(child.stderr.readline, "") if line.strip())
            assert answer.startswith(
                "SIGINT: stopping after the step that is being computed, then saving a checkpoint."
            )
            assert "Ctrl-C again leaves at once" in answer
            child.send_signal(signal.SIGINT)
            assert child.wait(timeout=60) == 130
            assert "leaving at once" in child.stderr.read() and child.stdout.read() == ""
        finally:
            child.kill()


def test_a_process_alone_keeps_its_exceptions_and_decisions():
    with pytest.raises(KeyError, match="bug"), distributed.Guard():
        raise KeyError("bug")
    assert distributed.from_main(1 / 3) == 1 / 3
    assert distributed.is_main()
    distributed.barrier("alone")


def test_only_communication_errors_blame_another_process():
    lost = distributed._verdict(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    assert lost is not None and lost[0] == distributed.EXIT_HOST_LOST and "Gloo all-reduce failed" in lost[1]
    assert distributed._verdict(ValueError("shapes differ")) is None
    assert distributed._verdict(UserError("connection closed")) == (1, "connection closed")


@pytest.mark.parametrize(
    "error, code, said, traced",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a/x"), 74, "/runs/a/x: no space is left", False),
        (RuntimeError("UNAVAILABLE: heartbeat"), distributed.EXIT_HOST_LOST, "another process of this job died", False),
        (UserError("no such file"), 1, "no such file", False),
        (KeyboardInterrupt(), 130, "interrupted", False),
        (KeyError("bug"), 1, "KeyError; the other processes of this job stop as well", True),
    ],
)
def test_a_process_of_a_job_says_what_ended_it_and_shows_tracebacks_of_bugs_alone(
    error, code, said, traced, monkeypatch, capsys
):
    left = []
    monkeypatch.setattr(distributed, "_in_job", lambda: True)
    monkeypatch.setattr(distributed.os, "_exit", left.append)
    with pytest.raises(type(error)), distributed.Guard(foreseen):
        raise error
    told = capsys.readouterr().err
    assert left == [code] and f"process 0 of 1: {said}" in told
    assert ("Traceback" in told) == traced
