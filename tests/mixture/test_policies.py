"""Shares of stages from losses: the formulas by hand, and what each policy does with tasks of three kinds."""

import dataclasses
import math

import pytest

from jaxtune.errors import UserError
from jaxtune.mixture import MixtureConfig, OnCap, Policy, allocate
from jaxtune.mixture.policies import next_shares
from jaxtune.mixture.stages import shares_by_stage, stage_ends, stage_mixture, with_stage

PRIOR = {"a": 0.75, "b": 0.25}
BANDIT = MixtureConfig(stages=3, policy=Policy.BANDIT, policy_strength=2.0)
GAP = MixtureConfig(stages=3, policy=Policy.LOSS_GAP, policy_strength=2.0, policy_reference={"a": 0.5, "b": 1.0})


def test_loss_gap_by_hand():
    found = next_shares(GAP, PRIOR, [{"a": 9.0, "b": 9.0}, {"a": 0.75, "b": 2.0}])
    a, b = 0.75 * math.exp(2 * 0.25), 0.25 * math.exp(2 * 1.0)
    assert found == {"a": pytest.approx(a / (a + b), abs=1e-6), "b": pytest.approx(b / (a + b), abs=1e-6)}


def test_bandit_by_hand_with_its_moving_average():
    losses = [{"a": 4.0, "b": 4.0}, {"a": 2.0, "b": 4.0}, {"a": 2.0, "b": 1.0}]
    first = next_shares(BANDIT, PRIOR, losses[:2])
    a, b = 0.75 * math.exp(2 * 0.5), 0.25
    assert first["a"] == pytest.approx(a / (a + b), abs=1e-6)
    second = next_shares(BANDIT, PRIOR, losses)
    a, b = 0.75 * math.exp(2 * 0.25), 0.25 * math.exp(2 * 0.375)  # averages of .5, 0 and of 0, .75
    assert second["b"] == pytest.approx(b / (a + b), abs=1e-6)


@pytest.mark.parametrize("config", [BANDIT, GAP])
def test_without_strength_the_shares_stay(config):
    config = dataclasses.replace(config, policy_strength=0.0)
    assert next_shares(config, PRIOR, [{"a": 3.0, "b": 9.0}, {"a": 1.0, "b": 9.0}]) == PRIOR


def test_a_task_left_out_stays_out_and_one_that_takes_part_stays_in():
    losses = [{"a": 9.0, "b": 9.0, "c": 1.0}, {"a": 0.1, "b": 9.0, "c": 1.0}]
    config = dataclasses.replace(BANDIT, policy_strength=1000.0)
    assert next_shares(config, {"a": 0.5, "b": 0.5, "c": 0.0}, losses) == {"a": 1.0, "b": 1e-6, "c": 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_loss_that_is_not_there_is_named(bad):
    losses = [{"a": 3.0, "b": 3.0}, {"a": 1.0} | ({} if bad is None else {"b": bad})]
    with pytest.raises(UserError, match="task 'b' has no finite validation loss at the end of stage 1"):
        next_shares(BANDIT, PRIOR, losses)


def simulated(config, stages=8):
    """Share of each task in the last of `stages`, where one is learned already, one is noise, and one is learnable."""
    prior = {"learned": 0.4, "noise": 0.3, "learnable": 0.3}
    loss = {"learned": 0.05, "noise": math.log(64), "learnable": 4.0}
    losses, shares = [dict(loss)], dict(prior)
    for _ in range(stages):
        loss["learnable"] = 0.1 + (loss["learnable"] - 0.1) * math.exp(-0.8 * shares["learnable"])
        loss["noise"] *= 1.002  # what is memorised of it makes it worse
        losses.append(dict(loss))
        shares = next_shares(config, prior, losses)
    return shares


def test_the_bandit_leaves_what_is_learned_and_what_is_noise():
    shares = simulated(MixtureConfig(stages=9, policy=Policy.BANDIT, policy_strength=10.0))
    assert shares["learnable"] > 0.7 and shares["noise"] < 0.15 and shares["learned"] < 0.2


def test_the_loss_gap_chases_noise_which_is_why_it_is_not_the_default():
    reference = {"learned": 0.05, "noise": 0.1, "learnable": 0.1}
    config = MixtureConfig(stages=9, policy=Policy.LOSS_GAP, policy_strength=1.0, policy_reference=reference)
    shares = simulated(config)
    assert shares["noise"] > 0.7 and shares["noise"] > 3 * shares["learnable"]
    assert MixtureConfig().policy is Policy.CONSTANT


def test_ends_of_stages_are_even_and_every_stage_has_an_update():
    assert stage_ends(10, 4) == [2, 5, 7, 10] and stage_ends(3, 3) == [1, 2, 3]
    with pytest.raises(UserError, match="more than the 3 steps"):
        stage_ends(3, 4)


def test_recorded_shares_are_read_by_stage_and_their_number_is_checked():
    config = dataclasses.replace(BANDIT, stage_shares=(0.1, 0.9, 0.5, 0.5))
    assert shares_by_stage(config, ("a", "b")) == [{"a": 0.1, "b": 0.9}, {"a": 0.5, "b": 0.5}]
    for wrong in ((0.1,), (0.1, 0.9) * 3):
        with pytest.raises(UserError, match="takes one for each of the 2 trained tasks"):
            shares_by_stage(dataclasses.replace(BANDIT, stage_shares=wrong), ("a", "b"))


def test_what_was_drawn_counts_against_the_caps_of_the_next_stage():
    sizes, capped = {"a": 1000, "b": 10}, MixtureConfig(temperature=1, max_repeats=2, on_cap=OnCap.REDISTRIBUTE)
    first = allocate(sizes, capped, 500)
    mixture = stage_mixture(capped, {"a": 0.5, "b": 0.5})
    second = allocate(sizes, mixture, 100, drawn=first.counts)
    assert first.counts == {"a": 495, "b": 5} and second.counts == {"a": 85, "b": 15}
    whole = with_stage(first, second, {"a": 1, "b": 1})
    assert whole.counts == {"a": 580, "b": 20} and whole.budget == 600
    assert whole.capped == {"a": False, "b": True} and whole.epochs["b"] == 2 and whole.realised["b"] == 20 / 600


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": Policy.BANDIT}, "there is one stage"),
        ({"policy": Policy.LOSS_GAP, "stages": 3}, "give mixture.policy_reference"),
        ({"stage_shares": (0.5, 0.5)}, "whose policy is not constant"),
        ({"stages": 0}, r"whole number in \[1, 1000\]"),
        ({"policy_strength": math.nan}, "policy_strength"),
    ],
)
def test_impossible_stages_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MixtureConfig(**settings)
