"""Policies of a mixture in stages: the shares of the next stage as a pure function of validation losses so far.

`loss_gap` follows the loss above a reference, as group distributionally robust mixing does (DoReMi, arXiv 2305.10429):
w_i = p_i exp(beta (l_i - r_i)) / sum. A task that cannot be learned keeps its gap, and is given more and more.

`bandit` follows what training gives: the prior-scaled Boltzmann rule of arXiv 2508.12116,
w_i = p_i exp(beta Q_i) / sum, where Q_i is a moving average of rewards. Its reward looks one update ahead on each task;
here it is what the last stage as a whole took off the task's loss, (l_before - l_after) / l_before, which needs no
update beyond those of the run. A task that is learned or cannot be learned has a reward near 0.

p are the shares of the first stage. Shares are rounded to a millionth, so that a file holds them exactly.
"""

import math
from collections.abc import Mapping, Sequence

from jaxtune.errors import UserError
from jaxtune.mixture.settings import MixtureConfig, Policy

DIGITS = 6
"""Decimal places of a share."""
NEWEST = 0.5
"""Weight of the newest reward in the moving average; the average of the first stage is its reward."""


def next_shares(
    config: MixtureConfig, prior: Mapping[str, float], losses: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Share of each task in the stage to come.

    `prior`: shares of the first stage by task. `losses`: validation losses by task in nats per token, before the first
    update and at the end of every stage so far. Raises UserError for losses that are missing or not finite.
    """
    for number, found in enumerate(losses):
        bad = [task for task in prior if not math.isfinite(found.get(task, math.nan))]
        if bad:
            when = f"at the end of stage {number}" if number else "before training"
            raise UserError(
                f"mixture.policy {config.policy.value!r}: task {bad[0]!r} has no finite validation loss {when}, so the "
                "next stage has no shares; lower the learning rate, or choose the policy constant"
            )
    moved = {Policy.CONSTANT: _nothing, Policy.LOSS_GAP: _gaps, Policy.BANDIT: _rewards}[config.policy]
    return _boltzmann(prior, moved(config, list(prior), losses), float(config.policy_strength))


def _nothing(config: MixtureConfig, tasks: Sequence[str], losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return dict.fromkeys(tasks, 0.0)


def _gaps(config: MixtureConfig, tasks: Sequence[str], losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Nats per token above the reference, at the end of the last stage."""
    assert config.policy_reference is not None
    return {task: losses[-1][task] - config.policy_reference[task] for task in tasks}


def _rewards(config: MixtureConfig, tasks: Sequence[str], losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Moving average of the share of its loss that a task lost in each stage."""
    averages: dict[str, float] = {}
    for before, after in zip(losses, losses[1:], strict=False):
        for task in tasks:
            reward = (before[task] - after[task]) / before[task] if before[task] > 0 else 0.0
            averages[task] = NEWEST * reward + (1 - NEWEST) * averages.get(task, reward)
    return averages


def _boltzmann(prior: Mapping[str, float], values: Mapping[str, float], strength: float) -> dict[str, float]:
    """p exp(strength value), normalised and rounded; a task that takes part keeps at least a millionth."""
    taking = {task: share for task, share in prior.items() if share > 0}
    most = max(values[task] for task in taking)
    raw = {task: share * math.exp(strength * (values[task] - most)) for task, share in taking.items()}
    total = math.fsum(raw.values())
    least = 10.0**-DIGITS
    return {task: max(round(raw[task] / total, DIGITS), least) if task in raw else 0.0 for task in prior}
