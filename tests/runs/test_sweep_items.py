"""Differences by test question: the crossed interval of the answers that the runs kept."""

import json

import numpy as np
import pytest
import toy_runs

from jaxtune.reports.sweep_tasks import aggregates_section
from jaxtune.runs.sweep_contrasts import questions
from jaxtune.runs.sweep_items import item_difference
from jaxtune.runs.sweeps import LOSS, read_sweep, task_measure
from jaxtune.science.aggregates import interquartile_mean
from jaxtune.science.crossed import crossed

SEEDS, ITEMS = 4, 30


def answer(name: str, prompt: str, correct: bool) -> dict:
    """An entry of generations.json."""
    return {"id": name, "prompt": prompt, "prediction": "a", "reference": "b", "correct": correct}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A sweep over one option whose runs hold known answers to `ITEMS` questions of one task, and the table of them."""
    folder = toy_runs.write_toy_sweep(
        tmp_path_factory.mktemp("items"), temperatures=("1", "4"), rates=("1e-3",), seeds=tuple(range(SEEDS))
    )
    right = np.random.default_rng(0).random((2, SEEDS, ITEMS)) < np.array([0.4, 0.7])[:, None, None]
    for row, temperature in enumerate(("1", "4")):
        for seed in range(SEEDS):
            path = folder / "runs" / f"temperature={temperature}_peak_lr=1e-3_seed={seed}" / "generations.json"
            rows = [answer(f"q{i}", f"What is {i // 2}?", bool(right[row, seed, i])) for i in range(ITEMS)]
            path.write_text(json.dumps({"after": {"math": rows}}))
    return folder, right.astype(float)


def test_a_contrast_by_question_is_the_crossed_mean_with_one_prompt_counted_once(answered):
    folder, right = answered
    sweep = read_sweep(folder)
    [question] = questions(sweep)
    found = item_difference(sweep, question)
    expected = crossed(right[1] - right[0], [i // 2 for i in range(ITEMS)])
    assert found is not None and found == expected and expected.clusters == ITEMS // 2
    assert found.half_new_items > found.half_new_seeds > 0


def test_runs_without_a_question_in_common_have_no_difference(answered, tmp_path):
    folder, _ = answered
    path = folder / "runs" / "temperature=4_peak_lr=1e-3_seed=0" / "generations.json"
    kept = path.read_bytes()
    path.write_text(json.dumps({"after": {"math": [answer("other", "?", True)]}}))
    sweep = read_sweep(folder)
    assert item_difference(sweep, questions(sweep)[0]) is None
    path.write_bytes(kept)


def test_the_page_shows_both_intervals_and_the_middle_half(answered):
    folder, right = answered
    sweep = read_sweep(folder)
    section = aggregates_section(sweep)
    assert section is not None
    text = "".join(map(str, section.parts))
    found = item_difference(sweep, questions(sweep)[0])
    assert found is not None
    for number in (found.half_new_seeds, found.half_new_items, (right[1] - right[0]).mean()):
        assert f"{100 * number:.1f}" in text
    scores = np.stack([sweep.matrix(task_measure(task, LOSS).pick)[1] for task in sweep.tasks])
    assert LOSS.form(interquartile_mean(scores)) in text
