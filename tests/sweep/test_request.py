import json

import pytest
import toy_runs
from helpers import tiny_config, tiny_config_file, tiny_model

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.runs.sweeps import LOSS, MATCH, read_sweep
from jaxtune.sweep.choice import confirmation, power_table, refinement
from jaxtune.sweep.request import Request, requested_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a config file, and a sweep of toy runs over its options."""
    folder = tmp_path_factory.mktemp("requests")
    tiny_model(folder / "base")
    tiny_config_file(folder, folder)
    toy_runs.write_toy_sweep(folder / "toy", temperatures=("1", "2", "inf"), rates=("1e-3", "3e-3", "1e-2"), steps=6)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes one of --grid"),
        (["--grid", "optim.b1=0.8", "--random", "3", "--space", "optim.b1=lin:0:1"], "got --grid and --random"),
        (["--random", "3"], "go together"),
        (["--grid", "optim.b1=0.8", "--space", "optim.b1=lin:0:1"], "go together"),
        (["--arms", "none.jsonl", "--zip"], "--zip goes with --grid"),
        (["--arms", "none.jsonl"], "cannot be read"),
        (["--confirm", "3"], "holds none yet"),
        (["--refine", "3"], "holds none yet"),
        (["--power", "0"], "other than 0"),
        (["--grid", "optim.b1=0.8", "--json"], "--dry-run or --power"),
        (["--grid", "optim.b11=0.8"], "optim.b1"),
        (["--grid", "mixture.weights=large 1 smal"], "options after the config"),
        (["--mixtures", "0"], "--mixtures"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(place, tmp_path, capsys, arguments, message):
    assert cli.main(["sweep", str(place / "config.py"), "--sweep-dir", str(tmp_path / "s"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "s").exists()


def test_a_dry_run_lists_runs_programs_and_steps_and_writes_nothing(place, tmp_path, capsys):
    command = ["sweep", str(place / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--seeds", "0", "1"]
    grid = ["--grid", "optim.b1=0.8,0.9", "mixture.temperature=1,inf", "--zip", "--dry-run"]
    assert cli.main([*command, *grid, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [run["overrides"] for run in plan["runs"]][::2] == [
        {"optim.b1": "0.8", "mixture.temperature": "1"},
        {"optim.b1": "0.9", "mixture.temperature": "inf"},
    ]
    assert [len(program["runs"]) for program in plan["programs"]] == [2, 2] and plan["steps"] == 24
    assert cli.main([*command, *grid]) == 0
    assert "4 runs, 24 steps in all" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


def test_values_of_several_words_and_mixtures_reach_the_config(place):
    config = tiny_config(place)
    [alone] = requested_settings(Request(grid=["mixture.weights=large 1 small 0", "mixture.strategy=weights"]), config)
    assert configs.override(config, alone.arguments()).mixture.weights == {"large": 1, "small": 0}
    for setting in requested_settings(Request(mixtures=3), config):
        weights = configs.override(config, setting.arguments()).mixture.weights
        assert weights is not None and set(weights) == {"large", "small"} and sum(weights.values()) == pytest.approx(1)


def test_a_winner_is_confirmed_on_seeds_that_no_run_has_used(place):
    config = configs.override(tiny_config(place), ["--mixture.temperature", "1", "--optim.peak-lr", "1e-3"])
    trials = confirmation(config, place / "toy", 3, LOSS)
    assert all(trial.confirms for trial in trials) and {trial.seed for trial in trials} == {2, 3, 4}
    settings = {tuple(trial.setting.overrides.values()) for trial in trials}
    assert ("1", "1e-3") in settings and len(settings) <= 2
    other = confirmation(configs.override(config, ["--optim.peak-lr", "5e-3"]), place / "toy", 1, LOSS)
    assert {} in [dict(trial.setting.overrides) for trial in other]
    with pytest.raises(UserError, match="at least one fresh seed"):
        confirmation(config, place / "toy", 0, LOSS)


def test_refining_adds_new_settings_on_the_seeds_of_the_folder(place, tmp_path):
    trials = refinement(place / "toy", 2, LOSS)
    known = [tuple(map(float, setting.values())) for setting in read_sweep(place / "toy").settings]
    new = {tuple(float(value) for value in trial.setting.overrides.values()) for trial in trials}
    assert len(new) == 2 and {trial.seed for trial in trials} == {0, 1}
    assert new - set(known)


def test_power_comes_from_the_pilot_or_from_the_built_in_mixture(place, tmp_path):
    known = power_table(tmp_path, 4.4, MATCH)
    assert known["seeds_needed"] == 5 and known["pilot_runs"] == 0
    assert known["detectable"]["3"] == pytest.approx(8.4, rel=0.05)
    pilot = power_table(place / "toy", 0.01, LOSS)
    assert pilot["pilot_runs"] == 18 and pilot["run_spread"] != 0.016


def test_power_is_printed(place, tmp_path, capsys):
    command = ["sweep", str(place / "config.py"), "--sweep-dir", str(tmp_path / "s"), "--power", "4.4"]
    assert cli.main([*command, "--measure", "macro_exact_match", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds_needed"] == 5
