"""Which runs of a sweep train as one program, and what is said of the others."""

import pytest
from helpers import tiny_config, tiny_model

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.sweep import run as sweep
from jaxtune.sweep.groups import group_by_shape, why_alone
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train.decisions import Status
from jaxtune.train.planned import plan_run


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    """A folder with a model and a config file."""
    folder = tmp_path_factory.mktemp("groups")
    tiny_model(folder / "base")
    (folder / "config.py").write_text(
        f"import pathlib\n\nfrom helpers import tiny_config\n\n\ndef config():\n"
        f"    return tiny_config(pathlib.Path({str(folder)!r}))\n"
    )
    return folder


def planned(place_of, *changes: list[str]):
    """Plans of runs of the tiny config with these options."""
    return [
        plan_run(
            configs.override(tiny_config(place_of), options), place_of / "none" / f"run{i}", command={},
            resume=False, overwrite=False,
        )
        for i, options in enumerate(changes)
    ]  # fmt: skip


def test_runs_of_one_shape_form_a_group(place_of):
    runs = planned(
        place_of,
        ["--optim.peak_lr", "1e-3"],
        ["--optim.weight_decay", "0.5", "--seed", "3"],
        ["--optim.b1", "0.5"],
        ["--duration.steps", "5"],
        ["--mixture.temperature", "inf"],
        ["--batch.rows", "8"],
        ["--eval.max_examples", "3"],
        ["--health.profile_steps", "1", "2"],
        ["--health.profile_steps", "1", "2"],
    )
    names = lambda groups: [[run.name for run in group.runs] for group in groups]
    groups = group_by_shape(runs)
    assert names(groups) == [["run0", "run1", "run4"], *([f"run{i}"] for i in (2, 3, 5, 6, 7, 8))]
    alone = {group.runs[0].name: group for group in groups}
    assert names(group_by_shape(runs, 2))[:2] == [["run0", "run1"], ["run4"]]
    assert "optim b1: was 0.9, is 0.5" in why_alone(alone["run2"], groups)
    assert "total_steps: was 6, is 5" in why_alone(alone["run3"], groups)
    assert "profile" in why_alone(alone["run7"], groups)


def test_runs_without_their_like_run_alone_and_it_is_said(place_of, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(sweep, "train_together", lambda runs, _: ran.append([run.name for run in runs]) or [])
    monkeypatch.setattr(sweep, "write_results", lambda _: None)
    trials = trials_of(crossed({"optim.b1": ["0.8", "0.9"]}), [0])
    stacking = sweep.Stacking(stacked=True)
    assert sweep.sweep(tiny_config(place_of), place_of / "unlike", trials, stacking=stacking) is Status.FINISHED
    assert ran == [["b1=0.8_seed=0"], ["b1=0.9_seed=0"]]
    assert "[2/2] b1=0.9_seed=0: alone, no other run has its program" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack-size", "2"], "goes with --stacked"),
        (["--stacked", "--stack-size", "0"], "at least 1"),
        (["--mesh.trial", "2", "--mesh.devices", "2", "--mesh.data", "1"], "give --stacked"),
        (["--stacked", "--checkpoint.directory", "/nowhere"], "would be shared"),
    ],
)
def test_options_that_do_not_fit_are_refused(place_of, tmp_path, capsys, arguments, message):
    command = ["sweep", str(place_of / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--grid", "optim.b1=0.8,0.9"]
    assert cli.main([*command, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
