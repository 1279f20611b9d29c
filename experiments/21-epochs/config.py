"""200 examples of each of four tasks, passed over 1 to 16 times."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig, MixtureConfig
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

NAMES = ("six_classes", "sums", "prefix_0", "noisy")


def config() -> ExperimentConfig:
    """The base model, batch and optimizer of the quickstart."""
    return dataclasses.replace(
        quickstart.config(),
        name="epochs",
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(epochs=1),
        mixture=MixtureConfig(temperature=1, max_examples=200),
        eval=EvalConfig(every=20, max_examples=200, generate_examples=100, max_new_tokens=16),
    )
