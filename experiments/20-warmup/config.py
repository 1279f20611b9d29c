"""The seven built-in tasks, short runs."""

from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    MixtureConfig,
    ModelSource,
    OptimConfig,
    Optimizer,
)
from jaxtune.tasks.builtin import TASKS as SEVEN


def config() -> ExperimentConfig:
    """The built-in base model, Muon at the rate of the quickstart."""
    return ExperimentConfig(
        name="warmup",
        model=ModelSource(path="builtin"),
        tasks=tuple(SEVEN.values()),
        duration=Budget(steps=60),
        mixture=MixtureConfig(temperature=2, max_repeats=4),
        data=DataConfig(seq_len=128, processes=2),
        batch=BatchConfig(rows=16),
        optim=OptimConfig(optimizer=Optimizer.MUON, peak_lr=1e-3, warmup_frac=0.05),
        eval=EvalConfig(every=0, generate=False),
    )
