"""Two related tasks, two styles in conflict, and the neutral task."""

import dataclasses

from jaxtune.config import BatchConfig, Budget, EvalConfig, ExperimentConfig, MixtureConfig, OptimConfig
from jaxtune.tasks.builtin.science import TASKS
from jaxtune.train import quickstart

NAMES = ("format", "sums", "sum_stories", "terse", "verbose")


def config() -> ExperimentConfig:
    """The base model of the quickstart; AdamW and 4 rows a step, so that 1,200 examples are 60 to 100 steps."""
    return dataclasses.replace(
        quickstart.config(),
        name="transfer",
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(steps=30),
        mixture=MixtureConfig(temperature=2),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_frac=0.05),
        eval=EvalConfig(every=0, max_examples=100, generate=False),
    )
