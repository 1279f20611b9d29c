"""Gradient conflict of a small model's tasks: a duplicate agrees, a task of opposite sign opposes; bad input."""

import json

import numpy as np
import pytest
from helpers import chat_record, letters, tiny_config, tiny_config_file, tiny_model

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.tasks import Task, from_list
from jaxtune.train.conflict import ConflictRequest, conflict_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conflict")
    tiny_model(folder / "base")
    return folder


def task_of(name: str, records) -> Task:
    return Task(name=name, splits={"train": from_list(records, name=name)})


def records_of(answer, count: int = 120):
    return [chat_record(i, f"item {i % 50} of {i}", answer(i)) for i in range(count)]


@pytest.fixture(scope="module")
def found(place):
    """`first` and `again` hold the same records, `other` other answers."""
    same = records_of(lambda i: "yes it is")
    tasks = (task_of("first", same), task_of("again", same), task_of("other", records_of(lambda i: "blue 7 8")))
    return conflict_of(tiny_config(place, tasks=tasks), ConflictRequest(batches=8, tokens=256))


def test_a_duplicate_agrees_and_its_interval_holds_one(found):
    [point] = found["points"]
    pairs = {(pair["first"], pair["second"]): pair for pair in point["pairs"]}
    assert point["step"] == 0 and found["batches"] == 8 and len(pairs) == 3
    twin = pairs["first", "again"]
    assert twin["value"] == pytest.approx(1, abs=0.02) and twin["reliable"] and twin["low"] <= 1.0
    assert pairs["first", "other"]["value"] < 0.9


def test_one_step_on_a_task_helps_it_and_its_duplicate_alike(found):
    ahead = {(one["source"], one["target"]): one["gain"] for one in found["points"][0]["ahead"]}
    assert ahead["first", "first"] > 0
    assert ahead["first", "again"] == pytest.approx(ahead["first", "first"], rel=0.1)
    assert ahead["first", "other"] < ahead["other", "other"]


def test_a_task_with_fewer_batches_decides_how_many_are_taken_of_each(place):
    tasks = (letters("many", 400), letters("few", 60))
    found = conflict_of(tiny_config(place, tasks=tasks), ConflictRequest(batches=20, tokens=128))
    assert 4 <= found["batches"] < 20
    [pair] = found["points"][0]["pairs"]
    assert np.isfinite([pair["value"], pair["raw"]]).all()


def test_what_cannot_be_looked_at_is_refused(place, tmp_path, capsys):
    with pytest.raises(UserError, match="takes two tasks"):
        conflict_of(tiny_config(place, tasks=(letters("a", 40),)), ConflictRequest())
    with pytest.raises(UserError, match="b: not enough training examples"):
        conflict_of(tiny_config(place, tasks=(letters("a", 400), letters("b", 2))), ConflictRequest(tokens=256))
    for options in (["--batches", "3"], ["--transfer", str(tmp_path)]):
        assert cli.main(["conflict", str(tiny_config_file(tmp_path, place)), *options]) == 1
    assert "at least 4 batches" in (error := capsys.readouterr().err) and "holds no finished pairs" in error


def test_a_run_is_looked_at_where_it_has_checkpoints(place, tmp_path, capsys):
    source = "import dataclasses, pathlib\nfrom helpers import letters, tiny_config\n\n\ndef config():\n"
    source += "    tasks = (letters('large', 120), letters('small', 60))\n"
    (tmp_path / "config.py").write_text(f"{source}    return tiny_config(pathlib.Path({str(place)!r}), tasks=tasks)\n")
    train = ["train", str(tmp_path / "config.py"), "--run-dir", str(tmp_path / "run"), "--eval.no-generate"]
    assert cli.main(train) == 0
    effects = {("large", "small"): 0.2, ("small", "large"): 0.1}
    cells = [{"source": a, "target": b, "estimate": value} for (a, b), value in effects.items()]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "transfer.json").write_text(json.dumps({"forms": {"added": {"cells": cells}}}))
    capsys.readouterr()
    command = ["conflict", str(tmp_path / "run"), "--batches", "4", "--tokens", "128"]
    assert cli.main([*command, "--transfer", str(tmp_path / "sweep"), "--json", "--out", str(tmp_path / "c.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "c.json").read_text())
    steps = [point["step"] for point in printed["points"]]
    assert steps[0] == 0 and steps[-1] == 6 and len(steps) == len(set(steps)) >= 2
    start, end = printed["points"][0], printed["points"][-1]
    assert np.mean(list(end["loss"].values())) < np.mean(list(start["loss"].values()))
    assert printed["agreement"][0]["pairs"] == 1
    assert cli.main([*command, "--optim.peak-lr", "1"]) == 1 and "options go with a config" in capsys.readouterr().err
