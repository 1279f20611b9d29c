"""Plans in stages: each stage has its shares and its steps, uses go on where they ended, caps hold over all."""

import dataclasses

import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.mixture import Budget, MixtureConfig, Policy
from jaxtune.plan.budgets import plan_for_budget
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.packing import PackPolicy, RowLayout
from jaxtune.plan.staged import plan_for_stages

SIZES = {"large": 3000, "small": 150}
BANDIT = MixtureConfig(temperature=1, stages=3, policy=Policy.BANDIT)


def table(seed=0):
    draw = np.random.default_rng(seed)
    lengths = {name: draw.integers(5, 40, (size, 1)) for name, size in SIZES.items()}
    return LengthTable(lengths, {name: np.maximum(one // 3, 1) for name, one in lengths.items()})


def planned(shares=(), *, packing=PackPolicy.BEST_FIT, steps=12, **mixture):
    layout = RowLayout(seq_len=64, rows_per_step=8, packing=packing)
    config = dataclasses.replace(BANDIT, stage_shares=tuple(shares), **mixture)
    return plan_for_stages(Budget(steps=steps), table(), config, layout, seed=1)


def drawn(plan, first, last):
    """Examples by task in the steps `first` to `last`."""
    return plan.ledger(last).examples - plan.ledger(first).examples


@pytest.mark.parametrize("packing", list(PackPolicy))
def test_every_stage_has_its_steps_and_its_shares(packing):
    plan = planned((0.5, 0.5, 0.1, 0.9), packing=packing)
    assert plan.num_steps == 12
    for (first, last), share in zip([(0, 4), (4, 8), (8, 12)], [150 / 3150, 0.5, 0.9], strict=True):
        counts = drawn(plan, first, last)
        assert counts[1] / counts.sum() == pytest.approx(share, abs=0.03), (first, last)


def test_a_plan_begins_with_the_stages_that_are_done():
    first, second, third = planned(), planned((0.5, 0.5)), planned((0.5, 0.5, 0.1, 0.9))
    assert [plan.num_steps for plan in (first, second, third)] == [4, 8, 12]
    assert all(second.rows(step) == first.rows(step) for step in range(4))
    assert all(third.rows(step) == second.rows(step) for step in range(8))
    assert set(third.earlier) == {first.hash, second.hash} and len({first.hash, second.hash, third.hash}) == 3


def test_no_example_comes_again_before_all_of_its_task_have_come_whatever_the_stages():
    plan = planned((0.2, 0.8, 0.5, 0.5))
    placed = [one for step in range(plan.num_steps) for row in plan.rows(step) for one in row]
    for task, size in SIZES.items():
        uses = sorted((one.use, one.example) for one in placed if one.task == task)
        assert [use for use, _ in uses] == list(range(len(uses)))
        for start in range(0, len(uses), size):
            examples = [example for _, example in uses[start : start + size]]
            assert len(set(examples)) == len(examples)


def test_caps_hold_over_all_stages():
    plan = planned((0.5, 0.5, 0.5, 0.5), max_repeats={"large": 9.0, "small": 0.4})
    assert plan.ledger().examples[1] == 60 and plan.num_steps == 12


def test_a_stage_that_the_caps_leave_too_little_is_named():
    with pytest.raises(UserError, match="stage 2 of 3, steps 5 to 8, cannot be planned: .*max_repeats allows"):
        planned((0.5, 0.5), max_repeats=0.05)
    with pytest.raises(UserError, match=r"stage 2 of 3 would end at step \d of 8"):
        planned((0.5, 0.5), max_repeats=0.04, allow_underfill=True)


def test_the_length_has_to_be_in_steps():
    with pytest.raises(UserError, match="needs its length in steps"):
        plan_for_stages(Budget(epochs=1), table(), BANDIT, RowLayout(seq_len=64, rows_per_step=8), seed=1)


def test_the_first_stage_is_the_plan_of_a_run_as_long_as_it():
    layout = RowLayout(seq_len=64, rows_per_step=8)
    alone = plan_for_budget(Budget(steps=4), table(), MixtureConfig(temperature=1), layout, seed=1)
    assert planned().hash == alone.hash
