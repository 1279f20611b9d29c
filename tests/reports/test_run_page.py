import json

import pytest
import toy_runs
from pages import assert_self_contained

from jaxtune.errors import UserError
from jaxtune.reports.page import tokens
from jaxtune.reports.run import render, write_report
from jaxtune.runs.history import read_run
from jaxtune.runs.results import exact_over_steps, measured, overfitting, score_difference, task_results
from jaxtune.storage.documents import read_json, write_json
from jaxtune.terminal.numbers import signed


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return toy_runs.write_toy_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run_dir):
    return assert_self_contained(write_report(run_dir).read_text())


def test_the_report_is_one_file_in_the_run_folder_that_fetches_nothing(run_dir, page):
    assert (run_dir / "report.html").stat().st_size < 1_000_000
    assert {"Before and after", "Training", "Mixture", "What is trained", "Run facts"} <= set(page.text)


def test_the_headline_gives_the_mean_over_tasks_of_the_summary(run_dir, page):
    summary = read_json(run_dir / "summary.json")
    scores = [score["exact_match"] for score in summary["after"]["task_score"].values()]
    assert f"{100 * sum(scores) / len(scores):.1f}%" in page.text
    assert f"{summary['after']['loss']:.3f}" in page.text


def test_every_task_has_a_row_a_panel_and_an_example(run_dir, page):
    for task in toy_runs.SIZES:
        assert page.text.count(task) >= 5, task


def test_loss_curves_show_validation_and_the_best_step(run_dir, page):
    best = read_json(run_dir / "summary.json")["best"]["step"]
    assert f"best, step {best}" in page.text
    assert page.classes.count("raw") >= 1 + len(toy_runs.SIZES)


def test_trained_tokens_are_marked_and_no_others(run_dir):
    source = render(read_run(run_dir))
    sample = read_run(run_dir).samples["qa"][0]
    card = source[source.index(sample["id"]) :]
    card = card[: card.index("</div></div>")]
    assert card.count('title="weight 1"') == sum(weight > 0 for weight in sample["weights"]) == 3
    assert "3 of 22 tokens trained" in card


def test_a_fractional_weight_is_paler_and_named_on_hover():
    drawn = tokens(["a", " b\n", "c"], [0.0, 0.25, 1.0])
    assert '<span class="w" style="--a:25%" title="weight 0.25"> b<span class="nl">↵</span>\n</span>' in drawn
    assert drawn.startswith('<div class="tokens">a<span')


def test_a_very_long_example_is_cut_and_says_so():
    assert "800 more tokens" in tokens(["x"] * 2000, [1.0] * 2000)


def test_text_from_data_never_becomes_markup(tmp_path):
    name = '<img src="x" onerror="alert(1)">'
    run_dir = toy_runs.write_toy_run(tmp_path / "evil", sizes={name: 300, "qa": 900}, steps=12)
    generations = read_json(run_dir / "generations.json")
    generations["after"]["qa"][0]["prediction"] = "</td><script>alert(1)</script>"
    write_json(run_dir / "generations.json", generations)
    page = assert_self_contained(write_report(run_dir).read_text())
    assert "</td><script>alert(1)</script>" in "".join(page.text)


def test_an_unfinished_run_reports_where_it_is(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "half", finished=False, steps=60)
    page = assert_self_contained(write_report(run_dir).read_text())
    run = read_run(run_dir)
    assert any(text.startswith("jaxtune run · half · not finished, at step 40") for text in page.text)
    assert measured(run, "after")["loss"] == run.evals[-1].loss
    assert measured(run, "before")["loss"] == run.evals[0].loss


def test_a_run_that_has_only_begun_still_has_a_page(tmp_path):
    write_json(tmp_path / "config.json", {"name": "new", "seed": 7})
    (tmp_path / "metrics.jsonl").write_text("")
    page = assert_self_contained(write_report(tmp_path).read_text())
    assert "new" in page.text and "Training" not in page.text


def test_a_folder_that_is_no_run_gets_no_report(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_very_many_tasks_keep_the_page_small_and_the_table_whole(tmp_path):
    sizes = {f"task_{index:04d}": 20 + index for index in range(300)}
    run_dir = toy_runs.write_toy_run(tmp_path / "flan", sizes=sizes, steps=6, questions=1)
    write_json(run_dir / "samples.json", {task: [toy_runs.sample(task, 0)] for task in sizes})
    source = write_report(run_dir).read_text()
    page = assert_self_contained(source)
    assert len(source) < 1_500_000
    assert page.text.count("task_0299") == 2  # the result table and the mixture table
    assert any("276 more tasks" in text for text in page.text)


def test_the_ledger_is_compared_with_the_plan(run_dir, tmp_path):
    assert "; every task as planned" in render(read_run(run_dir))
    other = toy_runs.write_toy_run(tmp_path / "short", steps=6)
    summary = read_json(other / "summary.json")
    summary["ledger"]["examples"]["math"] -= 1
    write_json(other / "summary.json", summary)
    assert "; not as planned: math<" in render(read_run(other))
    write_json(other / "summary.json", summary | {"status": "early_stopped"})
    assert "as planned" not in render(read_run(other))


def test_skipped_updates_and_spikes_are_shown(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "rough", steps=12)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    row = next(row for row in rows if row["kind"] == "train" and row["step"] == 5)
    row["skipped"], row["loss"] = True, None
    rows.append({"kind": "spike", "step": 7, "loss": 9.5, "examples": ["qa/12", "math/3"]})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = assert_self_contained(write_report(run_dir).read_text())
    assert "1 update was skipped: step 5." in page.text
    assert "qa/12, math/3" in page.text and "9.500" in page.text


def test_score_differences_are_paired_only_when_every_answer_was_kept(run_dir):
    run = read_run(run_dir)
    before, after = (measured(run, when)["task_score"]["qa"] for when in ("before", "after"))
    paired = score_difference(run, "qa", before, after)
    kept = {side: {"qa": rows["qa"][:7]} for side, rows in run.generations.items()}
    unpaired = score_difference(type(run)(**{**vars(run), "generations": kept}), "qa", before, after)
    assert paired is not None and unpaired is not None
    assert paired.mean == pytest.approx(unpaired.mean) and paired.low != pytest.approx(unpaired.low)
    gained = after["exact_match"] - before["exact_match"]
    assert paired.mean == pytest.approx(gained)


def test_task_results_leave_out_nothing_that_was_measured(run_dir):
    results = {one.task: one for one in task_results(read_run(run_dir))}
    summary = read_json(run_dir / "summary.json")
    assert {task: one.loss_after for task, one in results.items()} == summary["after"]["task_loss"]
    assert results["math"].score_after == summary["after"]["task_score"]["math"]["exact_match"]


def test_a_validation_loss_that_rises_again_is_named(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "over", steps=12)
    rows = [
        {
            "kind": "eval",
            "step": step,
            "split": "validation",
            "loss": 1.0,
            "task_loss": {"qa": qa, "math": 1.0 / (step + 1)},
        }
        for step, qa in ((0, 2.0), (6, 0.5), (12, 0.6))
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert overfitting(read_run(run_dir)) == [("qa", 6, 0.5, 0.6)]


def test_the_train_validation_gap_stands_beside_that_of_step_0(run_dir, page):
    results = task_results(read_run(run_dir))
    for one in results:
        assert one.gap_after == pytest.approx(0.25 * one.loss_after)
        assert one.gap_before == pytest.approx(0.1 * one.loss_before)
    assert "Train-validation gap" in page.text
    assert signed(results[0].gap_before, 3) in page.text and signed(results[0].gap_after, 3) in page.text


def test_where_prompts_train_their_loss_is_a_second_column_and_curve(tmp_path, page):
    run_dir = toy_runs.write_toy_run(tmp_path / "prompts")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["kind"] == "eval":
            row["task_prompt_loss"] = {task: 7.0 + 0.001 * row["step"] for task in row["task_loss"]}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = read_json(run_dir / "summary.json")
    for when, loss in (("before", 7.125), ("after", 3.875)):
        summary[when]["task_prompt_loss"] = dict.fromkeys(summary[when]["task_loss"], loss)
    write_json(run_dir / "summary.json", summary)
    drawn = assert_self_contained(write_report(run_dir).read_text())
    assert drawn.text.count("7.125") == drawn.text.count("3.875") == len(toy_runs.SIZES) + 1
    assert "Prompt loss" in drawn.text and "prompts of the validation examples, by task" in drawn.text
    assert "Prompt loss" not in page.text and "prompts of the validation" not in page.text
    assert drawn.classes.count("link") == page.classes.count("link") + len(toy_runs.SIZES)


def test_only_the_page_of_a_run_that_still_trains_is_read_again(tmp_path):
    for finished in (True, False):
        folder = toy_runs.write_toy_run(tmp_path / str(finished), steps=6, finished=finished)
        text = write_report(folder).read_text()
        assert ('<meta http-equiv="refresh"' in text) != finished


def test_what_tasks_without_training_lost_is_said(tmp_path):
    folder = toy_runs.write_toy_run(tmp_path / "run", steps=6)
    mixture = read_json(folder / "mixture.json")
    mixture["tasks"] = [row for row in mixture["tasks"] if row["task"] != "math"]
    write_json(folder / "mixture.json", mixture)
    [one] = [one for one in task_results(read_run(folder)) if one.task == "math"]
    text = " ".join(assert_self_contained(write_report(folder).read_text()).text)
    assert "Forgetting, 1 task not trained on" in text
    assert f"validation loss changed by {signed(one.loss_after - one.loss_before, 3)}" in text
    assert f"exact match by {signed(one.score_after - one.score_before, 1, 100)} points" in text


def test_fixed_questions_are_shown_over_the_validations_with_what_was_said_before_them(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "watched", steps=60)
    run = read_run(run_dir)
    first = run.generations["before"]["qa"][0]
    known = {**first, "context": "user: Capital of France?\nassistant: Paris", "prediction": "an early answer"}
    with (run_dir / "metrics.jsonl").open("a") as rows:
        for step in range(10, 200, 10):
            rows.write(json.dumps({"kind": "answers", "step": step, "answers": {"qa": [known]}}) + "\n")
    page = assert_self_contained(write_report(run_dir).read_text())
    assert "While training" in page.text and "Step 0" in page.text and "Step 190" in page.text
    assert page.text.count("an early answer") == 5  # of 19 validations, spread evenly
    assert "user: Capital of France?\nassistant: Paris" in page.text


def test_exact_match_is_drawn_over_the_steps_once_there_are_enough_questions(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "many", steps=60)
    asked = read_run(run_dir).generations["before"]["qa"][:30]
    with (run_dir / "metrics.jsonl").open("a") as rows:
        for step, right in ((20, 10), (40, 20)):
            answers = [{**row, "correct": index < right} for index, row in enumerate(asked)]
            rows.write(json.dumps({"kind": "answers", "step": step, "answers": {"qa": answers}}) + "\n")
    run = read_run(run_dir)
    shares = dict(exact_over_steps(run))
    assert (shares[20], shares[40]) == (10 / 30, 20 / 30) and 0 in shares
    page = assert_self_contained(write_report(run_dir).read_text())
    assert "Exact match" in page.text and "30 fixed questions" in page.text


def test_the_head_says_when_the_run_began_and_on_what(tmp_path):
    run_dir = toy_runs.write_toy_run(tmp_path / "dated", steps=10)
    known = {**read_json(run_dir / "environment.json"), "started": "2026-11-30T03:36:02+00:00"}
    write_json(run_dir / "environment.json", known)
    page = assert_self_contained(write_report(run_dir).read_text())
    assert any("2026-11-30 03:36 UTC · 2 × AMD EPYC" in text for text in page.text)
