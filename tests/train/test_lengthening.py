"""A run that is resumed with more steps: its plan and its rates go on, or it is said why they cannot."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import tiny_config, tiny_model

from jaxtune import config as configs
from jaxtune import verify
from jaxtune.config import Budget, CheckpointConfig, EvalConfig, OptimConfig, Schedule
from jaxtune.errors import UserError
from jaxtune.runs.history import read_rows
from jaxtune.step.programs import Programs
from jaxtune.storage.documents import read_sealed, write_sealed
from jaxtune.train import lengthening
from jaxtune.train import run as train
from jaxtune.train.export import export_checkpoint
from jaxtune.train.planned import plan_run
from jaxtune.train.resuming import Change

CONSTANT = OptimConfig(peak_lr=1e-2, schedule=Schedule.CONSTANT, warmup_frac=0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 4 steps; returns its config, its folder and the compiled programs."""
    folder, programs = tmp_path_factory.mktemp("lengthening"), Programs()
    tiny_model(folder / "base")
    quiet = EvalConfig(every=0, rows=4, generate=False)
    kept = CheckpointConfig(save_every=2, keep_latest=9)
    config = tiny_config(folder, eval=quiet, optim=CONSTANT, duration=Budget(steps=4), checkpoint=kept)
    train.train(config, folder / "run", programs=programs)
    return config, folder / "run", programs


def steps_of(run_dir):
    return {row["step"]: row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"}


def longer(config, steps, **optim):
    return dataclasses.replace(config, duration=Budget(steps=steps), optim=dataclasses.replace(config.optim, **optim))


def test_a_finished_run_goes_on_as_the_longer_run_that_begins_with_its_plan(finished, tmp_path, capsys):
    config, run_dir, programs = finished
    before = steps_of(run_dir)
    command = {"config": "config.py", "overrides": ["--duration.steps", "7"]}
    outcome = train.train(longer(config, 7), run_dir, resume=True, command=command, programs=programs)
    assert "lengthening the run from 4 to 7 steps, of which 4 are done" in capsys.readouterr().err
    assert outcome.status.value == "finished" and outcome.summary["steps"] == outcome.summary["total_steps"] == 7
    after = steps_of(run_dir)
    assert list(after) == list(range(1, 8)) and all(after[step] == before[step] for step in before)

    whole = dataclasses.replace(config, duration=Budget(steps=7, lengthened=(4,)))
    whole = dataclasses.replace(whole, optim=dataclasses.replace(CONSTANT, warmup_steps=2))
    train.train(whole, tmp_path / "whole", programs=programs)
    for step, row in steps_of(tmp_path / "whole").items():
        assert row["task_tokens"] == after[step]["task_tokens"] and row["learning_rate"] == after[step]["learning_rate"]
        assert row["loss"] == pytest.approx(after[step]["loss"], rel=1e-4)

    recorded = read_sealed(run_dir / "manifest.json")
    assert recorded["config"] == configs.to_json(whole) and recorded["plan"]["steps"] == 7
    assert list(recorded["plan"]["earlier"].values()) == [4]
    assert recorded["changes"][0]["options"]["duration.steps"] == {"then": 4, "now": 7}
    assert json.loads((run_dir / "command.json").read_text())["overrides"] == [
        *command["overrides"], "--duration.lengthened", "4", "--optim.warmup-steps", "2"
    ]  # fmt: skip
    assert json.loads((run_dir / "mixture.json").read_text())["steps"] == 7
    assert verify.check_rates(run_dir, recorded, 7).ok
    found = verify.check_rates(run_dir, recorded, 9)  # a plan that is longer than the record knows
    assert not found.ok and "ends at step 7, the plan derived now has 9 steps" in found.lines[0]
    export_checkpoint(run_dir, tmp_path / "four", "4", None, overwrite=False, adapter=False)  # made before

    planned = plan_run(longer(config, 7), run_dir, resume=True)  # the same command again changes nothing
    assert planned.changes == () and planned.inputs.plan.hash == recorded["plan"]["hash"]
    again = plan_run(longer(config, 9), run_dir, resume=True)
    assert again.inputs.config.duration == Budget(steps=9, lengthened=(4, 7))
    with pytest.raises(UserError, match="plan"):
        plan_run(longer(config, 5), run_dir, resume=True)


def recorded_run(folder, optim, steps=100):
    """A run folder as far as lengthening reads it."""
    folder.mkdir()
    config = tiny_config(folder, optim=optim, duration=Budget(steps=steps))
    write_sealed(folder / "manifest.json", {"config": configs.to_json(config)})
    return config


def changes_to(config, run_dir, steps):
    found = lengthening.lengthened(run_dir, longer(config, steps))
    new = lengthening.with_history(longer(config, steps), found)
    return new, [Change(name="duration.steps", then=config.duration.steps, now=steps)]


@pytest.fixture(autouse=True)
def whole_manifests(monkeypatch):
    """Only what lengthening reads of a manifest is written here."""
    monkeypatch.setattr(lengthening.documents, "read_manifest", lambda run_dir: read_sealed(run_dir / "manifest.json"))


@pytest.mark.parametrize(
    ("optim", "done"),
    [
        (OptimConfig(schedule=Schedule.CONSTANT), 100),
        (OptimConfig(schedule=Schedule.INVERSE_SQRT), 100),
        (OptimConfig(schedule=Schedule.WSD, decay_frac=0.2), 80),
    ],
)
def test_schedules_whose_beginning_does_not_depend_on_the_end_go_on(tmp_path, optim, done):
    config = recorded_run(tmp_path / "run", optim)
    new, changes = changes_to(config, tmp_path / "run", 200)
    assert new.optim.warmup_steps == 3  # 3 % of 100, as it was
    assert lengthening.accepted(tmp_path / "run", new, changes, done, accept=False) == changes


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule.COSINE, "schedule `cosine` depends on the end. Step 5 of 100 had the learning rate"),
        (Schedule.LINEAR, "schedule `linear` depends on the end"),
        (Schedule.WSD, "schedule `wsd` depends on the end. Step 82 of 100.*up to step 81 the decay had not begun"),
    ],
)
def test_other_schedules_are_refused_with_the_rates_and_go_on_if_that_is_accepted(tmp_path, capsys, schedule, said):
    config = recorded_run(tmp_path / "run", OptimConfig(schedule=schedule, decay_frac=0.2))
    new, changes = changes_to(config, tmp_path / "run", 200)
    with pytest.raises(UserError, match=said) as raised:
        lengthening.accepted(tmp_path / "run", new, changes, 100, accept=False)
    rates = lengthening.rate_table(new.optim, 200)
    assert f"step 101 would have {rates[100]:.3g}, after " in str(raised.value)
    assert lengthening.accepted(tmp_path / "run", new, changes, 100, accept=True) == changes
    assert "the schedule begins anew from here: step" in capsys.readouterr().err
    assert np.all(np.diff(rates[150:]) <= 0)


def test_runs_of_another_unit_or_fewer_steps_are_not_lengthened(tmp_path):
    config = recorded_run(tmp_path / "run", CONSTANT)
    assert lengthening.lengthened(tmp_path / "run", longer(config, 99)) == []
    assert lengthening.lengthened(tmp_path / "run", longer(config, 100)) == []
    assert lengthening.lengthened(tmp_path / "run", dataclasses.replace(config, duration=Budget(epochs=3))) == []
    assert lengthening.lengthened(tmp_path / "run", longer(config, 101)) == [[100], 50]
    assert lengthening.lengthened(tmp_path / "run", longer(config, 101, warmup_steps=7)) == [[100], 7]
