"""Six tasks from 6,000 to 60 examples, 100 : 1; the smallest is a rewording of a large one."""

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
from jaxtune.tasks.builtin.science import TASKS

NAMES = ("six_classes", "sums", "format", "noisy", "prefix_0", "sum_stories")


def config() -> ExperimentConfig:
    """The built-in base model, Muon at the rate of the quickstart."""
    return ExperimentConfig(
        name="rare-tasks",
        model=ModelSource(path="builtin"),
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(steps=120),
        mixture=MixtureConfig(temperature=2),
        data=DataConfig(seq_len=128, processes=2),
        batch=BatchConfig(rows=16),
        optim=OptimConfig(optimizer=Optimizer.MUON, peak_lr=1e-3, warmup_frac=0.05),
        eval=EvalConfig(every=0, max_examples=200, generate_examples=100, max_new_tokens=16),
    )
