"""Exposure of right answers among all answers of their form: how far a model singles out what it was trained on."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxtune import config as configs
from jaxtune.chat import Conversation, render_batch
from jaxtune.data.subset import Encoded
from jaxtune.errors import UserError
from jaxtune.runs import folder as runfolder
from jaxtune.science.memorisation import exposure
from jaxtune.step.programs import Programs
from jaxtune.step.update import Params
from jaxtune.tasks.splits import TRAIN
from jaxtune.train.resolution import resolve
from jaxtune.train.retention import Reader, read
from jaxtune.train.session import Session, open_session


def exposures(
    session: Session, params: Params, items: Sequence[Conversation], answers: Sequence[str]
) -> Float[np.ndarray, " items"]:
    """Exposure of each item's last answer among `answers`, in bits (see `science.memorisation.exposure`).

    Raises UserError where an item's own answer is none of them.
    """
    own = [item.messages[-1].content or "" for item in items]
    strange = [text for text in own if text not in answers]
    if strange:
        raise UserError(f"exposure ranks an answer among all of its form; {strange[0]!r} is none of the {len(answers)}")
    inputs = session.inputs
    chats = [answered(item, answer) for item in items for answer in answers]
    examples = render_batch(chats, inputs.template, inputs.tokenizer)
    longest = max(len(example.tokens) for example in examples)
    if longest > inputs.config.data.seq_len:
        raise UserError(f"an item with an answer has {longest} tokens, data.seq_len is {inputs.config.data.seq_len}")
    found = read(session, Reader.of(session), params, Encoded(examples=tuple(examples)), None)
    nll = np.asarray(found.nll, float).reshape(len(items), len(answers))
    return exposure(nll, np.array([list(answers).index(text) for text in own]))


def answered(item: Conversation, answer: str) -> Conversation:
    """The item with another last answer."""
    last = dataclasses.replace(item.messages[-1], content=answer)
    return dataclasses.replace(item, messages=(*item.messages[:-1], last))


def exposures_of_run(
    run_dir: pathlib.Path, tasks: Sequence[str], answers: Sequence[str], *, limit: int | None = None
) -> Mapping[str, float]:
    """Mean exposure of the training examples of some tasks of a run, by its exported model; at most `limit` of each."""
    config = configs.of_run(run_dir)
    path = str(runfolder.resolve_model_folder(run_dir))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path, tokenizer=None))
    inputs = resolve(config, questions=False)
    unknown = [name for name in tasks if name not in inputs.tasks]
    if unknown:
        raise UserError(f"{run_dir} trains on no task {', '.join(unknown)}; it has {', '.join(inputs.tasks)}")
    session, found = open_session(inputs, Programs()), {}
    with jax.set_mesh(session.mesh):
        for name in tasks:
            task = inputs.tasks[name]
            count = min(len(task.source(TRAIN)), limit or 10**9)
            items = [item for i in range(count) if isinstance(item := task.read(TRAIN, i), Conversation)]
            values = exposures(session, session.base.trainable, items, answers)
            found[name] = math.fsum(values) / len(values)
    return found
