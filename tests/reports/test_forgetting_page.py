"""The section on forgetting, from runs whose numbers were planted."""

import json

import pytest
import toy_runs
from pages import assert_self_contained

from jaxtune.reports.forgetting import forgetting_section
from jaxtune.reports.page import page
from jaxtune.reports.run import write_report
from jaxtune.runs.forgotten import forget, gain
from jaxtune.runs.history import read_run
from jaxtune.runs.results import reached
from jaxtune.storage.documents import read_json, write_json


def planted(folder, seed: int, forgot: float):
    """A run that forgot so many nats on one text and twice as many on another."""
    toy_runs.write_toy_run(folder, steps=6, seed=seed)
    summary = read_json(folder / "summary.json")
    text = lambda loss, **more: {"loss": loss, "exact": 0.5, "n": 200, **more}
    summary["before"]["retention"] = {"builtin": text(1.6), "wiki.jsonl": text(3.0)}
    summary["after"]["retention"] = {
        "builtin": text(1.6 + forgot, kl=0.5 * forgot), "wiki.jsonl": text(3.0 + 2 * forgot, kl=forgot),
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    with (folder / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"kind": "retention", "step": 6, "texts": summary["after"]["retention"]}) + "\n")
    return read_run(folder)


def test_runs_are_drawn_by_gain_and_forgetting(tmp_path):
    runs = [planted(tmp_path / f"r{i}", i, 0.2 * i) for i in range(3)]
    assert [forget(run) for run in runs] == pytest.approx([0, 0.3, 0.6])
    assert gain(runs[0]) == pytest.approx(reached(runs[0], "before").loss - reached(runs[0]).loss)
    section = forgetting_section(runs)
    assert section is not None
    shown = assert_self_contained(page("x", kicker="", lead="", top="", sections=[section], foot=""))
    assert "Gain against forgetting" in shown.text and "+0.800" in shown.text and "r2" in shown.text


def test_the_page_of_a_run_has_the_section_where_there_are_texts(tmp_path):
    with_texts = assert_self_contained(write_report(planted(tmp_path / "a", 0, 0.1).path).read_text())
    without = assert_self_contained(write_report(toy_runs.write_toy_run(tmp_path / "b", steps=6)).read_text())
    assert "Forgetting" in with_texts.text and "Forgetting" not in without.text
