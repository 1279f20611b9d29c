import math

import numpy as np
import pytest
import toy_runs

from jaxtune.errors import UserError
from jaxtune.reports.sweep_grid import sweep_grids
from jaxtune.runs.sweep_contrasts import questions
from jaxtune.runs.sweeps import LOSS, MATCH, by_size, is_sweep, read_sweep, sweep_table, task_measure
from jaxtune.storage.documents import read_json, write_json


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "temperature"
    return toy_runs.write_toy_sweep(folder, temperatures=("1", "inf"), rates=("3e-4", "1e-3"), seeds=(0, 1, 5), steps=6)


def summary_of(folder, setting, seed):
    name = f"temperature={setting['mixture.temperature']}_peak_lr={setting['optim.peak-lr']}_seed={seed}"
    return read_json(folder / "runs" / name / "summary.json")


def test_the_matrix_holds_every_run_by_setting_and_seed(sweep_dir):
    sweep = read_sweep(sweep_dir)
    loss, math_loss = sweep.matrix(LOSS.pick), sweep.matrix(task_measure("math", LOSS).pick)
    assert loss.shape == (4, 3) and sweep.seeds == [0, 1, 5] and sweep.is_grid
    for row, setting in enumerate(sweep.settings):
        for column, seed in enumerate(sweep.seeds):
            after = summary_of(sweep_dir, setting, seed)["after"]["task_loss"]
            assert loss[row, column] == pytest.approx(np.mean(list(after.values())))
            assert math_loss[row, column] == after["math"]


def test_the_table_has_a_flat_row_per_run(sweep_dir):
    rows = sweep_table(read_sweep(sweep_dir))
    assert len(rows) == 12
    assert rows[0]["mixture.temperature"] == "1" and rows[0]["seed"] == 0
    after = summary_of(sweep_dir, {"mixture.temperature": "1", "optim.peak-lr": "3e-4"}, 0)["after"]["task_score"]
    assert rows[0]["macro_exact_match"] == pytest.approx(np.mean([one["exact_match"] for one in after.values()]))
    assert {f"loss/{task}" for task in toy_runs.SIZES} <= set(rows[0])
    assert all(not isinstance(value, dict | list) for row in rows for value in row.values())


def test_values_that_came_later_stand_between_the_first_ones():
    """A refined sweep's heatmap has its axes in order; words have none."""
    assert by_size(["1", "2", "inf", "10", "1e-3"]) == ["1e-3", "1", "2", "10", "inf"]
    assert by_size(["muon", "2", "adamw"]) == ["muon", "2", "adamw"]


def test_pictures_are_in_order_and_contrasts_against_the_value_that_was_given_first(tmp_path):
    """A sweep that was refined, of which the user gave the own rate first."""
    runs = []
    for rate in ("2e-3", "1e-3", "0.0014"):
        toy_runs.write_toy_run(tmp_path / rate, steps=6)
        runs.append({"name": rate, "overrides": {"optim.peak-lr": rate}, "seed": 0, "dir": rate})
    write_json(tmp_path / "sweep.json", {"runs": runs})
    sweep = read_sweep(tmp_path)
    [[grid, *_]] = sweep_grids(sweep)
    assert list(grid.rows) == ["1e-3", "0.0014", "2e-3"]
    assert [(one.value, one.reference) for one in questions(sweep)] == [("1e-3", "2e-3"), ("0.0014", "2e-3")]


def test_options_that_some_settings_leave_alone_make_no_grid(tmp_path):
    runs = []
    for name, overrides in (("a", {"optim.peak-lr": "1e-3"}), ("b", {"mixture.temperature": "2"}), ("c", {})):
        toy_runs.write_toy_run(tmp_path / name, steps=6)
        runs.append({"name": name, "overrides": overrides, "seed": 0, "dir": name})
    write_json(tmp_path / "sweep.json", {"runs": runs})
    sweep = read_sweep(tmp_path)
    assert not sweep.is_grid and sweep.axes == {"optim.peak-lr": ["1e-3"], "mixture.temperature": ["2"]}
    assert [sweep.name(one) for one in sweep.settings] == ["peak lr 1e-3", "temperature 2", "the config"]
    assert [row["optim.peak-lr"] for row in sweep_table(sweep)] == ["1e-3", "", ""]


@pytest.mark.parametrize("record", [{}, {"runs": 3}, {"runs": [{"name": "a"}]}, {"runs": ["a"]}, []])
def test_a_record_of_another_form_is_refused(tmp_path, record):
    write_json(tmp_path / "sweep.json", record)
    with pytest.raises(UserError, match="put back a whole copy of the file"):
        read_sweep(tmp_path)


def test_what_is_no_sweep_or_has_nothing_finished_is_refused(tmp_path, sweep_dir):
    assert is_sweep(sweep_dir) and not is_sweep(tmp_path)
    with pytest.raises(UserError, match=r"sweep\.json: no such file"):
        read_sweep(tmp_path)
    run = {"name": "a", "overrides": {"x": "1"}, "seed": 0, "dir": "runs/a"}
    write_json(tmp_path / "sweep.json", {"runs": [run]})
    with pytest.raises(UserError, match="none of its 1 runs is finished"):
        read_sweep(tmp_path)


def test_measures_that_no_run_has_are_not_offered(tmp_path):
    toy_runs.write_toy_run(tmp_path / "a", steps=6)
    summary = read_json(tmp_path / "a" / "summary.json")
    del summary["after"]["task_score"]
    write_json(tmp_path / "a" / "summary.json", summary)
    write_json(tmp_path / "sweep.json", {"runs": [{"name": "a", "overrides": {}, "seed": 0, "dir": "a"}]})
    assert read_sweep(tmp_path).measures == [LOSS]
    assert MATCH.form(math.nan) == "–" and MATCH.form(0.5) == "50.0"
