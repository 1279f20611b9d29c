import math
import pathlib

import numpy as np
import pytest
import toy_runs

from jaxtune.runs.history import Run
from jaxtune.runs.results import Outcome
from jaxtune.runs.sweep_contrasts import answers, questions, task_answers
from jaxtune.runs.sweeps import LOSS, MATCH, FinishedArm, Sweep, read_sweep
from jaxtune.science.contrasts import over_seeds

BLANK = Run(
    path=pathlib.Path("."), config={}, environment={}, manifest={}, mixture={}, tasks=(), samples={}, generations={},
    summary={}, train=(), evals=(), scores=(), answers=(), events=(),
)  # fmt: skip


def made(values, settings, seeds):
    """A sweep in memory whose validation losses are `values`, settings x seeds."""
    outcome = lambda loss: Outcome(
        loss=float(loss), exact_match=math.nan, task_loss={}, task_exact_match={}, task_scores={}
    )
    arms = [
        FinishedArm(name="", setting=settings[row], seed=seeds[column], run=BLANK, after=outcome(values[row, column]))
        for row, column in np.ndindex(values.shape)
    ]
    return Sweep(path=pathlib.Path("."), arms=arms, confirmations=[], unfinished=[])


GRID = [{"t": t, "lr": lr} for t in "124" for lr in "ab"]


def test_a_value_is_compared_inside_each_seed_over_settings_alike_in_all_else():
    values = np.random.default_rng(0).standard_normal((6, 4))
    found = answers(made(values, GRID, [0, 1, 2, 3]), [LOSS])
    assert [(one.question.axis, one.question.value, one.question.pairs) for one in found] == [
        ("t", "2", 2),
        ("t", "4", 2),
        ("lr", "b", 3),
    ]
    by_seed = (values[4:6] - values[0:2]).mean(axis=0)
    assert found[1].contrast.by_seed == pytest.approx(by_seed)
    expected = over_seeds(by_seed.tolist())
    assert (found[1].contrast.low, found[1].contrast.p) == pytest.approx((expected.low, expected.p))
    assert found[1].contrast.n == 4


def test_pages_without_any_effect_call_something_clear_on_one_in_twenty_at_most():
    """Eight settings, five seeds, an interaction of one run's spread: every page is one family."""
    rng, alarms = np.random.default_rng(1), []
    settings = [{"t": t, "lr": lr} for t in "1248" for lr in "ab"]
    for _ in range(300):
        y = rng.standard_normal((4, 2, 5)) + rng.standard_normal((4, 1, 5)) + rng.standard_normal(5)
        found = answers(made(y.reshape(8, 5), settings, range(5)), [LOSS])
        alarms.append(any(one.contrast.clear for one in found))
    assert np.mean(alarms) <= 0.08


def test_a_pair_with_a_missing_partner_is_left_out():
    found = questions(made(np.zeros((5, 2)), GRID[:5], [0, 1]))
    assert [(one.value, one.pairs) for one in found] == [("2", 2), ("4", 1), ("b", 2)]
    assert all(math.isclose(one.weights.sum(), 0, abs_tol=1e-12) for one in found)


def test_a_list_without_pairs_compares_settings_with_the_first():
    settings = [{"t": "1", "lr": "a"}, {"t": "2", "lr": "b"}, {"t": "3", "lr": "c"}]
    found = questions(made(np.zeros((3, 2)), settings, [0, 1]))
    assert [one.weights.tolist() for one in found] == [[-1, 1, 0], [-1, 0, 1]]


def test_each_table_by_task_is_a_family_of_its_own(tmp_path):
    folder = toy_runs.write_toy_sweep(tmp_path, temperatures=("1", "inf"), rates=("1e-3",), seeds=(0, 1, 2, 3), steps=6)
    sweep = read_sweep(folder)
    found = task_answers(sweep, "mixture.temperature", MATCH, ["qa", "math"])
    assert [one.measure.title for one in found] == ["qa", "math"]
    smaller, larger = sorted((one.contrast for one in found), key=lambda one: one.p)
    assert smaller.adjusted == pytest.approx(min(1, 2 * smaller.p)) and larger.adjusted >= smaller.adjusted
