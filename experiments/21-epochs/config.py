"""200 examples of each of four tasks, passed over 1 to 16 times."""

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

NAMES = ("six_classes", "sums", "prefix_0", "noisy")


def config() -> ExperimentConfig:
    """The built-in base model, Muon at the rate of the quickstart."""
    return ExperimentConfig(
        name="epochs",
        model=ModelSource(path="builtin"),
        tasks=tuple(TASKS[name] for name in NAMES),
        duration=Budget(epochs=1),
        mixture=MixtureConfig(temperature=1, max_examples=200),
        data=DataConfig(seq_len=128, processes=2),
        batch=BatchConfig(rows=16),
        optim=OptimConfig(optimizer=Optimizer.MUON, peak_lr=1e-3, warmup_frac=0.05),
        eval=EvalConfig(every=20, max_examples=200, generate_examples=100, max_new_tokens=16),
    )
