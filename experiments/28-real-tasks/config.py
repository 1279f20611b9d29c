"""Seven small real tasks of 160 to 2,400 examples on SmolLM2-135M-Instruct, by adapters.

`SMOLLM2` is the model's folder, by default its name on the hub; `REAL_TASKS` is a folder with TASK/train.jsonl and
TASK/validation.jsonl, records of `{"messages": [...]}`. The README says where both come from.
"""

import os
from pathlib import Path

from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    LoraConfig,
    LossConfig,
    MixtureConfig,
    ModelSource,
    Normalization,
    OptimConfig,
)
from jaxtune.tasks import Task, from_jsonl

NAMES = ("translation", "qa", "classification", "math", "code", "summarization", "open_ended")


def task(name: str) -> Task:
    """A task's two files."""
    folder = Path(os.environ.get("REAL_TASKS", "real-tasks")) / name
    return Task(name=name, splits={part: from_jsonl(folder / f"{part}.jsonl") for part in ("train", "validation")})


def config() -> ExperimentConfig:
    """A rank-8 adapter over the frozen model; the loss is a mean over response tokens, whatever prompts weigh."""
    return ExperimentConfig(
        name="real-tasks",
        model=ModelSource(path=os.environ.get("SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")),
        tasks=tuple(map(task, NAMES)),
        duration=Budget(steps=16),
        mixture=MixtureConfig(temperature=3, max_repeats=3),
        data=DataConfig(seq_len=256, processes=2),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_frac=0.1),
        loss=LossConfig(normalization=Normalization.RESPONSE),
        lora=LoraConfig(rank=8),
        eval=EvalConfig(every=0, max_examples=15, generate=False),
    )
