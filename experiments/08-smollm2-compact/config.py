"""Tune SmolLM2-135M-Instruct on seven small real tasks, packed, for 60 steps.

Run:     JAXTUNE_SMOLLM2=<model folder> JAXTUNE_EXTRA_DATA=<data folder> \\
         jaxtune train experiments/08-smollm2-compact/config.py --run-dir runs/smollm2
Takes:   9 s a step on two CPU cores; what it reaches is in README.md beside this file.
"""

import os
import pathlib

from jaxtune.config import BatchConfig, DataConfig, ExperimentConfig, ModelSource
from jaxtune.evaluate.loss import EvalConfig
from jaxtune.mixture.settings import Budget, MixtureConfig
from jaxtune.optim import OptimConfig
from jaxtune.tasks import Task, from_jsonl

TASKS = ("translation", "qa", "classification", "math", "code", "summarization", "open_ended")


def config() -> ExperimentConfig:
    """Seven tasks of 160 to 2,400 examples at temperature 2, each example at most three times."""
    data = pathlib.Path(os.environ["JAXTUNE_EXTRA_DATA"]) / "mixture_compact"
    return ExperimentConfig(
        name="smollm2-compact",
        model=ModelSource(path=os.environ["JAXTUNE_SMOLLM2"]),
        tasks=tuple(
            Task(
                name=name,
                splits={split: from_jsonl(data / name / f"{split}.jsonl") for split in ("train", "validation")},
            )
            for name in TASKS
        ),
        duration=Budget(steps=60),
        mixture=MixtureConfig(temperature=2, max_repeats=3),
        data=DataConfig(seq_len=256),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=2e-5, warmup_frac=0.1),
        eval=EvalConfig(every=30, rows=8, max_examples=50, generate=False),
    )
