"""A temperature sweep of adapters on one TPU slice: sixteen arms side by side, one copy of the frozen base for all.

Run:     jaxtune sweep configs/pod_sweep.py --sweep-dir runs/pod-sweep --stacked --seeds 0 1 2 3 \\
             --grid mixture.temperature=1,2,4,inf      (extras `hub` and `tpu`)
         Sixteen chips: the arms lie over `mesh.trial`; fewer: --mesh.trial 4 --stack-size 4.
Takes:   not measured. `jaxtune plan-memory configs/pod_sweep.py --platform tpu --devices 16` says what fits.
Reaches: not measured.
"""

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
from jaxtune.tasks import Task, from_hub


def tasks() -> tuple[Task, ...]:
    """Three data sets of the hub: 15,000 questions, 9,500 chats, 7,500 sums; shares of them are kept for validation."""
    dolly = {"instruction": "instruction", "input": "context", "output": "response"}
    return (
        Task(
            name="dolly",
            records=from_hub("databricks/databricks-dolly-15k", split="train"),
            columns=dolly,
            splits={"validation": 0.02},
        ),
        Task(
            name="no_robots",
            splits={
                s: from_hub("HuggingFaceH4/no_robots", split=h) for s, h in (("train", "train"), ("validation", "test"))
            },
        ),
        Task(
            name="gsm8k",
            records=from_hub("openai/gsm8k", config="main", split="train"),
            columns={"prompt": "question", "completion": "answer"},
            splits={"validation": 0.02},
        ),
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
