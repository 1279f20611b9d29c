"""Which runs of a sweep train as one program, and what is said of the others."""

import dataclasses

import pytest
from helpers import tiny_config, tiny_config_file, tiny_model

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.step.room import Room
from jaxtune.storage.documents import write_json
from jaxtune.sweep import run as sweep
from jaxtune.sweep.groups import group_by_shape, in_shared_room, rooms_needed, why_alone
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import read_rooms, share_rooms, trials_of
from jaxtune.train.decisions import Status
from jaxtune.train.planned import plan_run


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    """A folder with a model and a config file."""
    folder = tmp_path_factory.mktemp("groups")
    tiny_model(folder / "base")
    tiny_config_file(folder, folder)
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


def in_rooms(runs):
    """The same runs, each in the room of its shape."""
    rooms = rooms_needed(run.inputs for run in runs)
    return [dataclasses.replace(run, inputs=in_shared_room(run.inputs, rooms)) for run in runs]


def test_settings_that_are_numbers_of_a_step_form_one_group(place_of):
    runs = planned(
        place_of,
        *(["--mixture.temperature", "1", "--lora.alpha", "8"], ["--optim.peak_lr", "1e-3", "--lora.rank", "4"]),
        *(["--optim.warmup_steps", "3", "--lora.rank", "2"], ["--optim.schedule", "constant", "--lora.rank", "2"]),
        *(["--duration.steps", "3", "--lora.rank", "2"], ["--data.prompt_loss_weight", "0.5", "--lora.rank", "2"]),
        [
            "--mixture.strategy",
            "weights",
            "--mixture.weights",
            "large",
            "1",
            "small",
            "0",
            "--lora.scaling",
            "rank_stabilized",
        ],
        *(["--optim.clip_norm", "0.1", "--lora.rank", "2"], ["--optim.clip_norm", "None", "--lora.rank", "2"]),
        *(["--loss.z_loss", "1e-3", "--lora.rank", "2"], ["--loss.label_smoothing", "0.1", "--lora.rank", "2"]),
    )
    [group] = group_by_shape(in_rooms(runs))
    assert len(group.runs) == len(runs)
    [room] = {run.inputs.room for run in group.runs}
    assert room is not None and room.rank == 16 and room.z_loss and room.label_smoothing
    assert room.capacity == 2 * 64, "a run that trains on prompts may have weight at every position"
    averaged = planned(
        place_of,
        *(["--optim.ema_decay", "0.9"], ["--optim.ema_decay", "0.99"], ["--optim.ema_decay", "None"]),
        *(["--optim.optimizer", "adafactor", "--lora.rank", rank] for rank in ("2", "4")),
    )
    sizes = [len(group.runs) for group in group_by_shape(in_rooms(averaged))]
    assert sizes == [2, 1, 1, 1], "an average is memory of its own, and Adafactor takes means over an adapter's columns"


def test_weights_of_prompts_form_one_group_whatever_the_loss_is_divided_by(place_of):
    weights = [["--data.prompt_loss_weight", weight, "--loss.normalization", "response"] for weight in ("0.1", "0.5")]
    runs = planned(place_of, *weights, ["--data.prompt_loss_weight", "0.5"])
    assert [len(group.runs) for group in group_by_shape(in_rooms(runs))] == [2, 1]


def test_rooms_of_a_sweep_only_grow(place_of, tmp_path):
    small, large = Room(capacity=8, tokens=None), Room(capacity=16, z_loss=True)
    write_json(tmp_path / "sweep.json", {"config": {}, "runs": []})
    assert share_rooms(tmp_path, {"a": small, "b": small}) == {"a": small, "b": small}
    assert share_rooms(tmp_path, {"a": large}) == {"a": large, "b": small}
    assert share_rooms(tmp_path, {"a": small}) == read_rooms(tmp_path) == {"a": large, "b": small}


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
    groups = group_by_shape(in_rooms(runs))
    assert names(groups) == [["run0", "run1", "run3", "run4"], *([f"run{i}"] for i in (2, 5, 6, 7, 8))]
    alone = {group.runs[0].name: group for group in groups}
    assert names(group_by_shape(in_rooms(runs), 2))[:2] == [["run0", "run1"], ["run3", "run4"]]
    assert "optim b1: was 0.9, is 0.5" in why_alone(alone["run2"], groups)
    assert "batch rows: was 4, is 8" in why_alone(alone["run5"], groups)
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
        (["--mesh.trial", "2", "--mesh.devices", "2", "--mesh.data", "1"], "give --stacked"),
        (["--stacked", "--checkpoint.directory", "/nowhere"], "would be shared"),
    ],
)
def test_options_that_do_not_fit_are_refused(place_of, tmp_path, capsys, arguments, message):
    command = ["sweep", str(place_of / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--grid", "optim.b1=0.8,0.9"]
    assert cli.main([*command, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_stack_of_no_runs_is_no_number_of_runs(place_of, tmp_path, capsys):
    command = ["sweep", str(place_of / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--grid", "optim.b1=0.8,0.9"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--stacked", "--stack-size", "0"])
    assert ended.value.code == 2 and "'0' is not a whole number in [1," in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
