"""All parameters of Gemma-3-270M on three hub data sets at temperature 2, one GPU or TPU chip of 16 GB or more.

Run:     jaxtune train configs/gemma_3_270m.py --run-dir runs/gemma      (extras `hub` and `cuda` or `tpu`)
         The model is gated: accept its licence on the hub and log in first (huggingface-cli login).
Takes:   not measured. `jaxtune plan-memory configs/gemma_3_270m.py --platform gpu --device-gib 16` says what fits.
Reaches: not measured.
"""

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
