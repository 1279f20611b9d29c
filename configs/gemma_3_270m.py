"""All parameters of Gemma-3-270M on three hub data sets at temperature 2, one GPU or TPU chip of 16 GB or more.

Run:     jaxtune train configs/gemma_3_270m.py --run-dir runs/gemma      (extras `hub` and `cuda` or `tpu`)
         The model is gated: accept its licence on the hub and log in first (huggingface-cli login).
Takes:   not measured. `jaxtune plan-memory configs/gemma_3_270m.py --platform gpu --device-gib 16` says what fits.
Reaches: not measured.
"""

from smollm2_135m import tasks

from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    MixtureConfig,
    ModelSource,
    OptimConfig,
    Remat,
)


def config() -> ExperimentConfig:
    """The vocabulary of 262,144 is three fifths of the model: few rows a forward pass."""
    return ExperimentConfig(
        name="gemma-3-270m",
        model=ModelSource(path="google/gemma-3-270m", template="gemma3", remat=Remat.DOTS),
        tasks=tasks(),
        duration=Budget(epochs=2),
        mixture=MixtureConfig(temperature=2, max_repeats=3),
        data=DataConfig(seq_len=1024, processes=8),
        batch=BatchConfig(rows=64, micro_rows=8),
        optim=OptimConfig(peak_lr=5e-5, warmup_frac=0.03),
        eval=EvalConfig(every=100, max_examples=200, generate=False),
    )
