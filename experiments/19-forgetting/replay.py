"""The seven tasks with and without a share of the kind of text that the base model was trained on."""

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import sentencepiece as spm

from jaxtune.config import Budget, EvalConfig, ExperimentConfig, MixtureConfig, Strategy
from jaxtune.tasks import Task, from_list
from jaxtune.tasks.builtin.collection import FAMILIES
from jaxtune.train import quickstart
from jaxtune.train.texts import place, windows

HERE = Path(__file__).parent
BASE = HERE.parent.parent / "jaxtune" / "assets" / "base" / "tokenizer.model"
FIRST, COUNT = 1000, 400
"""Number of the first document, in the window after the one that the base model's training leaves out; how many."""


def replay() -> Task:
    """Documents as the base model read them, token for token and without a template; every token trains.

    Documents that share 32 tokens in a row with a retention text are left out, as a run would refuse them.
    """
    if str(HERE.parent / "00-base-model") not in sys.path:
        sys.path.append(str(HERE.parent / "00-base-model"))
    from base_text import document

    processor = spm.SentencePieceProcessor(model_file=str(BASE))
    held = [json.loads(line)["text"] for line in place("builtin").read_text().splitlines()]
    shared = np.concatenate([windows(np.array(processor.encode(text))) for text in held])
    read = ([processor.bos_id(), *processor.encode(document(i)), processor.eos_id()] for i in itertools.count(FIRST))
    ids = list(itertools.islice((one for one in read if not np.isin(windows(np.array(one)), shared).any()), COUNT))
    return Task(
        name="replay",
        splits={"train": from_list({"tokens": one, "loss_weights": [0, *[1] * (len(one) - 1)]} for one in ids)},
    )


def config() -> ExperimentConfig:
    """The quickstart, shorter, without answers, at three times its rate; shares as at T = 2, by default no replay."""
    start = quickstart.config()
    shares = {name: math.sqrt(family.train_size) for name, family in FAMILIES.items()}
    return dataclasses.replace(
        start,
        name="replay",
        tasks=(*start.tasks, replay()),
        duration=Budget(steps=40),
        mixture=MixtureConfig(strategy=Strategy.WEIGHTS, weights={**shares, "replay": 0}, max_repeats=4),
        optim=dataclasses.replace(start.optim, peak_lr=3e-3),
        eval=EvalConfig(every=0, generate=False, retention=("builtin", "builtin-completions")),
    )
