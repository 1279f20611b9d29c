"""Transfer estimators against effects that were planted."""

import numpy as np
import pytest

from jaxtune.science import transfer


def test_co_training_finds_planted_help_and_harm():
    rng = np.random.default_rng(0)
    effect = np.zeros((4, 4))
    effect[0, 1], effect[2, 3] = 0.3, -0.4
    seed_effect = rng.normal(0, 0.2, 5)
    alone = 1.0 + seed_effect + rng.normal(0, 0.02, (4, 5))
    joint = 1.0 + seed_effect - effect[:, :, None] + rng.normal(0, 0.02, (4, 4, 5))
    found = transfer.co_training(alone, joint)
    assert len(found) == 12
    assert found[0, 1].mean == pytest.approx(0.3, abs=0.05) and found[0, 1].clear
    assert found[2, 3].mean == pytest.approx(-0.4, abs=0.05) and found[2, 3].clear
    assert not [pair for pair, one in found.items() if one.clear and pair not in ((0, 1), (2, 3))]


def test_tasks_without_relation_are_rarely_called_clear():
    rng = np.random.default_rng(1)
    holds, false = [], 0
    for _ in range(100):
        alone, joint = rng.normal(1, 0.02, (4, 5)), rng.normal(1, 0.02, (4, 4, 5))
        found = transfer.co_training(alone, joint)
        holds += [one.low <= 0 <= one.high for one in found.values()]
        false += any(one.clear for one in found.values())
    assert np.mean(holds) >= 0.9
    assert false / 100 <= 0.12  # family-wise 5 %, and what chance allows in 100 families


def test_missing_runs_leave_their_pair_out():
    joint = np.full((2, 2, 3), np.nan)
    joint[0, 1] = [1.0, 1.1, np.nan]
    found = transfer.co_training(np.full((2, 3), 2.0), joint)
    assert set(found) == {(0, 1)} and found[0, 1].by_seed == pytest.approx((1.0, 0.9))


def test_direct_and_own_gains_are_against_the_neutral_task():
    baseline = np.array([[3.0, 3.2, 3.1], [2.0, 2.1, 2.2]])
    alone = np.stack([baseline - 1.0, baseline + 0.25], axis=0)
    assert transfer.direct(baseline, alone)[1, 0].mean == pytest.approx(-0.25)
    gains = transfer.own_gains(baseline, np.stack([alone[0, 0], alone[1, 1]]))
    assert [one.mean for one in gains] == pytest.approx([1.0, -0.25])


@pytest.mark.parametrize(("tasks", "count"), [(5, 15), (6, 18), (7, 21), (7, 40)])
def test_subsets_are_balanced_and_differ(tasks, count):
    drawn = transfer.balanced_subsets(tasks, count)
    assert drawn.shape == (count, tasks) and len(np.unique(drawn, axis=0)) == count
    assert (drawn.sum(axis=0) == count // 2).all() and drawn.any(axis=1).all()
    assert (drawn == transfer.balanced_subsets(tasks, count)).all()


@pytest.mark.parametrize(("tasks", "count"), [(5, 14), (5, 16), (3, 9)])
def test_too_few_or_too_many_subsets_are_refused(tasks, count):
    with pytest.raises(ValueError, match="subsets"):
        transfer.balanced_subsets(tasks, count)


def test_a_subset_design_recovers_planted_effects_and_a_pair_beyond_their_sum():
    rng = np.random.default_rng(2)
    present = transfer.balanced_subsets(6, 24)
    effect = np.array([0.8, 0.2, -0.3, 0.0, 0.0, 0.0])
    noise = rng.normal(0, 0.02, (24, 5))
    losses = 2.0 + rng.normal(0, 0.3, 5) - (present @ effect)[:, None] + noise
    fit = transfer.subset_effects(present, losses)
    assert [one.mean for one in fit.effects] == pytest.approx(effect, abs=0.03)
    assert [one.low < true < one.high for one, true in zip(fit.effects, effect, strict=True)].count(True) >= 4
    assert fit.r2 > 0.95 and abs(fit.largest_residual) < 0.05
    harmed = losses + 0.5 * (present[:, 3] & present[:, 4])[:, None]
    again = transfer.subset_effects(present, harmed)
    assert again.pair == (3, 4) and again.largest_residual > 0.07
    with pytest.raises(ValueError, match="for 6 effects"):
        transfer.subset_effects(present[:6], losses[:6])


def test_tasks_that_help_one_another_are_joined_first():
    gain = np.zeros((4, 4))
    gain[0, 2] = gain[2, 0] = 0.5
    gain[1, 3] = gain[3, 1] = 0.3
    gain[0, 1] = gain[1, 0] = -0.4
    tree = transfer.linkage(gain)
    assert {int(tree.merges[0, 0]), int(tree.merges[0, 1])} == {0, 2}
    assert {int(tree.merges[1, 0]), int(tree.merges[1, 1])} == {1, 3}
    assert sorted(tree.order) == [0, 1, 2, 3] and abs(list(tree.order).index(0) - list(tree.order).index(2)) == 1
