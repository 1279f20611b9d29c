"""A sweep with halving, trained: who goes on, what is kept of the others, and that rungs change no bits."""

import csv
import dataclasses
import json
import shutil

import pytest
from helpers import tiny_config, tiny_config_file, tiny_model
from run_records import timeless

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.step.programs import Programs
from jaxtune.sweep import run as sweep
from jaxtune.sweep.halving import Halving, parse_halving, rung_steps
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train.decisions import Status


def table(folder) -> dict[str, dict]:
    """results.csv by name of run."""
    return {row["name"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config without generation; all tests of this file compile once."""
    folder, shared = tmp_path_factory.mktemp("halving"), Programs()
    tiny_model(folder / "base")
    found = tiny_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "Programs", lambda: shared)
        yield dataclasses.replace(found, eval=dataclasses.replace(found.eval, generate=False))


def test_rungs_are_judged_at_the_end_of_branches_that_change_no_run(config, tmp_path, capsys):
    trials = trials_of(crossed({"optim.peak_lr": ["1e-2", "1e-6"]}), [0])
    halving, folder = Halving(factor=2, rungs=(0.5,), decay=0.5), tmp_path / "sweep"
    assert sweep.sweep(config, folder, trials, halving=halving) is Status.FINISHED
    assert "rung 0.5: 1 of 2 settings go on" in capsys.readouterr().out
    names = [trial.name for trial in trials]
    ends = [timeless(folder / "rungs" / "0.5" / name) for name in names]
    rates = [[row["learning_rate"] for row in found if row["kind"] == "train"] for found in ends]
    own = [row["learning_rate"] for row in timeless(folder / "runs" / names[0]) if row["kind"] == "train"]
    assert rates[0][:3] == own[:3] and rates[0][3:] == pytest.approx([own[3], own[3] / 2])
    [rung] = json.loads((folder / "halving.json").read_text())["rungs"]
    assert [row["loss"] for row in rung["settings"]] == [found[-1]["macro_loss"] for found in ends]
    assert [found[-1]["step"] for found in ends] == [5, 5]
    assert sweep.sweep(config, tmp_path / "whole", trials[:1]) is Status.FINISHED
    assert timeless(folder / "runs" / names[0]) == timeless(tmp_path / "whole" / "runs" / names[0])
    assert table(folder)[names[1]]["status"] == "halved"
    shutil.rmtree(folder / "rungs")
    with pytest.raises(UserError, match=f"{names[0]} went on from its rung at step 3 without a branch"):
        sweep.sweep(config, folder, trials, halving=halving)


def test_the_best_settings_go_on_and_the_others_stay_as_they_were_at_the_rung(config, tmp_path, capsys):
    trials = trials_of(crossed({"optim.peak_lr": ["1e-2", "1e-6", "2e-6"]}), [0, 1])
    halving, folder = Halving(factor=3, rungs=(0.5,)), tmp_path / "sweep"
    assert sweep.sweep(config, folder, trials, halving=halving) is Status.FINISHED
    printed = capsys.readouterr().out
    assert "rung 0.5: 1 of 3 settings go on" in printed and "too few settings finished" in printed
    found = table(folder)
    assert [row["status"] for row in found.values()] == ["finished"] * 2 + ["halved"] * 4
    assert found["peak_lr=1e-6_seed=0"]["rung"] == "0.5" and found["peak_lr=1e-2_seed=0"]["rung"] == ""
    assert [row["steps"] for row in found.values()] == ["6", "6", "3", "3", "3", "3"]
    at_rung = timeless(folder / "runs" / "peak_lr=1e-6_seed=1")[-1]
    assert at_rung["kind"] == "eval" and float(found["peak_lr=1e-6_seed=1"]["rung_loss"]) == at_rung["macro_loss"]
    assert "no further than 0.5" in (folder / "report.html").read_text()
    [rung] = json.loads((folder / "halving.json").read_text())["rungs"]
    assert [row["kept"] for row in rung["settings"]] == [True, False, False]

    before = (folder / "runs" / "peak_lr=1e-6_seed=0" / "metrics.jsonl").read_bytes()
    assert sweep.sweep(config, folder, trials, halving=halving) is Status.FINISHED, "the command again adds nothing"
    assert (folder / "runs" / "peak_lr=1e-6_seed=0" / "metrics.jsonl").read_bytes() == before

    assert sweep.sweep(config, tmp_path / "whole", trials[:3]) is Status.FINISHED
    assert sweep.sweep(config, folder, trials[:3]) is Status.FINISHED, "without halving a run goes on from its rung"
    for trial in trials[:3]:
        assert timeless(folder / "runs" / trial.name) == timeless(tmp_path / "whole" / "runs" / trial.name)
    assert table(folder)["peak_lr=1e-6_seed=0"]["status"] == "finished"


def test_rungs_are_validations_of_their_own():
    halving = Halving(factor=3, rungs=(0.25, 0.5))
    assert rung_steps(halving, 160, 40) == [40, 80]
    assert rung_steps(halving, 100, 15) == [30, 60]
    for total, every, message in ((160, 0, "eval.every"), (160, 80, "one of its own"), (6, 3, "3, 3 in a run of 6")):
        with pytest.raises(UserError, match=message):
            rung_steps(halving, total, every)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--halving", "1"], "above 1"),
        (["--halving", "3", "--rungs", "0.5,0.25"], "rising shares"),
        (["--halving", "3", "--rungs", "0.5,1"], "between 0 and 1"),
        (["--halving", "3", "--rungs", "half"], "separated by commas"),
        (["--rungs", "0.5"], "go with --halving"),
        (["--rung-decay", "0.1"], "go with --halving"),
        (["--halving", "3", "--rung-decay", "2"], "at most 1"),
        (["--stack-mode", "batched"], "goes with --stacked"),
        (["--stacked", "--stack-mode", "batched"], "give --lora"),
    ],
)
def test_halving_and_stacking_that_cannot_be_are_refused(tmp_path, capsys, arguments, message):
    tiny_model(tmp_path / "base")
    tiny_config_file(tmp_path, tmp_path)
    command = ["sweep", str(tmp_path / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--grid", "optim.b1=0.8,0.9"]
    assert cli.main([*command, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_halving_is_off_without_its_option():
    assert parse_halving(None, None) is None
    assert parse_halving(3.0, None) == Halving(factor=3.0, rungs=(0.25, 0.5))
