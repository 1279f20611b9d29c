"""A temperature sweep of adapters on one TPU slice: sixteen arms side by side, one copy of the frozen base for all.

Run:     jaxtune sweep configs/pod_sweep.py --sweep-dir runs/pod-sweep --stacked --seeds 0 1 2 3 \\
             --grid mixture.temperature=1,2,4,inf      (extras `hub` and `tpu`)
         Sixteen chips: the arms lie over `mesh.trial`; fewer: --mesh.trial 4 --stack-size 4.
Takes:   not measured. `jaxtune plan-memory configs/pod_sweep.py --platform tpu --devices 16` says what fits.
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
    MeshConfig,
    MixtureConfig,
    ModelSource,
    OptimConfig,
    Remat,
)


def config() -> ExperimentConfig:
    return ExperimentConfig(
        name="pod-sweep",
        model=ModelSource(path="Qwen/Qwen3-0.6B", remat=Remat.DOTS),
        tasks=tasks(),
        duration=Budget(steps=1000),
        mixture=MixtureConfig(temperature=1, max_repeats=4),
        data=DataConfig(seq_len=1024, processes=8),
        batch=BatchConfig(rows=32, micro_rows=8),
        optim=OptimConfig(peak_lr=2e-4, warmup_frac=0.03, weight_decay=0.0),
        lora=LoraConfig(rank=16, alpha=32.0),
        eval=EvalConfig(every=200, max_examples=200, generate=False),
        mesh=MeshConfig(trial=16, data=-1),
    )
