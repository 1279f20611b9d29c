"""Tokenising by two processes of a job without a shared disk: each does its share, both have all of it."""

import json

import pytest
from local_job import finish, spawn

from jaxtune.data import jobs
from jaxtune.data.jobs import tokenize
from jaxtune.storage.stores import Store

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]

WORKER = """
import json, os, pathlib, sys
import jax
from jaxtune.data import jobs
from jaxtune.data.jobs import tokenize
from jaxtune.data.together import tokenize_together
from jaxtune.parallel import job
from jaxtune.storage import faults
from jaxtune.storage.stores import Store
from test_together import encoding, tasks

jobs.PART = 4
job.start(job.detect(os.environ))
honest, seen = jobs.encode_records, []

def noting(task, split, records, encoding):
    seen.append([task.name, records[0]])
    return honest(task, split, records, encoding)

jobs.encode_records = noting
with job.Guard(faults.foreseen):
    bad = sys.argv[2] == "bad" and jax.process_index() == 1
    made, shared, folder = tasks(bad), Store(sys.argv[1], "tokens"), pathlib.Path("cache")
    tokenize_together(made, "train", encoding(), folder, shared, show_progress=False)
    stores = tokenize(made, "train", encoding(), folder, show_progress=False, shared=shared)
    print("DONE", json.dumps([sorted(seen), {name: store.fingerprint for name, store in stores.items()}]))
"""


def tasks(bad: bool = False):
    """Two tasks of 21 and 9 records; with a `bad` one, other data."""
    from test_jobs import sums

    return [sums(22 if bad else 21, name="large"), sums(9, name="small")]


def encoding():
    """Settings of the tokens."""
    from test_jobs import encoding

    return encoding()


def run(tmp_path, kind="good"):
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    job = spawn([tmp_path / "worker.py", f"file://{tmp_path}/bucket", kind], 2, hosts, folders=["data"])
    logs = finish(job)
    return [child.returncode for child in job], logs


def test_each_process_does_its_share_and_has_the_tokens_of_one_process_alone(tmp_path, monkeypatch):
    codes, logs = run(tmp_path)
    assert codes == [0, 0], logs
    found = [json.loads(log.split("DONE ")[1].splitlines()[0]) for log in logs]
    done = [{(task, first) for task, first in parts} for parts, _ in found]
    every = {("large", 4 * k) for k in range(6)} | {("small", 4 * k) for k in range(3)}
    assert done[0] | done[1] == every and not done[0] & done[1] and abs(len(done[0]) - len(done[1])) <= 1
    monkeypatch.setattr(jobs, "PART", 4)
    alone = tokenize(tasks(), "train", encoding(), tmp_path / "alone", show_progress=False)
    assert found[0][1] == found[1][1] == {name: store.fingerprint for name, store in alone.items()}
    left = Store(f"file://{tmp_path}/bucket").names()
    assert not [name for name in left if ".parts/" in name], "parts that were joined are no use"


def test_a_process_with_other_data_ends_the_job_on_both(tmp_path):
    codes, logs = run(tmp_path, "bad")
    assert codes == [1, 1], logs
    assert "process 1 of 2: this process has other data" in logs[1]
    assert "process 0 of 2: process 1 of this job could not tokenise its share" in logs[0]
