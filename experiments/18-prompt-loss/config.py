"""One question behind 0, 48 or 144 words of no importance; every run trains on one of the three."""

import dataclasses

from jaxtune.config import BatchConfig, Budget, DataConfig, EvalConfig, ExperimentConfig, MixtureConfig, Strategy
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

NAMES = ("prefix_0", "prefix_48", "prefix_144")


def config() -> ExperimentConfig:
    """The base model and optimizer of the quickstart; rows that hold the longest prompt."""
    return dataclasses.replace(
        quickstart.config(),
        name="prompt-loss",
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(steps=30),
        mixture=MixtureConfig(strategy=Strategy.WEIGHTS, weights=dict.fromkeys(NAMES, 1)),
        data=DataConfig(seq_len=320, processes=2),
        batch=BatchConfig(rows=8),
        eval=EvalConfig(every=0, max_examples=150, generate=False),
    )
