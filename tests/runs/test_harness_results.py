"""What lm-eval measured in a run, before and after tuning: in the record, on pages, in tables, on the terminal."""

import json

import toy_runs

from jaxtune.reports.harness import harness_section
from jaxtune.reports.run import render
from jaxtune.runs.harness import harness_columns, harness_results
from jaxtune.runs.history import read_run
from jaxtune.terminal import tables

BEFORE = {"arc": {"acc": 0.25, "acc_stderr": 0.1, "n": 4}, "gsm": {"error": "OSError: no network"}}
AFTER = {
    "arc": {"acc": 0.5, "acc_stderr": 0.12, "n": 4},
    "gsm": {"exact_match (strict)": 0.75, "exact_match_stderr (strict)": 0.05, "n": 8},
    "mmlu": {"error": "KeyError: 'x'"},
}


def run_with(folder):
    path = toy_runs.write_toy_run(folder / "run", steps=12)
    summary = json.loads((path / "summary.json").read_text())
    summary["before"]["lm_eval"], summary["after"]["lm_eval"] = BEFORE, AFTER
    (path / "summary.json").write_text(json.dumps(summary))
    return read_run(path), summary


def test_metrics_stand_beside_their_errors_and_failures_are_told(tmp_path, capsys):
    run, summary = run_with(tmp_path)
    arc, gsm, mmlu = harness_results(run)
    assert (arc.before, arc.after, arc.error_after, arc.questions) == (0.25, 0.5, 0.12, 4)
    assert gsm.metric == "exact_match (strict)" and gsm.error_after == 0.05 and gsm.before != gsm.before
    assert mmlu.failed == "KeyError: 'x'" and mmlu.metric == ""
    assert harness_columns(run) == {"lm_eval/arc/acc": 0.5, "lm_eval/gsm/exact_match (strict)": 0.75}
    page = render(run)
    assert "0.250 ± 0.100" in page and "failed: KeyError: &#x27;x&#x27;" in page
    tables.print_summary(summary)
    printed = capsys.readouterr().out
    assert "0.750 ± 0.050" in printed and "KeyError: 'x'" in printed and "OSError: no network" in printed


def test_a_run_without_lm_eval_has_no_section(tmp_path):
    assert harness_section([read_run(toy_runs.write_toy_run(tmp_path / "run", steps=12))]) is None


def test_an_evaluation_of_a_folder_alone_prints_lm_eval_alone(capsys):
    tables.print_evaluation({"model": "m", "lm_eval": {"arc": BEFORE["arc"]}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["lm-eval", "task", "metric", "value"], ["arc", "acc", "0.250", "±", "0.100"]]
