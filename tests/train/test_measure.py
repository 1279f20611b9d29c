"""One yardstick: the validation loss of the same parameters does not depend on what a run trains with."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import chat_record, tiny_config, tiny_model

from jaxtune.config import DataConfig, LossConfig, MaskPolicy, Normalization
from jaxtune.data.subset import encode_again
from jaxtune.step.programs import Programs
from jaxtune.tasks import Task, from_list
from jaxtune.train import measure
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
