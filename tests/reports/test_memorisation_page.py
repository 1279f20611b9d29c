"""The section on memorisation, from runs whose curve was planted."""

import numpy as np
import pytest
from pages import assert_self_contained

from jaxtune.reports.memorisation import curve, ladder_section, loss_of
from jaxtune.reports.page import page
from jaxtune.runs.history import read_run
from jaxtune.storage.documents import write_json

GAIN = {0: 0.0, 1: 0.0, 4: 0.4, 16: 1.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of five seeds with a ladder of `noisy` and another task."""
    found, rng = [], np.random.default_rng(0)
    for seed in range(5):
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        level = 2 + rng.normal(0, 0.2)
        loss = {f"noisy.x{r}": level - gain + rng.normal(0, 0.01) for r, gain in GAIN.items()}
        score = {f"noisy.x{r}": {"exact_match": gain / 2, "n": 20} for r, gain in GAIN.items()}
        (folder / "metrics.jsonl").write_text("")
        write_json(folder / "config.json", {"name": "toy"})
        tasks = [{"task": name, "size": 20, "count": 20} for name in ("qa", *loss)]
        write_json(folder / "mixture.json", {"tasks": tasks})
        write_json(folder / "summary.json", {"status": "finished", "after": {"task_loss": loss, "task_score": score}})
        found.append(read_run(folder))
    return found


def test_the_curve_is_what_was_planted(runs):
    bins = {times: f"noisy.x{times}" for times in GAIN}
    found = curve(runs, bins, loss_of)
    assert {times: one.mean for times, one in found.items()} == pytest.approx({1: 0, 4: 0.4, 16: 1.1}, abs=0.03)
    assert [times for times, one in found.items() if one.clear] == [4, 16]


def test_the_section_shows_it_for_one_run_and_for_seeds(runs):
    for group, interval in ((runs, True), (runs[:1], False)):
        section = ladder_section({"toy": group})
        assert section is not None
        text = assert_self_contained(page("x", kicker="", lead="", top="", sections=[section], foot="")).text
        assert "Memorisation against repeats" in text and "+55.0" in text
        assert any(" to +" in one for one in text) == interval


def test_runs_without_a_ladder_have_no_section(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_json(tmp_path / "config.json", {"name": "toy"})
    assert ladder_section({"toy": [read_run(tmp_path)]}) is None
