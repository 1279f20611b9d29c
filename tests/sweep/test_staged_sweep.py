"""Sweeps over policies of a mixture in stages: each run goes through its stages; stacking and halving are refused."""

import dataclasses
import json

import pytest
from helpers import tiny_config, tiny_model

from jaxtune.config import CheckpointConfig, EvalConfig, MixtureConfig, Policy
from jaxtune.errors import UserError
from jaxtune.sweep import run as sweep
from jaxtune.sweep.halving import Halving
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train.decisions import Status


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged-sweep")
    tiny_model(folder / "base")
    staged = MixtureConfig(stages=3, policy=Policy.BANDIT, policy_strength=4.0)
    quiet = EvalConfig(every=3, rows=4, generate=False)
    return tiny_config(folder, mixture=staged, eval=quiet, checkpoint=CheckpointConfig(save_every=9))


def test_a_sweep_over_policies_trains_each_through_its_stages(config, tmp_path):
    trials = trials_of(crossed({"mixture.policy": ["constant", "bandit"]}), [0])
    assert sweep.sweep(config, tmp_path / "sweep", trials) is Status.FINISHED
    for trial in trials:
        folder = tmp_path / "sweep" / "runs" / trial.name
        summary, mixture = (json.loads((folder / name).read_text()) for name in ("summary.json", "mixture.json"))
        assert summary["status"] == "finished" and summary["steps"] == 6 and len(mixture["stages"]) == 3
        moved = mixture["stages"][0]["shares"] != mixture["stages"][1]["shares"]
        assert moved == ("bandit" in trial.name)
    assert "bandit" in (tmp_path / "sweep" / "results.csv").read_text()


def test_what_trains_step_by_step_together_is_refused(config, tmp_path):
    trials = trials_of(crossed({"mixture.policy": ["constant", "bandit"]}), [0])
    with pytest.raises(UserError, match="leave --stacked away"):
        sweep.sweep(config, tmp_path / "sweep", trials, stacking=sweep.Stacking(stacked=True))
    with pytest.raises(UserError, match="give one of the two"):
        sweep.sweep(config, tmp_path / "sweep", trials, halving=Halving(factor=2.0, rungs=(0.5,)))
    assert not (tmp_path / "sweep").exists()
    constant = dataclasses.replace(config, mixture=MixtureConfig(stages=3))
    sweep.check_devices_and_folders([constant], sweep.Stacking(stacked=True))
