import json
import math
from pathlib import Path

import pytest

from jaxtune.errors import UserError
from jaxtune.runs.history import read_rows, read_run
from jaxtune.runs.tracker import JsonlTracker
from jaxtune.storage.documents import write_json


def train_row(step, **more):
    return {"kind": "train", "step": step, "loss": 2.0 / step, "task_loss": {"qa": 1.5}, **more}


def write_run(folder: Path, steps=3):
    write_json(folder / "config.json", {"name": "toy"})
    tracker = JsonlTracker(folder)
    for step in range(1, steps + 1):
        tracker.log(train_row(step))
    tracker.close()


def test_rows_are_on_disk_before_the_tracker_closes(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(train_row(1))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
    tracker.close()
    tracker.close()


def test_a_new_run_never_appends_to_an_old_one(tmp_path):
    write_run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        JsonlTracker(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_resume_drops_the_steps_to_be_trained_again_and_a_torn_last_line(tmp_path):
    write_run(tmp_path, steps=5)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b'{"kind":"train","st')
    tracker = JsonlTracker(tmp_path, resume_step=3)
    for step in (4, 5):
        tracker.log(train_row(step))
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_torn_last_line_is_tolerated_by_readers(tmp_path):
    write_run(tmp_path, steps=2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind":"train","step":3,"loss":')
    assert [row.step for row in read_run(tmp_path).train] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    write_run(tmp_path, steps=1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"oops\n" + json.dumps(train_row(2)).encode() + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON"):
        read_run(tmp_path)


def test_a_folder_that_is_no_run_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json and no metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        read_run(tmp_path / "nowhere")


def test_read_run_types_rows_and_keeps_what_it_does_not_know(tmp_path):
    write_run(tmp_path, steps=2)
    tracker = JsonlTracker(tmp_path, resume_step=2)
    tracker.log(train_row(3, grad_norm=math.nan, data_wait=0.1))
    tracker.log({"kind": "eval", "step": 3, "split": "validation", "loss": 1.0, "task_loss": {"qa": 1.0, "new": 2.0}})
    scores = {"qa": {"exact_match": 0.5, "n": 4}, "held_out": {"exact_match": math.nan, "n": 0}}
    tracker.log({"kind": "score", "step": 3, "split": "test", "task_score": scores})
    tracker.log({"kind": "spike", "step": 2, "loss": 9.0})
    tracker.close()
    write_json(tmp_path / "mixture.json", {"budget": 10, "tasks": [{"task": "qa", "size": 5, "probability": 1.0}]})
    run = read_run(tmp_path)
    assert math.isnan(run.train[-1].grad_norm) and run.train[-1].extra == {"data_wait": 0.1}
    assert run.evals[0].task_loss == {"qa": 1.0, "new": 2.0}
    assert math.isnan(run.scores[0].task_score["held_out"]["exact_match"])
    assert run.events[0]["kind"] == "spike"
    assert run.tasks[0].size == 5 and run.mixture == {"budget": 10}
    assert run.task_names == ["qa", "new", "held_out"]
    assert run.summary == {}


def test_a_row_without_a_required_number_is_refused(tmp_path):
    write_run(tmp_path, steps=1)
    tracker = JsonlTracker(tmp_path, resume_step=1)
    tracker.log({"kind": "train", "step": 2})
    tracker.close()
    with pytest.raises(UserError, match="a row without `loss`"):
        read_run(tmp_path)
