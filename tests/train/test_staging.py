"""Runs in stages: shares follow from the losses, a killed run ends as one that was not, verify computes them again."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from helpers import letters, tiny_config, tiny_model
from run_records import CLOCK

from jaxtune import config as configs
from jaxtune import verify
from jaxtune.config import Budget, CheckpointConfig, EvalConfig, LoraConfig, MixtureConfig, Policy
from jaxtune.errors import UserError
from jaxtune.runs.history import read_rows
from jaxtune.step.programs import Programs
from jaxtune.step.room import Room
from jaxtune.train import documents, staging
from jaxtune.train import run as train
from jaxtune.train.arm import Arm
from jaxtune.train.planned import plan_run
from jaxtune.train.resolution import prepare, resolve

STAGED = MixtureConfig(temperature=2, stages=3, policy=Policy.BANDIT, policy_strength=4.0)
CLOCKS = CLOCK | {"seconds", "time"}


def staged_config(folder, **changes):
    quiet = EvalConfig(every=0, rows=4, generate=False)
    kept = CheckpointConfig(save_every=1, keep_latest=9)
    return tiny_config(folder, eval=quiet, mixture=STAGED, checkpoint=kept, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three stages of two steps; returns its config, its folder and the compiled programs."""
    folder, programs = tmp_path_factory.mktemp("staging"), Programs()
    tiny_model(folder / "base")
    config = staged_config(folder)
    outcome = train.train(config, folder / "run", programs=programs)
    assert outcome.status.value == "finished" and outcome.summary["steps"] == outcome.summary["total_steps"] == 6
    return config, folder / "run", programs


def read(run_dir, name):
    return json.loads((run_dir / name).read_text())


def numbers(run_dir):
    return [
        {key: value for key, value in row.items() if key not in CLOCKS} for row in read_rows(run_dir / "metrics.jsonl")
    ]


def weights(run_dir):
    return hashlib.sha256((run_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_shares_follow_from_the_losses_and_are_what_was_drawn(finished):
    config, run_dir, _ = finished
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    first, second, third = read(run_dir, "mixture.json")["stages"]
    assert [(one["first_step"], one["last_step"]) for one in (first, second, third)] == [(1, 2), (3, 4), (5, 6)]
    rewards = {task: 1 - rows[1]["task_loss"][task] / loss for task, loss in rows[0]["task_loss"].items()}
    assert second["shares"] != first["shares"]
    faster = max(rewards, key=lambda task: rewards[task])
    assert second["shares"][faster] > first["shares"][faster]
    steps = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, 7))
    for one in (first, second, third):
        logged = {task: 0 for task in one["shares"]}
        for row in steps[one["first_step"] - 1 : one["last_step"]]:
            for task, count in row["task_tokens"].items():
                logged[task] += count
        assert {task: columns["loss_tokens"] for task, columns in one["drawn"].items()} == logged


def test_the_size_of_a_run_counts_the_validations_of_its_stages(finished):
    inputs = resolve(finished[0], questions=False)
    said = documents.size_in_words(inputs)
    assert "6 steps of 4 rows" in said and "4 validations" in said
    assert "up to step 2, where the next of 3 stages is planned" in said


def test_the_page_shows_the_stages_and_the_policy(finished):
    _, run_dir, _ = finished
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "in stages whose shares follow the policy bandit" in page and ">Stages</h3>" in page
    share = read(run_dir, "mixture.json")["stages"][2]["shares"]["small"]
    assert f"{share:.1%} · " in page and "Stages, caps and rounding moved" in page


def test_rates_are_those_of_the_whole_run(finished):
    config, run_dir, programs = finished
    static = dataclasses.replace(config, mixture=MixtureConfig(temperature=2))
    train.train(static, run_dir.parent / "static", programs=programs)
    rate = lambda folder: [
        row["learning_rate"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"
    ]
    assert rate(run_dir) == rate(run_dir.parent / "static")


def test_a_run_killed_in_its_third_stage_ends_as_one_that_was_not(finished, tmp_path, monkeypatch):
    config, run_dir, programs = finished
    whole = Arm.log

    def killed(self, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        whole(self, step, *rest)

    monkeypatch.setattr(Arm, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "run", programs=programs)
    monkeypatch.setattr(Arm, "log", whole)
    assert len(read(tmp_path / "run", "manifest.json")["config"]["mixture"]["stage_shares"]) == 4
    train.train(config, tmp_path / "run", resume=True, programs=programs)
    assert numbers(tmp_path / "run") == numbers(run_dir) and weights(tmp_path / "run") == weights(run_dir)
    assert read(tmp_path / "run", "mixture.json") == read(run_dir, "mixture.json")


def test_a_run_that_goes_on_from_an_earlier_stage_ends_as_one_that_was_not_stopped(finished, tmp_path):
    """The checkpoints since are lost, and with them the validation behind the shares of the last stage."""
    config, run_dir, programs = finished
    shutil.copytree(run_dir, tmp_path / "run")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:08d}")
    (tmp_path / "run" / "summary.json").unlink()
    train.train(config, tmp_path / "run", resume=True, programs=programs)
    assert numbers(tmp_path / "run") == numbers(run_dir) and weights(tmp_path / "run") == weights(run_dir)


def test_a_run_killed_between_two_stages_goes_on(finished, tmp_path, monkeypatch):
    config, run_dir, programs = finished

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "following", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "run", programs=programs)
    assert read(tmp_path / "run", "summary.json")["status"] == "paused"
    train.train(config, tmp_path / "run", resume=True, programs=programs)
    assert numbers(tmp_path / "run") == numbers(run_dir) and weights(tmp_path / "run") == weights(run_dir)


def test_stages_in_a_bucket_are_those_on_a_disk(finished, tmp_path, monkeypatch):
    config, run_dir, programs = finished
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    outcome = train.train(config, f"file://{tmp_path}/bucket/run", programs=programs)
    assert outcome.status.value == "finished"
    kept = tmp_path / "bucket" / "run"
    assert numbers(kept) == numbers(run_dir) and weights(kept) == weights(run_dir)
    assert read(kept, "mixture.json") == read(run_dir, "mixture.json")


def test_the_policy_constant_is_the_run_without_stages_bit_for_bit(finished, tmp_path):
    config, _, programs = finished
    constant = MixtureConfig(temperature=2, stages=3)
    train.train(dataclasses.replace(config, mixture=constant), tmp_path / "constant", programs=programs)
    train.train(dataclasses.replace(config, mixture=MixtureConfig(temperature=2)), tmp_path / "none", programs=programs)
    assert numbers(tmp_path / "constant") == numbers(tmp_path / "none")
    assert weights(tmp_path / "constant") == weights(tmp_path / "none")
    rows = read(tmp_path / "constant", "mixture.json")["stages"]
    assert (
        len(rows) == 3
        and rows[0]["shares"] == rows[2]["shares"]
        and "stages" not in read(tmp_path / "none", "mixture.json")
    )


def test_verify_computes_the_shares_again_and_names_one_that_does_not_follow(finished):
    config, run_dir, _ = finished
    recorded = staging.recorded_shares(run_dir, None)
    inputs = resolve(staging.with_shares(config, recorded), questions=False)
    assert [check.ok for check in verify.check_stages(run_dir, inputs)] == [True]
    moved = staging.with_shares(config, [*recorded[:2], 0.3, 0.7])
    [check] = verify.check_stages(run_dir, resolve(moved, questions=False))
    assert not check.ok and check.lines[0].startswith("stage 3: shares {'large': 0.3, 'small': 0.7} are recorded")


def test_the_command_of_a_run_in_stages_reads_as_its_config(finished):
    config, run_dir, _ = finished
    command = read(run_dir, "command.json")
    again = configs.override(config, command["overrides"])
    assert list(again.mixture.stage_shares) == staging.recorded_shares(run_dir, None)
    once = staging.command_of({"overrides": ["--seed", "1"]}, again)
    assert staging.command_of(once, again) == once and once["overrides"][:2] == ["--seed", "1"]


def test_one_program_has_room_for_the_rows_of_every_stage(finished):
    config, run_dir, _ = finished
    assert resolve(config, questions=False).room == Room()  # all positions, whatever the first stage needs
    assert read(run_dir, "program.json") == {"room": Room().to_json()}
    adapters = dataclasses.replace(config, lora=LoraConfig(rank=3))
    assert resolve(adapters, questions=False).room == Room(rank=3)


def test_a_checkpoint_before_the_last_stage_is_no_place_to_go_on_from(finished):
    config, run_dir, _ = finished
    with pytest.raises(UserError, match="--resume-step 3 lies before the stage that begins after step 4"):
        plan_run(config, run_dir, resume=True, resume_step=3)


def test_a_policy_without_losses_to_go_by_is_refused_before_anything_is_read(tmp_path):
    tiny_model(tmp_path / "base")
    blind = dataclasses.replace(letters("blind", 10), splits={"train": letters("blind", 10).splits["train"]})
    config = staged_config(tmp_path, tasks=(letters("large", 40), blind))
    with pytest.raises(UserError, match="task 'blind' has no split named 'validation'"):
        prepare(config)
    gap = dataclasses.replace(STAGED, policy=Policy.LOSS_GAP, policy_reference={"large": 1.0})
    with pytest.raises(UserError, match="has no loss for 'small'"):
        prepare(dataclasses.replace(staged_config(tmp_path), mixture=gap))
    gap = dataclasses.replace(gap, policy_reference={"large": 1.0, "small": 1.0, "smal": 1.0})
    with pytest.raises(UserError, match="names the unknown task 'smal'"):
        prepare(dataclasses.replace(staged_config(tmp_path), mixture=gap))
    with pytest.raises(UserError, match="needs its length in steps"):
        plan_run(staged_config(tmp_path, duration=Budget(epochs=1)), tmp_path / "run")
