"""The seven built-in tasks beside 200 held-out documents of the base model and 210 beginnings with one right end."""

import dataclasses

from jaxtune.config import Budget, EvalConfig, ExperimentConfig
from jaxtune.train import quickstart


def config() -> ExperimentConfig:
    """The quickstart, shorter and without answers."""
    return dataclasses.replace(
        quickstart.config(),
        name="forgetting",
        duration=Budget(steps=40),
        eval=EvalConfig(every=0, generate=False, retention=("builtin", "builtin-completions")),
    )
