"""The seven built-in tasks, short runs."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig
from jaxtune.train import quickstart


def config() -> ExperimentConfig:
    """The quickstart, shorter and without answers."""
    return dataclasses.replace(
        quickstart.config(),
        name="warmup",
        duration=Budget(steps=40),
        eval=EvalConfig(every=0, generate=False),
    )
