"""Exact resume: a run that is killed, or stopped, at any moment ends as if nothing had happened, bit for bit."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny_config, tiny_model
from run_records import timeless
from safetensors.numpy import load_file, save_file

from jaxtune import config as configs
from jaxtune import verify
from jaxtune.config import EarlyStoppingConfig
from jaxtune.mixture.settings import Budget
from jaxtune.parallel.job import StopSignal
from jaxtune.step.programs import Programs
from jaxtune.train import loop
from jaxtune.train import run as train
from jaxtune.train.decisions import Status

pytestmark = [pytest.mark.bits, pytest.mark.xdist_group("processes")]  # they fill the machine: one at a time

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "experiments" / "06-kill-and-resume" / "kill.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent.parent)}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Five kills; returns the folder and the lines that the script printed."""
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-W", "ignore", SCRIPT, "--kills", "5", "--seed", "1", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_five_kills_change_not_a_bit(campaign):
    _, lines = campaign
    assert len([line for line in lines if "kill" in line]) == 5
    ends = [line for line in lines if "equal" in line]
    assert ends and all(line["equal"] and line["different"] == [] for line in ends)
    assert all(line["rows"] == ends[0]["rows"] for line in ends)


@pytest.mark.slow
def test_kills_found_the_run_in_different_states(campaign):
    kills = [line for line in campaign[1] if "kill" in line]
    assert len({line["moment"] for line in kills}) > 1
    assert any(line["resumed_from"] for line in kills), "no run was killed after it had been resumed"


class StopAt(StopSignal):
    """A stop signal that is there after one step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def after(self, step: int) -> bool:
        if step == self.step:
            self.received = signal.SIGTERM
        return step == self.step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stops")
    tiny_model(folder / "base")
    return folder, Programs()


def check_stop(place, name: str, config, stop_at: int, monkeypatch) -> dict:
    """A run stopped after `stop_at` and resumed equals one that never stopped; returns the summary."""
    folder, programs = place
    whole = train.train(config, folder / f"{name}-whole", programs=programs)
    run_dir = folder / name
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopSignal", lambda: StopAt(stop_at))
        stopped = train.train(config, run_dir, programs=programs)
    assert stopped.status is Status.STOPPED and stopped.exit_code == 75
    assert not any(row["kind"] == "eval" and row["step"] == stop_at for row in timeless(run_dir)), "it stops at once"
    resumed = train.train(config, run_dir, resume=True, programs=programs)
    assert resumed.status is whole.status
    assert timeless(run_dir) == timeless(whole.run_dir)
    timed = ("seconds", "peak_memory_mb")
    keep = lambda summary: {key: value for key, value in summary.items() if key not in timed}
    assert keep(resumed.summary) == keep(whole.summary)
    return whole.summary


def test_a_stop_at_a_validation_step_leaves_the_metrics_of_an_unstopped_run(place, monkeypatch):
    config = tiny_config(place[0])
    assert config.eval.every == 3
    check_stop(place, "validating", config, 3, monkeypatch)


def test_a_stop_at_the_last_step_still_validates_and_exports(place, monkeypatch):
    config = tiny_config(place[0])
    summary = check_stop(place, "last", config, 6, monkeypatch)
    assert summary["exported_step"] == summary["best"]["step"]


def test_a_stop_at_the_step_of_an_early_stop_ends_there_too(place, monkeypatch):
    config = dataclasses.replace(
        tiny_config(place[0]), early_stopping=EarlyStoppingConfig(patience=1, min_change=1e6), duration=Budget(steps=12)
    )
    summary = check_stop(place, "early", config, 6, monkeypatch)
    assert summary["status"] == "early_stopped" and summary["steps"] == 6


HALF_CONFIG = """
import pathlib

from helpers import tiny_config
from jaxtune.config import Dtype, LoraConfig, ModelSource, OptimConfig, Schedule


def config():
    folder = pathlib.Path({folder!r})
    return tiny_config(
        folder, model=ModelSource(path=str(folder / "base"), param_dtype=Dtype({dtype!r})), lora={lora},
        optim=OptimConfig(peak_lr={rate}, schedule=Schedule.CONSTANT, weight_decay=0.0),
    )
"""


def half_config(folder: pathlib.Path, name: str, **values):
    """A config of parameters in a dtype, from a file as verify wants it; returns it and the file."""
    file = folder / f"{name}.py"
    file.write_text(HALF_CONFIG.format(folder=str(folder), **values))
    return configs.load(file), str(file)


def movement(base: pathlib.Path, model: pathlib.Path) -> np.ndarray:
    """What training added to all parameters, in one row."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, model))
    return np.concatenate([(after[k].astype(np.float32) - v.astype(np.float32)).ravel() for k, v in before.items()])


def test_small_steps_of_bfloat16_parameters_reach_the_model_exactly_also_when_resumed(place, monkeypatch):
    """At 2e-5 one update is far below the spacing of bfloat16 numbers near most weights (2.4e-4 at 0.05)."""
    folder, programs = place
    config, file = half_config(folder, "half", dtype="bfloat16", lora=None, rate=2e-5)
    check_stop(place, "half", config, 3, monkeypatch)
    whole, resumed = (folder / name / "model" / "model.safetensors" for name in ("half-whole", "half"))
    assert whole.read_bytes() == resumed.read_bytes()
    exported = load_file(resumed)
    assert {str(array.dtype) for array in exported.values()} == {"bfloat16"}
    outcome = verify.verify(folder / "half", config_path=file)
    assert outcome.ok, outcome.to_json()

    full, _ = half_config(folder, "full", dtype="float32", lora=None, rate=2e-5)
    train.train(full, folder / "full", programs=programs)
    rounded = {
        name: array.astype(ml_dtypes.bfloat16) for name, array in load_file(folder / "base/model.safetensors").items()
    }
    (folder / "rounded").mkdir()
    save_file(rounded, folder / "rounded" / "model.safetensors")
    half = movement(folder / "rounded", folder / "half" / "model")
    whole = movement(folder / "base", folder / "full" / "model")
    assert (half != 0).mean() > 0.25
    assert half @ whole / (whole @ whole) == pytest.approx(1, abs=0.1)


def test_adapters_over_a_bfloat16_base_train_in_float32_and_resume_exactly(place, monkeypatch):
    folder, _ = place
    config, file = half_config(folder, "adapted", dtype="bfloat16", lora="LoraConfig(rank=2)", rate=2e-5)
    check_stop(place, "adapted", config, 3, monkeypatch)
    whole, resumed = (folder / name / "model" / "model.safetensors" for name in ("adapted-whole", "adapted"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert verify.verify(folder / "adapted", config_path=file).ok
