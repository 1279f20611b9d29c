"""The seven built-in tasks, for a recommended temperature and rate that fresh seeds confirm."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig
from jaxtune.train import quickstart


def config() -> ExperimentConfig:
    """The quickstart, shorter and without answers."""
    return dataclasses.replace(
        quickstart.config(),
        name="recommendation",
        duration=Budget(steps=40),
        eval=EvalConfig(every=0, generate=False),
    )
