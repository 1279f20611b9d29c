import itertools
import math
import shutil

import numpy as np
import pytest
import toy_runs
from pages import assert_self_contained

from jaxtune.reports.sweep import write_sweep_report
from jaxtune.reports.sweep_grid import sweep_grids
from jaxtune.runs.sweeps import read_sweep
from jaxtune.storage.documents import read_json, write_json


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
    page = assert_self_contained(write_sweep_report(read_sweep(sweep_dir)).read_text())
    assert (sweep_dir / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert {"Grid", "Which setting is best", "Paired differences", "Task by task", "Curves", "Runs"} <= set(page.text)
    assert any("12 finished runs" in text for text in page.text)


def test_each_cell_is_the_mean_over_seeds_with_its_standard_deviation(sweep_dir):
    [[loss, match]] = sweep_grids(read_sweep(sweep_dir))
    for row, temperature in enumerate(("1", "2", "inf")):
        for column, rate in enumerate(("3e-4", "1e-3")):
            for grid, key in ((match, "exact_match"), (loss, "loss")):
                values = [final(sweep_dir, temperature, rate, seed, key) for seed in (0, 1)]
                assert grid.mean[row, column] == pytest.approx(np.mean(values))
                assert grid.spread[row, column] == pytest.approx(np.std(values, ddof=1))


def test_unfinished_runs_leave_holes_and_are_named(sweep_dir, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(sweep_dir, partial)
    cells = [partial / "runs" / f"temperature=inf_peak_lr=1e-3_seed={seed}" / "summary.json" for seed in (0, 1)]
    cells[0].unlink()
    write_json(cells[1], read_json(cells[1]) | {"status": "stopped"})
    sweep = read_sweep(partial)
    assert len(sweep.arms) == 10 and len(sweep.unfinished) == 2
    assert math.isnan(sweep_grids(sweep)[0][0].mean[2, 1])
    page = assert_self_contained(write_sweep_report(read_sweep(partial)).read_text())
    assert any(text.startswith("Not finished: temperature=inf") for text in page.text)


def test_a_sweep_over_one_option_and_one_seed_has_a_report_without_intervals(tmp_path):
    write = toy_runs.write_toy_run
    values = ("1", "4")
    runs = []
    for value in values:
        write(tmp_path / "runs" / value, steps=6, temperature=float(value))
        runs.append({"name": value, "overrides": {"mixture.temperature": value}, "seed": 0, "dir": f"runs/{value}"})
    write_json(tmp_path / "sweep.json", {"runs": runs})
    page = assert_self_contained(write_sweep_report(read_sweep(tmp_path)).read_text())
    assert any("1 seed gives no interval" in text for text in page.text)


def test_a_third_option_gives_a_heatmap_for_each_of_its_values(tmp_path):
    runs = []
    for scale in ("1", "2"):
        for temperature in ("1", "2"):
            name = f"{scale}-{temperature}"
            toy_runs.write_toy_run(tmp_path / name, steps=6, temperature=float(temperature))
            overrides = {"mixture.temperature": temperature, "optim.peak-lr": "1e-3", "batch.rows": scale}
            runs.append({"name": name, "overrides": overrides, "seed": 0, "dir": name})
    write_json(tmp_path / "sweep.json", {"runs": runs})
    titles = [grid.title for pair in sweep_grids(read_sweep(tmp_path)) for grid in pair]
    assert titles == [
        "Validation loss, mean of tasks (nats) · rows 1",
        "Exact match, mean of tasks (%) · rows 1",
        "Validation loss, mean of tasks (nats) · rows 2",
        "Exact match, mean of tasks (%) · rows 2",
    ]
    assert_self_contained(write_sweep_report(read_sweep(tmp_path)).read_text())


def test_every_cell_links_to_the_pages_of_its_runs(sweep_dir):
    page = assert_self_contained(write_sweep_report(read_sweep(sweep_dir)).read_text())
    for run in read_json(sweep_dir / "sweep.json")["runs"]:
        assert page.links.count(f"{run['dir']}/report.html") == 3  # in each of two grids and in the table of runs


def test_the_head_says_when_the_runs_began_and_on_what(sweep_dir, tmp_path):
    shutil.copytree(sweep_dir, tmp_path / "s")
    for entry, day in zip(read_json(tmp_path / "s" / "sweep.json")["runs"], (1, 4, 2), strict=False):
        path = tmp_path / "s" / entry["dir"] / "environment.json"
        write_json(path, {**read_json(path), "started": f"2026-11-0{day}T08:30:00+00:00"})
    page = write_sweep_report(read_sweep(tmp_path / "s")).read_text()
    assert "jaxtune sweep · 2026-11-01 08:30 to 2026-11-04 08:30 UTC · 2 × AMD EPYC" in page


def test_a_run_without_validation_has_no_best_step(sweep_dir, tmp_path):
    shutil.copytree(sweep_dir, tmp_path / "s")
    path = tmp_path / "s" / read_json(tmp_path / "s" / "sweep.json")["runs"][0]["dir"] / "summary.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "best"})
    page = assert_self_contained(write_sweep_report(read_sweep(tmp_path / "s")).read_text())
    assert "–" in page.text and "-1" not in page.text


def test_the_page_says_how_many_contrasts_it_holds_and_what_its_colours_span(sweep_dir):
    page = assert_self_contained(write_sweep_report(read_sweep(sweep_dir)).read_text())
    assert any("This page holds 6 contrasts" in text for text in page.text)  # (2 + 1 values) x 2 measures
    assert sum(text.startswith("colours from ") for text in page.text) == 2


def test_a_winner_is_quoted_as_chosen_until_fresh_seeds_confirm_it(tmp_path):
    folder = toy_runs.write_toy_sweep(
        tmp_path / "s", temperatures=("1", "4"), rates=("1e-3",), seeds=(0, 1, 2), steps=6
    )
    before = assert_self_contained(write_sweep_report(read_sweep(folder)).read_text())
    assert any("chosen from these runs" in text for text in before.text)
    record = read_json(folder / "sweep.json")
    earlier = [("2", 4), ("2", 5)]  # a winner of its time, confirmed on other seeds than the one of now
    for value, seed in (*earlier, *itertools.product(("1", "4"), (7, 8, 9))):
        name = f"fresh-{value}-{seed}"
        toy_runs.write_toy_run(folder / "runs" / name, seed=seed, steps=6, temperature=float(value))
        overrides = {"mixture.temperature": value, "optim.peak-lr": "1e-3"}
        entry = {"name": name, "overrides": overrides, "seed": seed, "dir": f"runs/{name}", "confirms": True}
        record["runs"].append(entry)
    write_json(folder / "sweep.json", record)
    sweep = read_sweep(folder)
    assert len(sweep.arms) == 6 and len(sweep.confirmations) == 8 and sweep.seeds == [0, 1, 2]
    page = assert_self_contained(write_sweep_report(sweep).read_text())
    assert not any("chosen from these runs" in text for text in page.text)
    assert any("3 fresh seeds" in text and "against temperature" in text and "[" in text for text in page.text)


def test_a_list_of_settings_that_is_no_grid_has_a_page_without_heatmaps(tmp_path):
    runs = []
    for index, (temperature, rate) in enumerate([("1", "1e-3"), ("3", "2e-3"), ("7", "5e-4")]):
        for seed in (0, 1, 2):
            name = f"{index}-{seed}"
            toy_runs.write_toy_run(tmp_path / name, seed=seed, steps=6, temperature=float(temperature))
            overrides = {"mixture.temperature": temperature, "optim.peak-lr": rate}
            runs.append({"name": name, "overrides": overrides, "seed": seed, "dir": name, "tag": f"setting {index}"})
    write_json(tmp_path / "sweep.json", {"runs": runs})
    page = assert_self_contained(write_sweep_report(read_sweep(tmp_path)).read_text())
    assert not (tmp_path / "heatmap.png").exists() and "Grid" not in page.text
    assert any(text == "setting, against setting 0" for text in page.text)
