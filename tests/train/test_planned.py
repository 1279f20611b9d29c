"""What stands in the way of a run is told before its folder is written."""

import dataclasses
import importlib.util

import jax
import pytest
from helpers import tiny_config

from jaxtune.config import MirrorKind
from jaxtune.errors import UserError
from jaxtune.runs import folder as runfolder
from jaxtune.train.planned import plan_run


def test_a_mirror_without_its_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    config = dataclasses.replace(tiny_config(tmp_path), mirrors=(MirrorKind.MLFLOW,))
    with pytest.raises(UserError, match="the mirror 'mlflow' was asked for.*pip install mlflow"):
        plan_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_platform_that_is_not_there_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    def absent(*_):
        raise RuntimeError("Unable to initialize backend 'cuda': no driver\nmore of it")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", absent)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda asks for devices .*: Unable to initialize") as refused:
        plan_run(tiny_config(tmp_path), tmp_path / "run")
    assert "more of it" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_run_that_ended_before_its_first_number_may_be_started_again(tmp_path):
    """Facts alone are no run to lose; a metrics row or a checkpoint is, and so is a folder without the facts."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    (run_dir / "metrics.jsonl").write_text("")
    runfolder.check(run_dir, resume=False, overwrite=False)
    runfolder.prepare(run_dir, overwrite=False)
    assert not any(run_dir.iterdir())
    for used in ("metrics", "checkpoint", "no facts"):
        (run_dir / "config.json").write_text("{}")
        if used == "metrics":
            (run_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 1}')
        elif used == "checkpoint":
            (run_dir / "checkpoints" / "00000002").mkdir(parents=True)
        else:
            (run_dir / "config.json").rename(run_dir / "notes.txt")
        with pytest.raises(UserError, match="not empty"):
            runfolder.check(run_dir, resume=False, overwrite=False)
        runfolder.clear(run_dir)
