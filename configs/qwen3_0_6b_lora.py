"""Adapters of rank 16 on Qwen3-0.6B, three hub data sets at temperature 2, one GPU or TPU chip of 16 GB or more.

Run:     jaxtune train configs/qwen3_0_6b_lora.py --run-dir runs/qwen3      (extras `hub` and `cuda` or `tpu`)
Takes:   not measured. `jaxtune plan-memory configs/qwen3_0_6b_lora.py --platform gpu --device-gib 16` says what fits.
Reaches: not measured.
"""

from smollm2_135m import tasks

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
    Remat,
)


def config() -> ExperimentConfig:
    return ExperimentConfig(
        name="qwen3-0.6b-lora",
        model=ModelSource(path="Qwen/Qwen3-0.6B", remat=Remat.DOTS),
        tasks=tasks(),
        duration=Budget(epochs=2),
        mixture=MixtureConfig(temperature=2, max_repeats=3),
        data=DataConfig(seq_len=1024, processes=8),
        batch=BatchConfig(rows=64, micro_rows=8),
        optim=OptimConfig(peak_lr=2e-4, warmup_frac=0.03, weight_decay=0.0),
        lora=LoraConfig(rank=16, alpha=32.0),
        eval=EvalConfig(every=100, max_examples=200, generate=False),
    )
