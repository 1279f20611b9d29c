"""`jaxtune train` as a job of four real processes: one run folder, the numbers of one process, one end."""

import json
import textwrap

import pytest
from helpers import tiny_model
from local_job import finish, spawn

from jaxtune import config
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.runs.history import read_run
from jaxtune.train import run as train
from jaxtune.train.run import Status

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]  # four processes fill the machine

PROCESSES = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and a config for four devices whose minimum change no run reaches: the second validation ends it."""
    folder = tmp_path_factory.mktemp("job")
    tiny_model(folder / "base")
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        import pathlib
        from helpers import tiny_config
        from jaxtune.config import BatchConfig, EarlyStoppingConfig
        from jaxtune.evaluate import EvalConfig
        from jaxtune.parallel.mesh import MeshConfig

        def config():
            return tiny_config(
                pathlib.Path({str(folder)!r}),
                batch=BatchConfig(rows=4),
                mesh=MeshConfig(data=2, fsdp=2, devices={PROCESSES}),
                eval=EvalConfig(every=2, rows=4, generate=False),
                early_stopping=EarlyStoppingConfig(patience=1, min_change=100.0),
            )
        """)
    )
    return folder


def test_four_processes_train_as_one(place):
    command = ["-m", "jaxtune.cli", "train", place / "config.py", "--run-dir", place / "job"]
    job = spawn(command, PROCESSES)
    logs = finish(job)
    assert [child.returncode for child in job] == [0] * PROCESSES, logs
    assert ["run folder:" in log for log in logs] == [True, False, False, False]  # the summary is printed once

    alone = train.train(config.load(place / "config.py"), place / "alone")
    ours, theirs = read_run(place / "job"), read_run(alone.run_dir)
    assert [row.step for row in ours.train] == [row.step for row in theirs.train] == [1, 2, 3, 4]
    assert [row.step for row in ours.evals] == [row.step for row in theirs.evals] == [0, 2, 4]
    assert [row.loss for row in ours.train] == pytest.approx([row.loss for row in theirs.train], rel=1e-6)
    for row, other in zip(ours.evals, theirs.evals, strict=True):
        assert row.task_loss == pytest.approx(other.task_loss, rel=1e-6)

    summary = json.loads((place / "job" / "summary.json").read_text())
    assert summary["status"] == alone.summary["status"] == Status.EARLY_STOPPED.value
    assert summary["best"]["step"] == summary["exported_step"] == alone.summary["exported_step"]
    assert summary["ledger"] == alone.summary["ledger"]
    with Checkpoints(place / "job" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() and not any(checkpoints.problems(step) for step in checkpoints.steps())
    assert (place / "job" / "model" / "model.safetensors").stat().st_size == (
        alone.run_dir / "model" / "model.safetensors"
    ).stat().st_size
