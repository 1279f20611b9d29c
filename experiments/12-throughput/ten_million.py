"""The seven built-in tasks for a model of ten million parameters (measure.py writes it and sets the variable)."""

import os

from jaxtune.config import BatchConfig, DataConfig, ExperimentConfig, ModelSource
from jaxtune.evaluate.loss import EvalConfig
from jaxtune.mixture.settings import Budget
from jaxtune.tasks.builtin import TASKS


def config() -> ExperimentConfig:
    """Rows of 256 tokens, 8 a step."""
    return ExperimentConfig(
        name="ten-million",
        model=ModelSource(path=os.environ["JAXTUNE_TEN_MILLION"]),
        tasks=tuple(TASKS.values()),
        duration=Budget(steps=60),
        data=DataConfig(seq_len=256, processes=2),
        batch=BatchConfig(rows=8),
        eval=EvalConfig(generate=False),
    )
