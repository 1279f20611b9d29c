"""All parameters of Llama-3.2-1B on three hub data sets at temperature 2, one GPU of 80 GB or eight TPU chips.

Run:     jaxtune train configs/llama_3_2_1b.py --run-dir runs/llama      (extras `hub` and `cuda` or `tpu`)
         on eight chips: --mesh.fsdp 8 --batch.micro-rows 64
         The model is gated: accept its licence on the hub and log in first (huggingface-cli login).
Takes:   not measured. `jaxtune plan-memory configs/llama_3_2_1b.py --platform gpu --device-gib 80` says what fits.
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
    return ExperimentConfig(
        name="llama-3.2-1b",
        model=ModelSource(path="meta-llama/Llama-3.2-1B", template="llama3", remat=Remat.DOTS),
        tasks=tasks(),
        duration=Budget(epochs=2),
        mixture=MixtureConfig(temperature=2, max_repeats=3),
        data=DataConfig(seq_len=2048, processes=8),
        batch=BatchConfig(rows=64, micro_rows=8),
        optim=OptimConfig(peak_lr=1e-5, warmup_frac=0.03),
        eval=EvalConfig(every=100, max_examples=200, generate=False),
    )
