"""The answers of the chapter's experiments: contrasts from planted results, and the table of the README."""

import csv
import importlib.util
import itertools
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = range(5)


@pytest.fixture(scope="module")
def answers():
    spec = importlib.util.spec_from_file_location("chapter_answers", ROOT / "experiments" / "answers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def write(root: pathlib.Path, folder: str, rows: list[dict], name: str = "results.csv") -> None:
    (root / folder).mkdir()
    with (root / folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({"status": "finished", **row} for row in rows)


def found(answers, root: pathlib.Path, folder: str, name: str = "results.csv"):
    [experiment] = [one for one in answers.EXPERIMENTS if (one.folder, one.results) == (folder, name)]
    return answers.answers(experiment, root)


def test_the_table_of_the_readme_is_that_of_the_results(answers):
    text = (ROOT / "README.md").read_text()
    assert answers.with_table(text) == text, "python experiments/answers.py --readme"
    assert all(f"experiments/{one.folder}/run.py" in text for one in answers.EXPERIMENTS)


def test_an_experiment_without_results_says_so(answers, tmp_path):
    table = answers.table(tmp_path)
    assert table.count("not yet run") == len(answers.EXPERIMENTS)


def test_temperatures_are_compared_inside_seeds_and_adjusted_together(answers, tmp_path):
    noise = np.random.default_rng(0)
    rows = [
        {
            "status": "finished", "mixture.temperature": temperature, "seed": seed,
            "macro_loss": 1 + seed + (0 if temperature in (2, 3, 5) else 0.25) + noise.normal(0, 1e-3),
            "loss/sum_stories": 2 + seed - (0.5 if temperature == 3 else 0) + noise.normal(0, 1e-3),
        }
        for temperature, seed in itertools.product((1, 2, 3, 5, "inf"), SEEDS)
    ]  # fmt: skip
    write(tmp_path, "16-rare-tasks", rows)
    rare, middle = found(answers, tmp_path, "16-rare-tasks")
    assert rare.found.mean == pytest.approx(-0.5, abs=0.01) and rare.found.clear and rare.found.n == 5
    assert middle.found.mean == pytest.approx(-0.25, abs=0.01) and middle.found.high < 0
    assert rare.found.adjusted >= rare.found.p
    assert "| -0.5" not in (table := answers.table(tmp_path)) and ": -0.5" in table


def test_adapters_are_compared_at_equal_loss_and_not_at_equal_rate(answers, tmp_path):
    """Both methods lie on one line; adapters forget 0.1 nats less at every loss, at whatever rate."""
    rows = [
        {
            "status": "finished", "tag": f"{method}-{rate}", "seed": seed, "macro_loss": loss + 0.001 * seed,
            "forgotten/builtin": 2 - loss - (0.1 if method == "lora" else 0) + 0.01 * seed * step,
        }
        for method, points in {
            "full": {"3e-4": 1.6, "1e-3": 1.2, "3e-3": 0.8, "1e-2": 0.4},
            "lora": {"1e-3": 1.5, "3e-3": 1.1, "1e-2": 0.7, "3e-2": 0.6},
        }.items()
        for step, (rate, loss) in enumerate(points.items())
        for seed in SEEDS
    ]  # fmt: skip
    write(tmp_path, "19-forgetting", rows)
    rate, method = found(answers, tmp_path, "19-forgetting")
    assert rate.found.mean == pytest.approx(0.8 + 0.02 * 2, abs=0.01)
    assert method.found.mean == pytest.approx(-0.1, abs=0.03)


def test_the_prompts_effect_and_its_growth_with_length(answers, tmp_path):
    rows = [
        {
            "status": "finished", "tag": f"prefix_{length}-response-{weight}", "seed": seed,
            **{f"loss/prefix_{other}": 1 + seed + (weight == "0.5") * length / 1000 for other in (0, 48, 144)},
        }
        for length, weight, seed in itertools.product((0, 48, 144), ("0", "0.5"), SEEDS)
    ]  # fmt: skip
    write(tmp_path, "18-prompt-loss", rows)
    means = [one.found.mean for one in found(answers, tmp_path, "18-prompt-loss")]
    assert means == pytest.approx([0, 0.048, 0.144, 0.144])


def test_a_run_that_did_not_finish_is_no_result(answers, tmp_path):
    rows = [
        {"status": "finished" if seed else "failed", "mixture.temperature": t, "seed": seed, "macro_loss": 1,
         "loss/sum_stories": 1}
        for t, seed in itertools.product((1, 2, 3, 5, "inf"), SEEDS)
    ]  # fmt: skip
    write(tmp_path, "16-rare-tasks", rows)
    with pytest.raises(ValueError, match="5 rows, 4 finished"):
        found(answers, tmp_path, "16-rare-tasks")


def test_cells_of_the_transfer_matrix_keep_the_p_of_the_whole_matrix(answers, tmp_path):
    cells = [
        {"source": a, "target": b, "estimate": 0.25, "low": 0.125, "high": 0.375, "n": 5, "p_adjusted": 0.01}
        for a, b in answers.PAIRS
    ]
    write(tmp_path, "22-transfer", [{"status": "finished", "seed": 0}])
    (tmp_path / "22-transfer" / "transfer.json").write_text(json.dumps({"forms": {"added": {"cells": cells}}}))
    assert all(one.found.clear and one.found.n == 5 for one in found(answers, tmp_path, "22-transfer"))


def test_what_repeats_add_is_measured_against_the_control_bin_and_without_the_cap(answers, tmp_path):
    """Memorising 0.01 nats a repeat without a cap; with it every bin is met once."""
    bins = (0, 1, 16)
    rows = [
        {
            "status": "finished", "mixture.max_repeats": cap, "seed": seed,
            **{f"loss/noisy.x{times}": 2 + seed - 0.01 * (times if cap == "inf" else min(times, 1)) for times in bins},
            **{f"exact_match/noisy.x{times}": 0.25 + (0.5 if times == 16 and cap == "inf" else 0) for times in bins},
        }
        for cap, seed in itertools.product(("inf", "4", "1"), SEEDS)
    ]  # fmt: skip
    write(tmp_path, "17-repeats", rows)
    means = [one.found.mean for one in found(answers, tmp_path, "17-repeats")]
    assert means == pytest.approx([0.16, 0.01, 0, 0.5])


def test_warmup_is_compared_inside_an_optimizer_and_a_rate(answers, tmp_path):
    effects = {("adamw", "1e-2"): -0.3, ("adamw", "1e-3"): -0.05, ("muon", "1e-3"): 0.02, ("muon", "1e-2"): 9.0}
    rows = [
        {
            "status": "finished", "optim.optimizer": optimizer, "optim.peak_lr": rate, "optim.warmup_frac": share,
            "seed": seed, "macro_loss": 1 + seed + (effect if share == "0.05" else 0) + (5 if share == "0.2" else 0),
        }
        for (optimizer, rate), effect in effects.items()
        for share, seed in itertools.product(("0", "0.05", "0.2"), SEEDS)
    ]  # fmt: skip
    write(tmp_path, "20-warmup", rows)
    means = [one.found.mean for one in found(answers, tmp_path, "20-warmup")]
    assert means == pytest.approx([-0.3, 0.02, -0.25])


def test_epochs_are_compared_by_the_mean_of_their_tasks(answers, tmp_path):
    tasks, losses = ("six_classes", "sums", "prefix_0"), {1: (3.0, 3.0, 3.0), 3: (1.0, 2.0, 3.0), 16: (1.0, 2.0, 4.5)}
    rows = [
        {
            "status": "finished", "duration.epochs": epochs, "seed": seed,
            **{f"loss/{task}": loss + seed for task, loss in zip(tasks, by_task, strict=True)},
        }
        for epochs, by_task in losses.items()
        for seed in SEEDS
    ]  # fmt: skip
    write(tmp_path, "21-epochs", rows)
    assert [one.found.mean for one in found(answers, tmp_path, "21-epochs")] == pytest.approx([0.5, -1.0])


def test_a_recommendation_is_judged_on_the_fresh_seeds_alone(answers, tmp_path):
    rows = [
        {
            "status": "finished", "confirms": fresh, "mixture.temperature": temperature, "optim.peak_lr": rate,
            "seed": seed + (10 if fresh else 0),
            "macro_loss": 1 + seed + (gain if fresh else -7 * (gain != 0)),
        }
        for fresh, seed in itertools.product((False, True), SEEDS)
        for temperature, rate, gain in ((2.0, 1e-3, 0.0), (4.0, 3e-3, 0.125))
    ]  # fmt: skip
    write(tmp_path, "23-recommendation", rows)
    [one] = found(answers, tmp_path, "23-recommendation")
    assert one.found.mean == pytest.approx(0.125) and one.found.n == 5


def test_replay_is_compared_inside_seeds(answers, tmp_path):
    rows = [
        {
            "status": "finished", "tag": tag, "seed": seed,
            "forgotten/builtin": 1 + seed - (0.3 if tag == "tenth" else 0) + 0.001 * (seed % 2),
            "macro_loss": 2 + seed + (0.05 if tag == "tenth" else 0) - 0.001 * seed * (tag == "tenth"),
        }
        for tag in ("without", "tenth")
        for seed in SEEDS
    ]  # fmt: skip
    write(tmp_path, "19-forgetting", rows, "replay.csv")
    forgotten, loss = found(answers, tmp_path, "19-forgetting", "replay.csv")
    assert forgotten.found.mean == pytest.approx(-0.3) and forgotten.found.high < 0
    assert loss.found.mean == pytest.approx(0.048) and loss.found.clear
