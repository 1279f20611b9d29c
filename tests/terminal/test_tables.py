import pytest
import toy_runs

from jaxtune.storage.documents import read_json
from jaxtune.terminal import tables as terminal

ROWS = [
    {"task": "qa", "size": 120000, "probability": 0.7948, "count": 79479, "epochs": 0.66, "capped": False},
    {"task": "math", "size": 8000, "probability": 0.2052, "count": 24000, "epochs": 3.0, "capped": True},
]


def test_the_mixture_table_shows_shares_counts_and_caps(capsys):
    terminal.print_mixture(ROWS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["task", "size", "natural", "nominal", "drawn", "epochs"]
    assert lines[1] == ["qa", "120,000", "93.8%", "79.48%", "79,479", "0.66"]
    assert lines[2] == ["math", "8,000", "6.2%", "20.52%", "24,000", "3.00", "cap"]
    assert lines[3] == ["128,000", "examples,", "103,479", "drawn"]


def test_without_a_budget_the_mixture_table_has_no_counts(capsys):
    terminal.print_mixture([row | {"count": None, "epochs": None, "capped": False} for row in ROWS])
    assert capsys.readouterr().out.splitlines()[0].split() == ["task", "size", "natural", "nominal"]


def test_names_that_look_like_markup_are_printed_as_they_are(capsys):
    terminal.print_mixture([ROWS[0] | {"task": "[bold]qa[/bold]"}])
    assert "[bold]qa[/bold]" in capsys.readouterr().out


def test_the_summary_puts_before_and_after_side_by_side(tmp_path, capsys):
    summary = read_json(toy_runs.write_toy_run(tmp_path / "run", steps=12) / "summary.json")
    terminal.print_summary(summary)
    lines = capsys.readouterr().out.splitlines()
    qa = lines[1].split()
    before, after = summary["before"], summary["after"]
    assert qa[:3] == ["qa", f"{before['task_loss']['qa']:.3f}", f"{after['task_loss']['qa']:.3f}"]
    assert qa[4] == f"{100 * after['task_score']['qa']['exact_match']:.1f}%"
    assert lines[-1].startswith("finished after 12 steps, best validation at step")


@pytest.mark.parametrize(
    "after, why",
    [({}, "there was no validation"), ({"loss": None, "task_loss": {}}, "no validation had a finite loss")],
)
def test_the_summary_says_why_no_step_is_the_best(capsys, after, why):
    best = {"step": -1, "metric": "macro_mean", "value": None}
    ended = {"status": "finished", "steps": 2, "seconds": 1.0, "exported_step": 2, "before": {}, "after": after}
    terminal.print_summary({**ended, "best": best})
    assert f"exported step 2, the last: {why}" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_without_generation_shows_losses_only(capsys):
    terminal.print_evaluation({"task_loss": {"qa": 1.25, "math": None}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["task", "loss"], ["qa", "1.250"], ["math", "–"], ["mean", "of", "tasks", "1.250"]]


def test_where_prompts_train_their_loss_is_a_second_column(capsys):
    terminal.print_evaluation({"task_loss": {"qa": 1.25}, "task_prompt_loss": {"qa": 4.5}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["task", "loss", "prompt", "loss"], ["qa", "1.250", "4.500"]]


def test_facts_are_printed_with_nested_names_indented(capsys):
    terminal.print_facts({"layers": 4, "tokenizer": {"vocab_size": 49152, "files": ["a.json", "b.json"]}, "tied": True})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "layers        4",
        "tokenizer",
        "  vocab_size  49,152",
        "  files       a.json, b.json",
        "tied          True",
    ]
