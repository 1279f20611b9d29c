import contextlib
import subprocess
import sys

import pytest
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.storage import locks
from jaxtune.storage.documents import read_json, write_json
from jaxtune.sweep.language import Setting, crossed, parse_axes
from jaxtune.sweep.record import Trial, grow, trials_of
from jaxtune.sweep.waiting import Waiting, claimed_now

CONFIG = {"name": "toy"}


def test_every_setting_runs_with_every_seed():
    trials = trials_of(crossed(parse_axes(["mixture.temperature=1,inf", "optim.peak_lr=1e-3,2e-3"])), [0, 1])
    assert len(trials) == 8 and len({trial.name for trial in trials}) == 8
    assert trials[1].name == "temperature=1_peak_lr=1e-3_seed=1"
    assert trials[0].arguments() == ["--mixture.temperature", "1", "--optim.peak_lr", "1e-3", "--seed", "0"]
    with pytest.raises(UserError, match="twice"):
        trials_of([Setting(overrides={})], [1, 1])


def test_a_folder_only_grows(tmp_path):
    folder = tmp_path / "s"
    settings = crossed({"a": ["1", "2"]})
    grow(folder, CONFIG, trials_of(settings, [0, 1]), overwrite=False)
    grow(folder, CONFIG, trials_of(settings, [2, 3]), overwrite=False)
    grow(folder, CONFIG, trials_of(crossed({"b": ["x"]}), [0]), overwrite=False)
    entries = read_json(folder / "sweep.json")["runs"]
    assert [entry["seed"] for entry in entries] == [0, 1, 0, 1, 2, 3, 2, 3, 0]
    assert len({entry["name"] for entry in entries}) == 9
    with pytest.raises(UserError, match="another config"):
        grow(folder, {"name": "other"}, [], overwrite=False)
    grow(folder, {"name": "other"}, trials_of(settings, [0]), overwrite=True)
    assert len(read_json(folder / "sweep.json")["runs"]) == 2


def test_a_sweep_of_an_earlier_version_grows_on(tmp_path):
    """An option that came later is one of the same sweep as long as it has its default."""
    now = configs.to_json(tiny_config(tmp_path))
    assert now["mixture"]["stages"] == 1 and now["eval"]["code"]["run"] is False
    then = {**now, "eval": {name: value for name, value in now["eval"].items() if name != "code"}}
    then["mixture"] = {name: value for name, value in now["mixture"].items() if name != "stages"}
    grow(tmp_path / "s", then, [], overwrite=False)
    with pytest.raises(UserError, match=r"What differs:\n  - mixture.stages: was None, is 3$"):
        grow(tmp_path / "s", {**now, "mixture": {**now["mixture"], "stages": 3}}, [], overwrite=False)
    grow(tmp_path / "s", now, [], overwrite=False)
    with pytest.raises(UserError, match="mixture.stages: was 1, is None"):
        grow(tmp_path / "s", then, [], overwrite=False)


def test_hosts_of_a_sweep_may_do_their_work_in_their_own_ways(tmp_path):
    now = configs.to_json(tiny_config(tmp_path))
    grow(tmp_path / "s", {**now, "data": {**now["data"], "processes": 1, "workers": 4}}, [], overwrite=False)
    grow(tmp_path / "s", now, [], overwrite=False)
    with pytest.raises(UserError, match="data.seq_len: was 64, is 32"):
        grow(tmp_path / "s", {**now, "data": {**now["data"], "seq_len": 32}}, [], overwrite=False)


def test_a_seed_that_confirmed_a_setting_chooses_none(tmp_path):
    folder = tmp_path / "s"
    setting = Setting(overrides={"a": "1"}, tag="mine")
    grow(folder, CONFIG, [Trial(setting=setting, seed=9, confirms=True)], overwrite=False)
    assert read_json(folder / "sweep.json")["runs"][0] == {
        "name": "mine_seed=9", "overrides": {"a": "1"}, "seed": 9, "tag": "mine", "dir": "runs/mine_seed=9",
        "confirms": True,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"seeds \[9\]"):
        grow(folder, CONFIG, [Trial(setting=setting, seed=9)], overwrite=False)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="no sweep"):
        grow(tmp_path, CONFIG, [], overwrite=True)
    assert (tmp_path / "mine.txt").exists()


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)


@given(VALUES, VALUES)
def test_names_are_folders_and_differ_where_values_do(first, second):
    names = [Trial(setting=Setting(overrides={"mixture.weights": value}), seed=0).name for value in (first, second)]
    assert all("/" not in name and len(name.encode()) < 255 and name not in (".", "..") for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_runs_that_another_process_trains_are_left_to_it(tmp_path):
    trials = trials_of(crossed({"a": ["1", "2"]}), [0])
    grow(tmp_path / "s", CONFIG, trials, overwrite=False)
    runs = [
        Waiting(label="", folder=tmp_path / "s" / "runs" / trial.name, settings=tiny_config(tmp_path), command={})
        for trial in trials
    ]
    with locks.only_writer(runs[0].folder), contextlib.ExitStack() as held:
        assert list(claimed_now(runs, held)) == [runs[1].folder.name]
        with pytest.raises(locks.FolderInUse):
            grow(tmp_path / "s", CONFIG, [], overwrite=True)
    with contextlib.ExitStack() as held:
        assert runs[0].claim(held)
    runs[1].folder.mkdir(parents=True)
    write_json(runs[1].folder / "summary.json", {"status": "finished"})
    with contextlib.ExitStack() as held:
        assert not runs[1].claim(held)


ADD = """
import pathlib, sys
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import grow, trials_of
for seed in range(10):
    settings = crossed({"a": [sys.argv[2]]})
    grow(pathlib.Path(sys.argv[1]), {"name": "toy"}, trials_of(settings, [seed]), overwrite=False)
"""


def test_processes_that_add_runs_at_the_same_time_lose_none(tmp_path):
    command = [sys.executable, "-c", ADD, str(tmp_path / "s")]
    started = [subprocess.Popen([*command, value]) for value in ("x", "y")]
    assert [one.wait() for one in started] == [0, 0]
    assert len(read_json(tmp_path / "s" / "sweep.json")["runs"]) == 20
