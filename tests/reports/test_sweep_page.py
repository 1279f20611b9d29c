import math
import shutil

import numpy as np
import pytest
import toy_runs
from pages import assert_self_contained

from jaxtune.errors import UserError
from jaxtune.reports.sweep import (
    LOSS,
    MATCH,
    is_sweep,
    paired,
    ranking,
    read_sweep,
    sweep_grids,
    sweep_table,
    write_sweep_report,
)
from jaxtune.runs.history import read_json, write_json


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "temperature"
    return toy_runs.write_toy_sweep(folder, temperatures=("1", "2", "inf"), rates=("3e-4", "1e-3"), steps=6)


def final(sweep_dir, temperature, rate, seed, key):
    summary = read_json(sweep_dir / "runs" / f"temperature={temperature}_peak_lr={rate}_seed={seed}" / "summary.json")
    if key == "loss":
        return float(np.mean(list(summary["after"]["task_loss"].values())))
    return float(np.mean([score["exact_match"] for score in summary["after"]["task_score"].values()]))


def test_the_report_of_a_sweep_is_one_file_beside_its_heatmap(sweep_dir):
    page = assert_self_contained(write_sweep_report(sweep_dir).read_text())
    assert (sweep_dir / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert {"Grid", "Paired differences", "Task by task", "Runs"} <= set(page.text)
    assert any("12 finished runs" in text for text in page.text)


def test_each_cell_is_the_mean_over_seeds_with_its_standard_deviation(sweep_dir):
    [[match, loss]] = sweep_grids(read_sweep(sweep_dir))
    for row, temperature in enumerate(("1", "2", "inf")):
        for column, rate in enumerate(("3e-4", "1e-3")):
            for grid, key in ((match, "exact_match"), (loss, "loss")):
                values = [final(sweep_dir, temperature, rate, seed, key) for seed in (0, 1)]
                assert grid.mean[row, column] == pytest.approx(np.mean(values))
                assert grid.spread[row, column] == pytest.approx(np.std(values, ddof=1))


def test_differences_are_paired_by_seed_and_every_other_option(sweep_dir):
    sweep = read_sweep(sweep_dir)
    found = paired(sweep, LOSS.pick, {"mixture.temperature": "1"}, {"mixture.temperature": "inf"})
    expected = [
        final(sweep_dir, "inf", rate, seed, "loss") - final(sweep_dir, "1", rate, seed, "loss")
        for rate in ("3e-4", "1e-3")
        for seed in (0, 1)
    ]
    assert sorted(found) == pytest.approx(sorted(expected))


def test_settings_are_ranked_best_first_in_the_direction_of_the_measure(sweep_dir):
    sweep = read_sweep(sweep_dir)
    for measure, sign in ((MATCH, -1), (LOSS, 1)):
        means = [sign * float(np.mean(values)) for _, values in ranking(sweep, measure)]
        assert means == sorted(means) and len(means) == 6


def test_the_table_has_a_flat_row_per_run(sweep_dir):
    rows = sweep_table(sweep_dir)
    assert len(rows) == 12
    assert rows[0]["mixture.temperature"] == "1" and rows[0]["seed"] == 0
    assert rows[0]["macro_exact_match"] == pytest.approx(final(sweep_dir, "1", "3e-4", 0, "exact_match"))
    assert {f"loss/{task}" for task in toy_runs.SIZES} <= set(rows[0])
    assert all(not isinstance(value, dict | list) for row in rows for value in row.values())


def test_unfinished_runs_leave_holes_and_are_named(sweep_dir, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(sweep_dir, partial)
    cells = [partial / "runs" / f"temperature=inf_peak_lr=1e-3_seed={seed}" / "summary.json" for seed in (0, 1)]
    cells[0].unlink()
    write_json(cells[1], read_json(cells[1]) | {"status": "stopped"})
    sweep = read_sweep(partial)
    assert len(sweep.arms) == 10 and len(sweep.unfinished) == 2
    assert math.isnan(sweep_grids(sweep)[0][0].mean[2, 1])
    page = assert_self_contained(write_sweep_report(partial).read_text())
    assert any(text.startswith("Not finished: temperature=inf") for text in page.text)


def test_a_sweep_over_one_option_and_one_seed_has_a_report_without_intervals(tmp_path):
    write = toy_runs.write_toy_run
    values = ("1", "4")
    runs = []
    for value in values:
        write(tmp_path / "runs" / value, steps=6, temperature=float(value))
        runs.append({"name": value, "overrides": {"mixture.temperature": value}, "seed": 0, "dir": f"runs/{value}"})
    write_json(tmp_path / "sweep.json", {"axes": {"mixture.temperature": values}, "seeds": [0], "runs": runs})
    page = assert_self_contained(write_sweep_report(tmp_path).read_text())
    assert any("one seed gives no interval" in text for text in page.text)


def test_a_third_option_gives_a_heatmap_for_each_of_its_values(tmp_path):
    runs = []
    for scale in ("1", "2"):
        for temperature in ("1", "2"):
            name = f"{scale}-{temperature}"
            toy_runs.write_toy_run(tmp_path / name, steps=6, temperature=float(temperature))
            overrides = {"mixture.temperature": temperature, "optim.peak-lr": "1e-3", "batch.rows": scale}
            runs.append({"name": name, "overrides": overrides, "seed": 0, "dir": name})
    axes = {"mixture.temperature": ["1", "2"], "optim.peak-lr": ["1e-3"], "batch.rows": ["1", "2"]}
    write_json(tmp_path / "sweep.json", {"axes": axes, "seeds": [0], "runs": runs})
    titles = [grid.title for pair in sweep_grids(read_sweep(tmp_path)) for grid in pair]
    assert titles == [
        "Exact match, mean of tasks (%) · rows 1",
        "Validation loss, mean of tasks · rows 1",
        "Exact match, mean of tasks (%) · rows 2",
        "Validation loss, mean of tasks · rows 2",
    ]
    assert_self_contained(write_sweep_report(tmp_path).read_text())


def test_what_is_no_sweep_or_has_nothing_finished_is_refused(tmp_path, sweep_dir):
    assert is_sweep(sweep_dir) and not is_sweep(tmp_path)
    with pytest.raises(UserError, match=r"sweep\.json: no such file"):
        read_sweep(tmp_path)
    write_json(tmp_path / "sweep.json", {"axes": {}})
    with pytest.raises(UserError, match="has no seeds, runs"):
        read_sweep(tmp_path)
    run = {"name": "a", "overrides": {"x": "1"}, "seed": 0, "dir": "runs/a"}
    write_json(tmp_path / "sweep.json", {"axes": {"x": ["1"]}, "seeds": [0], "runs": [run]})
    with pytest.raises(UserError, match="none of its 1 runs is finished"):
        read_sweep(tmp_path)
