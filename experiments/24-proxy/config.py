"""The seven built-in tasks on SmolLM2-135M-Instruct by adapters; `SMOLLM2` is the model's folder."""

import os

from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    LoraConfig,
    MixtureConfig,
    ModelSource,
    OptimConfig,
)
from jaxtune.tasks.builtin import TASKS as SEVEN


def config() -> ExperimentConfig:
    """A rank-8 adapter over the frozen model."""
    return ExperimentConfig(
        name="proxy-large",
        model=ModelSource(path=os.environ.get("SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")),
        tasks=tuple(SEVEN.values()),
        duration=Budget(steps=20),
        mixture=MixtureConfig(temperature=2, max_repeats=4),
        data=DataConfig(seq_len=128, processes=2),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_frac=0.05),
        lora=LoraConfig(rank=8),
        eval=EvalConfig(every=0, max_examples=15, generate=False),
    )
