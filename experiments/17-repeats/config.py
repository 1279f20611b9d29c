"""A repeat ladder of random answers: bins of 100 examples trained on 0, 1, 2, 4, 8 and 16 times."""

from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    MixtureConfig,
    ModelSource,
    OnCap,
    OptimConfig,
    Optimizer,
    Strategy,
)
from jaxtune.tasks import repeat_ladder
from jaxtune.tasks.builtin.science import TASKS

LADDER = repeat_ladder(TASKS["noisy"])


def config() -> ExperimentConfig:
    """The built-in base model, Muon at the rate of the quickstart."""
    return ExperimentConfig(
        name="repeats",
        model=ModelSource(path="builtin"),
        tasks=LADDER.tasks,
        duration=Budget(examples=LADDER.examples),
        mixture=MixtureConfig(strategy=Strategy.WEIGHTS, weights=LADDER.weights, on_cap=OnCap.SHRINK),
        data=DataConfig(seq_len=128, processes=2),
        batch=BatchConfig(rows=16),
        optim=OptimConfig(optimizer=Optimizer.MUON, peak_lr=1e-3, warmup_frac=0.05),
        eval=EvalConfig(every=0, max_examples=None, generate_examples=100, max_new_tokens=16),
    )
