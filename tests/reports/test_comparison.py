import math

import pytest
import toy_runs
from pages import assert_self_contained

from jaxtune.errors import UserError
from jaxtune.reports.comparison import (
    compare_table,
    differing_options,
    question_differences,
    write_comparison,
)
from jaxtune.runs.history import read_run
from jaxtune.runs.results import reached
from jaxtune.storage.documents import read_json, write_json

TASKS = {"qa": 900, "code": 300, "math": 90}


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    mixed = toy_runs.write_toy_run(root / "mixed", sizes=TASKS, steps=12)
    single = [toy_runs.write_toy_run(root / task, sizes=TASKS, steps=12, trained=(task,), seed=3) for task in TASKS]
    return [mixed, *single]


def test_the_comparison_is_one_file_with_every_run_and_task(run_dirs, tmp_path):
    page = assert_self_contained(write_comparison(run_dirs, tmp_path / "all.html").read_text())
    assert {"mixed", "qa", "code", "math", "Against the first run"} <= set(page.text)


def test_one_run_is_not_a_comparison(run_dirs, tmp_path):
    with pytest.raises(UserError, match="at least two"):
        write_comparison(run_dirs[:1], tmp_path / "one.html")


def test_only_options_that_differ_are_listed():
    base = {"seed": 0, "optim": {"peak_lr": 1e-3, "decay": 0.1}}
    other = {"seed": 0, "optim": {"peak_lr": 1e-4, "decay": 0.1}, "name": "b"}
    assert differing_options([base, other]) == ["optim.peak_lr", "name"]


def test_the_table_has_a_row_per_run_with_its_own_numbers(run_dirs):
    runs = [read_run(folder) for folder in run_dirs]
    rows = compare_table(runs)
    assert [row["name"] for row in rows] == ["mixed", "qa", "code", "math"]
    assert [row["seed"] for row in rows] == [0, 3, 3, 3]
    scores = read_json(run_dirs[0] / "summary.json")["after"]["task_score"]
    assert rows[0]["macro_exact_match"] == pytest.approx(sum(s["exact_match"] for s in scores.values()) / 3)


def test_runs_are_compared_question_by_question_only_on_the_same_questions(run_dirs, tmp_path):
    first = read_run(run_dirs[0])
    other = toy_runs.write_toy_run(tmp_path / "other", sizes=TASKS, steps=12, seed=5)
    generations = read_json(other / "generations.json")
    generations["after"]["math"][0]["id"] = "another question"
    write_json(other / "generations.json", generations)
    second = read_run(other)
    found = question_differences(first, second)
    assert set(found) == {"qa", "code"}
    one, two = (reached(run).task_exact_match["qa"] for run in (first, second))
    assert found["qa"].mean == pytest.approx(two - one) and math.isfinite(found["qa"].low)


def test_equal_runs_lie_beneath_one_another_and_their_options_are_listed(tmp_path):
    for name in ("first", "second"):
        toy_runs.write_toy_run(tmp_path / name, steps=60)
    page_text = write_comparison([tmp_path / "first", tmp_path / "second"], tmp_path / "c.html").read_text()
    page = assert_self_contained(page_text)
    assert "--width:3.5" in page_text and "--width:1.8" in page_text
    assert "All options of these runs are the same:" in page.text
    for caption in ("Training loss", "Learning rate", "Tokens per second", "The same over the tokens trained on"):
        assert caption in page.text
