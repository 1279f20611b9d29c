"""A repeat ladder of random answers: bins of 100 examples trained on 0, 1, 2, 4, 8 and 16 times."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig, MixtureConfig, OnCap, Strategy
from jaxtune.tasks import repeat_ladder
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

LADDER = repeat_ladder(TASKS["noisy"])


def config() -> ExperimentConfig:
    """The base model, batch and optimizer of the quickstart."""
    return dataclasses.replace(
        quickstart.config(),
        name="repeats",
        tasks=LADDER.tasks,
        duration=Budget(examples=LADDER.examples),
        mixture=MixtureConfig(strategy=Strategy.WEIGHTS, weights=LADDER.weights, on_cap=OnCap.SHRINK),
        eval=EvalConfig(every=0, max_examples=None, generate_examples=100, max_new_tokens=16),
    )
