"""A resumed run has the options that it was started with; a change is refused, or accepted and written down."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import pytest
from helpers import tiny_config, tiny_model

from jaxtune import config as configs
from jaxtune import verify
from jaxtune.config import EarlyStoppingConfig
from jaxtune.errors import UserError
from jaxtune.evaluate.loss import Aggregate, EvalConfig
from jaxtune.model.lora import LoraConfig
from jaxtune.reports.run import write_report
from jaxtune.runs.history import read_rows
from jaxtune.runs.retention import CheckpointConfig
from jaxtune.step.programs import Programs
from jaxtune.storage.documents import read_sealed
from jaxtune.train import loop, resuming
from jaxtune.train import run as train
from jaxtune.train.decisions import Status
from jaxtune.train.rows import logged_losses
from tests.train.test_resume import StopAt


def test_every_option_is_pinned_or_free_and_none_is_both():
    assert set(configs.leaves()) == resuming.PINNED | resuming.FREE
    assert not resuming.PINNED & resuming.FREE


def another(value):
    """A JSON value that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, {"name": "another"}]
    return {**value, "another": 1} if isinstance(value, dict) else "another"


def replaced(tree, name, value):
    head, _, rest = name.partition(".")
    return {**tree, head: replaced(tree[head], rest, value) if rest else value}


@pytest.mark.parametrize("lora", [None, LoraConfig()])
def test_a_change_of_any_pinned_option_is_seen_and_of_no_free_one(tmp_path, lora):
    tree = configs.to_json(tiny_config(tmp_path, lora=lora))
    for name in configs.leaves():
        if name == "lora" or (lora is None and name.startswith("lora.")):
            continue
        value = tree
        for part in name.split("."):
            value = value[part]
        found = resuming.changed(tree, replaced(tree, name, another(value)))
        assert [change.name for change in found] == ([name] if name in resuming.PINNED else []), name


def test_adapters_that_come_or_go_are_a_change(tmp_path):
    without, with_them = (configs.to_json(tiny_config(tmp_path, lora=lora)) for lora in (None, LoraConfig()))
    for pair in ((without, with_them), (with_them, without)):
        assert "lora.rank" in [change.name for change in resuming.changed(*pair)]


@hypothesis.given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=5), st.integers(1, 25))
def test_the_option_of_a_step_is_the_one_in_force_when_it_was_computed(changes, step):
    """Changes in the order of their steps; the value in force at a step is found by replaying them forwards."""
    value, entries, in_force = 100, [], 100
    for after, new in sorted(changes, key=lambda change: change[0]):
        entries.append({"after_step": after, "date": "", "options": {"seed": {"then": value, "now": new}}})
        in_force = new if step > after else in_force
        value = new
    recorded = {"config": {"seed": value}, "changes": entries}
    assert resuming.option_at(recorded, "seed", step) == in_force


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after step 3 of 6; returns its config, its folder and the compiled programs."""
    folder, programs = tmp_path_factory.mktemp("changes"), Programs()
    tiny_model(folder / "base")
    config = dataclasses.replace(tiny_config(folder), eval=EvalConfig(every=0, rows=4, generate=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "StopSignal", lambda: StopAt(3))
        assert train.train(config, folder / "run", programs=programs).status is Status.STOPPED
    return config, folder / "run", programs


def test_changed_options_are_refused_or_accepted_and_written_down(stopped, monkeypatch):
    config, run_dir, programs = stopped
    slower = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=2e-3, warmup_frac=0.5))
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"(?s)optim.peak_lr: was 0.01, is 0.002.*warmup_frac.*--accept-change"):
        train.train(slower, run_dir, resume=True, programs=programs)
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before

    freely = dataclasses.replace(slower, name="tiny", data=dataclasses.replace(config.data, prefetch=5))
    train.train(freely, run_dir, resume=True, accept_change=True, programs=programs)
    recorded = read_sealed(run_dir / "manifest.json")
    [entry] = recorded["changes"]
    assert entry["after_step"] == 3 and entry["date"].startswith("20")
    assert entry["options"]["optim.peak_lr"] == {"then": 0.01, "now": 0.002}
    assert json.loads((run_dir / "config.json").read_text()) == recorded["config"] == configs.to_json(freely)
    write_report(run_dir)
    assert "Changed after step 3" in (run_dir / "report.html").read_text()

    rates = verify.check_rates(run_dir, recorded, 6)
    assert rates.ok, rates.lines
    assert "after step 3" in verify.describe_changes(recorded).lines[0]
    hidden = verify.check_rates(run_dir, {**recorded, "changes": []}, 6)
    assert not hidden.ok and "step 1: rate" in hidden.lines[0]


@pytest.mark.parametrize(
    "change, begins",
    [
        ({"early_stopping": EarlyStoppingConfig(aggregate=Aggregate.WORST_TASK)}, 1),
        ({"early_stopping": EarlyStoppingConfig(aggregate=Aggregate.TASK, task="large")}, 1),
        ({"eval": EvalConfig(every=1, rows=4, generate=False, max_examples=2)}, 3),
    ],
)
def test_the_best_is_judged_by_what_is_watched_now(stopped, tmp_path, monkeypatch, change, begins):
    """With a rate of almost zero all validations are alike, so that a loss of another kind would stay the lowest."""
    config, _, programs = stopped
    config = dataclasses.replace(
        config, eval=EvalConfig(every=1, rows=4, generate=False),
        optim=dataclasses.replace(config.optim, peak_lr=1e-6), checkpoint=CheckpointConfig(save_every=1, keep_latest=9),
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopSignal", lambda: StopAt(3))
        train.train(config, tmp_path / "run", programs=programs)
    changed = dataclasses.replace(config, **change)
    with monkeypatch.context() as patched:  # killed before it saved anything: the next resume judges again
        patched.setattr(train, "train_arms", lambda ensemble: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(changed, tmp_path / "run", resume=True, accept_change=True, programs=programs)
    summary = train.train(changed, tmp_path / "run", resume=True, programs=programs).summary
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == list(range(7))
    rule = changed.early_stopping
    losses = {row["step"]: logged_losses(row, ()).watched(rule.aggregate, rule.task) for row in rows[begins:]}
    best = min(losses, key=lambda step: (losses[step], step))
    assert summary["best"] == {"step": best, "metric": rule.aggregate.value, "value": losses[best]}
    assert summary["exported_step"] == best
    tokens = [sum(row["task_tokens"].values()) for row in rows]
    assert (tokens[2] > tokens[3]) == (begins == 3) and len(set(tokens[begins:])) == 1
    bound = verify.check_checkpoints(tmp_path / "run", changed)
    assert bound.ok, bound.lines
