"""One yardstick: the validation loss of the same parameters does not depend on what a run trains with."""

import collections
import dataclasses
import sys

import jax
import numpy as np
import pytest
from helpers import chat_record, letters, tiny_config, tiny_model

from jaxtune.config import DataConfig, LossConfig, MaskPolicy, Normalization, override
from jaxtune.data.subset import encode_again
from jaxtune.step.programs import Programs
from jaxtune.tasks import Scoring, Task, from_list
from jaxtune.train import measure
from jaxtune.train.identity import identify
from jaxtune.train.plans import seen_examples
from jaxtune.train.resolution import TRAIN, resolve
from jaxtune.train.session import open_session

OBJECTIVES = {
    "response": {},
    "some prompt": {"data": {"prompt_loss_weight": 0.1}},
    "prompt": {"data": {"prompt_loss_weight": 1.0}},
    "last answer": {"data": {"mask_policy": MaskPolicy.LAST_ASSISTANT}},
    "completion": {"data": {"mask_policy": MaskPolicy.COMPLETION}},
    "all": {"data": {"mask_policy": MaskPolicy.ALL}},
    "example": {"loss": LossConfig(normalization=Normalization.EXAMPLE, label_smoothing=0.1, z_loss=1e-4)},
    "fixed": {"loss": LossConfig(normalization=Normalization.FIXED, fixed_denominator=64.0)},
}


def two_turns(number):
    record = chat_record(number, f"say {number}", f"{number} it is")
    more = [{"role": "user", "content": "and again"}, {"role": "assistant", "content": f"again {number}"}]
    return {**record, "messages": [*record["messages"], *more]}


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yardstick")
    tiny_model(folder / "base")
    return folder


def inputs_of(folder, changes):
    source = lambda low, high: from_list([two_turns(i) for i in range(low, high)], name=f"{low}")
    task = Task(name="turns", splits={"train": source(0, 30), "validation": source(30, 38)})
    data = DataConfig(seq_len=96, cache_dir=str(folder / "cache"), **changes.get("data", {}))
    config = tiny_config(folder, tasks=(task,), data=data)
    return resolve(dataclasses.replace(config, loss=changes.get("loss", config.loss)), questions=False)


def same(a, b):
    return (a.tokens == b.tokens).all() and (a.loss_weights == b.loss_weights).all()


def test_validation_and_seen_examples_weigh_alike_under_every_objective(place_of):
    plain = inputs_of(place_of, {})
    for changes in OBJECTIVES.values():
        inputs = inputs_of(place_of, changes)
        theirs, ours = inputs.validation["turns"], plain.validation["turns"]
        assert all(same(theirs.example(i), ours.example(i)) for i in range(len(ours.numbers)))
        [seen] = seen_examples(inputs.plan, inputs.train, inputs.validation, 2).values()
        again = encode_again(inputs.tasks["turns"], TRAIN, seen, inputs.yardstick)
        records = [seen.store.record(int(number)) for number in seen.numbers]
        there = {plain.train["turns"].record(i): i for i in range(len(plain.train["turns"]))}
        assert len(again.examples) == len(records) > 0
        for example, record in zip(again.examples, records, strict=True):
            assert same(example, plain.train["turns"].example(there[record]))
        assert again.lengths.tolist() == seen.lengths.tolist()


ASKED_ALIKE = (
    *("--optim.peak-lr 1e-3", "--seed 3", "--duration.steps 2", "--data.prompt-loss-weight 1", "--batch.rows 8"),
    *("--data.mask-policy completion", "--eval.every 2", "--loss.z-loss 1e-4", "--mixture.temperature 1"),
)
ASKED_OTHERWISE = (
    *("--model.template qwen2.5", "--model.compute-dtype bfloat16", "--model.param-dtype bfloat16", "--lora.rank 2"),
    *("--held-out large", "--held-out small", "--eval.max-new-tokens 5", "--eval.generate-examples 2"),
    *("--eval.generate-rows 4", "--model.attention dot_product"),
)


def key_of(config, changes=""):
    session = open_session(resolve(override(config, changes.split()), show_progress=False), Programs())
    return measure.score_key(session, identify(session.inputs))


def test_base_scores_are_taken_over_only_where_the_same_questions_get_the_same_answers(place_of):
    """A sweep scores the base model once for all runs of equal key. Held-out tasks count: they are not in the mean."""
    config = tiny_config(place_of)
    asked = key_of(config)
    assert {changes: key_of(config, changes) == asked for changes in ASKED_ALIKE} == dict.fromkeys(ASKED_ALIKE, True)
    other = {changes: key_of(config, changes) for changes in ASKED_OTHERWISE}
    renamed = [dataclasses.replace(task, metric="rouge_l") for task in config.tasks]
    other["another metric"] = key_of(dataclasses.replace(config, tasks=tuple(renamed)))
    other["other questions"] = key_of(dataclasses.replace(config, tasks=(letters("large", 40), letters("small", 11))))
    by_key = collections.defaultdict(list)
    for what, key in {"as it is": asked, **other}.items():
        by_key[key].append(what)
    assert not [alike for alike in by_key.values() if len(alike) > 1]


HOSTILE = {
    "none": ("import math", "passed"),
    "waits": ("import time; time.sleep(600)", "out of time"),
    "forks": ("import os; os.fork()", "failed: PermissionError: [Errno 1] Operation not permitted"),
    "fills the disk": ("open('full', 'w')", "failed: PermissionError: [Errno 1] Operation not permitted: 'full'"),
    "calls out": ("import socket; socket.socket()", "failed: PermissionError: [Errno 1] Operation not permitted"),
}
"""What stands before an answer -> how it ends."""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_programs_that_misbehave_cost_their_own_score_and_no_other(place_of, monkeypatch):
    asked = [
        chat_record(i, f"write {i}", "7") | {"before": before, "then": "assert math"}
        for i, (before, _) in enumerate(HOSTILE.values())
    ]
    writing = {**letters("code", 8).splits, "test": from_list(asked, name="hostile")}
    scoring = Scoring(metrics=("pass_at_1",), tests="then", prefix="before")
    code = Task(name="code", splits=writing, metric=scoring)
    config = tiny_config(place_of, tasks=(letters("large", 40), code))
    config = override(config, ["--eval.code.run", "--eval.code.seconds", "8", "--eval.generate-examples", "5"])
    session = open_session(resolve(config, show_progress=False), Programs())
    seven = session.inputs.tokenizer.encode("7")
    monkeypatch.setattr(measure, "generate", lambda graph, params, model, prompts, **_: [seven] * len(prompts))
    found = measure.score(session, session.base.trainable)
    ends = [row["programs"][0][1] for row in found.answers["code"]]
    assert ends == [end for _, end in HOSTILE.values()]
    assert found.task_score["code"]["pass_at_1"] == pytest.approx(0.2) and found.task_interval["code"]["pass_at_1"]
    assert found.task_score["large"]["n"] == 5 == len(found.answers["large"])


@pytest.mark.slow
def test_equal_parameters_have_equal_validation_losses_to_the_bit(place_of):
    found, prompts = {}, {}
    for name, changes in OBJECTIVES.items():
        session = open_session(inputs_of(place_of, changes), Programs())
        with jax.set_mesh(session.mesh):
            result = measure.validation_loss(session, session.base.trainable)
            seen = measure.seen_loss(session, session.base.trainable, 2)
        assert result is not None and seen is not None
        found[name] = (result.loss, result.macro_loss, seen.task_tokens == result.task_tokens)
        prompts[name] = result.prompt_loss
    assert len({value[:2] for value in found.values()}) == 1, found
    assert {name for name, loss in prompts.items() if loss} == {"some prompt", "prompt"}
    assert prompts["prompt"] == prompts["some prompt"] and np.isfinite(prompts["prompt"]["turns"])
