"""All parameters of SmolLM2-135M-Instruct on three hub data sets at temperature 2, sized for two CPU cores.

Run:     jaxtune train configs/smollm2_135m.py --run-dir runs/smollm2      (extra `hub`)
Takes:   7 to 9 s a step on two CPU cores, 6.2 GB (measured with other data: experiments/08-smollm2-compact).
Reaches: not measured with these data.
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
        name="smollm2-135m",
        model=ModelSource(path="HuggingFaceTB/SmolLM2-135M-Instruct"),
        tasks=tasks(),
        duration=Budget(steps=200),
        mixture=MixtureConfig(temperature=2, max_repeats=3),
        data=DataConfig(seq_len=256, processes=2),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=2e-5, warmup_frac=0.1),
        eval=EvalConfig(every=50, rows=8, max_examples=50, generate=False),
    )
