"""Validation loss by task, and the one number of it that is watched."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.errors import UserError
from jaxtune.evaluate.loss import Aggregate, LossResult, per_task_loss
from jaxtune.step.losses import LossSums
from jaxtune.train.decisions import Counters

TASKS = ["a", "b", "c"]
COUNTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=4).filter(lambda rows: any(map(any, rows)))


def sums_of(tokens: tuple[int, ...]) -> LossSums:
    """A batch with so many tokens by task, each of weight 0.5 and of a loss that is the task's number + 1."""
    weight = 0.5 * np.array(tokens)
    return LossSums(
        objective=jnp.zeros(()), nll=jnp.asarray(weight * [1.0, 2.0, 3.0]), weight=jnp.asarray(weight),
        tokens=jnp.asarray(tokens), correct=jnp.asarray([n // 2 for n in tokens]), over_capacity=jnp.zeros((), int),
    )  # fmt: skip


@given(COUNTS)
def test_every_watched_number_is_its_mean(batches):
    result = per_task_loss(sums_of, batches, TASKS)
    tokens = np.sum(batches, axis=0)
    measured = {task: float(n + 1) for n, task in enumerate(TASKS) if tokens[n]}
    assert result.task_loss == pytest.approx(measured)
    assert result.watched(Aggregate.MACRO_MEAN) == pytest.approx(np.mean(list(measured.values())))
    assert result.watched(Aggregate.WORST_TASK) == pytest.approx(max(measured.values()))
    assert result.watched(Aggregate.TOKEN_MEAN) == pytest.approx(tokens @ [1, 2, 3] / tokens.sum())
    for task, loss in measured.items():
        assert result.watched(Aggregate.TASK, task) == pytest.approx(loss)
    correct = np.sum([[n // 2 for n in batch] for batch in batches], axis=0)
    assert result.task_accuracy == pytest.approx({t: correct[n] / tokens[n] for n, t in enumerate(TASKS) if tokens[n]})


WATCHED = [(Aggregate.MACRO_MEAN, None), (Aggregate.TOKEN_MEAN, None), (Aggregate.WORST_TASK, None)]


@given(COUNTS.filter(lambda rows: any(row[0] or row[1] for row in rows)), st.floats(0.01, 50))
def test_no_watched_number_depends_on_a_held_out_task(batches, loss_of_c):
    """The held-out task may get better or worse: what decides is the number of the trained tasks alone."""

    def moved(tokens):
        sums = sums_of(tokens)
        return dataclasses.replace(sums, nll=sums.nll.at[2].multiply(loss_of_c / 3.0))

    result = per_task_loss(moved, batches, TASKS, held_out=["c"])
    alone = per_task_loss(sums_of, [(a, b, 0) for a, b, _ in batches], TASKS)
    for aggregate, task in [*WATCHED, *((Aggregate.TASK, task) for task in alone.task_loss)]:
        assert result.watched(aggregate, task) == alone.watched(aggregate, task)
    if any(row[2] for row in batches):
        assert result.task_loss["c"] == pytest.approx(loss_of_c, rel=1e-5), "it stands beside the means"


@pytest.mark.parametrize(("aggregate", "task"), WATCHED)
def test_held_out_tasks_alone_decide_nothing(aggregate, task):
    result = per_task_loss(sums_of, [(0, 0, 4)], TASKS, held_out=["c"])
    assert math.isnan(result.watched(aggregate, task)) and result.task_loss == {"c": 3.0}


@pytest.mark.parametrize(("trained", "held", "best"), [([3, 2, 1], [1, 2, 3], 3), ([1, 2, 3], [3, 2, 1], 1)])
def test_the_best_step_is_that_of_the_trained_tasks(trained, held, best):
    """A held-out task that gets better while trained ones get worse, and the other way round."""
    counters = Counters()
    for step, (loss, beside) in enumerate(zip(trained, held, strict=True), start=1):
        sums = dataclasses.replace(sums_of((2, 2, 2)), nll=jnp.asarray([loss, loss, 100.0 * beside]))
        result = per_task_loss(lambda _, s=sums: s, [None], TASKS, held_out=["c"])
        counters = counters.validated(result.watched(Aggregate.MACRO_MEAN), step, 0.0)
    assert counters.best_step == best


def test_a_task_that_is_not_finite_makes_every_mean_not_finite():
    result = LossResult(
        loss=math.nan, macro_loss=math.nan, task_loss={"a": 1.0, "b": math.nan, "c": 2.0}, task_tokens={},
        task_accuracy={},
    )  # fmt: skip
    for aggregate in (Aggregate.TOKEN_MEAN, Aggregate.MACRO_MEAN, Aggregate.WORST_TASK):
        assert not math.isfinite(result.watched(aggregate))


def test_validation_without_a_trained_token_is_an_error():
    with pytest.raises(UserError, match="no validation token carries loss weight"):
        per_task_loss(sums_of, [(0, 0, 0)], TASKS)
