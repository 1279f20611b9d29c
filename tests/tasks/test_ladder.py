"""Repeat ladders: bins, weights, the exact plan of their repeats."""

import numpy as np
import pytest
from helpers import chat_record, tiny_config, tiny_model

from jaxtune.config import MixtureConfig, Strategy
from jaxtune.errors import UserError
from jaxtune.mixture.allocation import allocate
from jaxtune.mixture.settings import Budget
from jaxtune.tasks import Task, from_list, repeat_ladder
from jaxtune.tasks.ladder import ladders
from jaxtune.train.resolution import resolve

RECORDS = [chat_record(i, f"say {i}", str(i)) for i in range(61)]
TASK = Task(name="noisy", splits={"train": from_list(RECORDS, name="noisy")}, max_examples=7)


def test_bins_are_equal_share_nothing_and_do_not_depend_on_the_order_of_records():
    ladder = repeat_ladder(TASK, (0, 1, 4))
    assert [task.name for task in ladder.tasks] == ["noisy.x0", "noisy.x1", "noisy.x4"]
    ids = [{task.source("train")[i]["id"] for i in range(20)} for task in ladder.tasks]
    assert all(len(task.source("train")) == 20 for task in ladder.tasks) and len(set().union(*ids)) == 60
    assert ladder.weights == {"noisy.x0": 0, "noisy.x1": 20, "noisy.x4": 80} and ladder.examples == 100
    for task in ladder.tasks:
        assert task.source("validation").fingerprint == task.source("train").fingerprint and task.max_examples is None
    turned = repeat_ladder(Task(name="noisy", splits={"train": from_list(RECORDS[::-1], name="noisy")}), (0, 1, 4))
    again = [{task.source("train")[i]["id"] for i in range(20)} for task in turned.tasks]
    assert again == ids


def test_every_bin_is_trained_on_exactly_as_often_as_it_says(tmp_path):
    tiny_model(tmp_path / "base")
    ladder = repeat_ladder(TASK, (0, 1, 2, 4))
    config = tiny_config(
        tmp_path, tasks=ladder.tasks, duration=Budget(examples=ladder.examples),
        mixture=MixtureConfig(strategy=Strategy.WEIGHTS, weights=ladder.weights),
    )  # fmt: skip
    plan = resolve(config, questions=False).plan
    met: dict[str, list[int]] = {}
    for step in range(plan.num_steps):
        for placement in (placement for row in plan.rows(step) for placement in row):
            met.setdefault(placement.task, []).append(placement.example)
    assert set(met) == {"noisy.x1", "noisy.x2", "noisy.x4"}
    for task, examples in met.items():
        times = int(task[-1])
        assert np.bincount(examples).tolist() == [times] * 15


def test_a_cap_of_one_pass_removes_what_repeats():
    ladder = repeat_ladder(TASK, (0, 1, 2))
    capped = MixtureConfig(strategy=Strategy.WEIGHTS, weights=ladder.weights, max_repeats=1, allow_underfill=True)
    sizes = {task.name: len(task.source("train")) for task in ladder.tasks}
    rows = {row["task"]: row["count"] for row in allocate(sizes, capped, ladder.examples).to_json()["tasks"]}
    assert rows == {"noisy.x0": 0, "noisy.x1": 20, "noisy.x2": 20}


@pytest.mark.parametrize("repeats", [(1, 2), (0,), (0, 1, 1), (-1, 0), ()])
def test_a_ladder_has_a_control_and_different_bins(repeats):
    with pytest.raises(UserError, match="0 and one or more"):
        repeat_ladder(TASK, repeats)


def test_a_task_needs_a_record_a_bin():
    short = Task(name="short", splits={"train": from_list(RECORDS[:2], name="short")})
    with pytest.raises(UserError, match="2 training records, too few for 3 bins"):
        repeat_ladder(short, (0, 1, 2))


def test_ladders_are_found_by_the_names_of_their_bins():
    names = ["qa", "noisy.x4", "noisy.x0", "noisy.x1", "lone.x2", "a.b.x0", "a.b.x16"]
    assert ladders(names) == {
        "noisy": {0: "noisy.x0", 1: "noisy.x1", 4: "noisy.x4"}, "a.b": {0: "a.b.x0", 16: "a.b.x16"},
    }  # fmt: skip
