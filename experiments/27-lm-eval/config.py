"""Short answers to open questions on SmolLM2-135M-Instruct by adapters; lm-eval before and after.

`SMOLLM2` is the model's folder, `NQ` a JSON lines file of questions; without them both come from the hub.
"""

import os
from pathlib import Path

from jaxtune.chat import Conversation, Message
from jaxtune.config import (
    BatchConfig,
    Budget,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    LmEvalConfig,
    LoraConfig,
    ModelSource,
    OptimConfig,
)
from jaxtune.tasks import Scoring, Task, from_hub, from_jsonl

HERE = Path(__file__).parent
NAMES = ("builtin_labels", "builtin_answers", "builtin_texts")


def short(record: dict) -> Conversation:
    """A question, and the first of its accepted answers."""
    question = Message("user", f"Answer briefly: {record['question']}?")
    return Conversation([question, Message("assistant", record["answer"][0])])


def questions() -> Task:
    """NQ-open: questions of people to a search engine, with short answers (arXiv 1906.00300)."""
    file = os.environ.get("NQ")
    records = from_jsonl(file) if file else from_hub("google-research-datasets/nq_open", split="validation")
    metric = Scoring(metrics=("squad_em", "squad_f1", "log_likelihood"), references="answer")
    return Task(
        name="nq_open", records=records, splits={"validation": 0.04, "test": 0.04}, templates=(short,), metric=metric
    )


def config() -> ExperimentConfig:
    """A rank-8 adapter over the frozen model, 16 steps of four rows of 64 tokens."""
    return ExperimentConfig(
        name="lm-eval",
        model=ModelSource(path=os.environ.get("SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")),
        tasks=(questions(),),
        duration=Budget(steps=16),
        data=DataConfig(seq_len=64),
        batch=BatchConfig(rows=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_frac=0.1),
        lora=LoraConfig(rank=8),
        eval=EvalConfig(
            every=0, max_examples=24, generate_examples=24, max_new_tokens=12, answers=0,
            lm_eval=LmEvalConfig(tasks=NAMES, include=str(HERE / "tasks")),
        ),
    )  # fmt: skip
