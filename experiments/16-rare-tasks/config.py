"""Six tasks from 6,000 to 60 examples, 100 : 1; the smallest is a rewording of a large one."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig, MixtureConfig
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

NAMES = ("six_classes", "sums", "format", "noisy", "prefix_0", "sum_stories")


def config() -> ExperimentConfig:
    """The base model, batch and optimizer of the quickstart."""
    return dataclasses.replace(
        quickstart.config(),
        name="rare-tasks",
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(steps=120),
        mixture=MixtureConfig(temperature=2),
        eval=EvalConfig(every=0, max_examples=200, generate_examples=100, max_new_tokens=16),
    )
