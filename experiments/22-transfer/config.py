"""Related tasks, two styles in conflict with and without a cue, random answers, and the neutral task."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig, MixtureConfig
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

NAMES = ("format", "sums", "sum_stories", "terse", "verbose", "terse_cued", "verbose_cued", "noisy")


def config() -> ExperimentConfig:
    """The base model, batch and optimizer of the quickstart."""
    return dataclasses.replace(
        quickstart.config(),
        name="transfer",
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(steps=30),
        mixture=MixtureConfig(temperature=2),
        eval=EvalConfig(every=0, max_examples=100, generate=False),
    )
