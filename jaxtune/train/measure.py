"""Held-out numbers of a session's parameters: losses of unseen and seen examples, scores of answers."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxtune.data.subset import Encoded, Subset, encode_again
from jaxtune.evaluate.answers import Question, ScoreResult, generation_scores
from jaxtune.evaluate.decoding import Batching, SamplingConfig, generate
from jaxtune.evaluate.loss import LossResult, per_task_loss
from jaxtune.plan.planning import Plan
from jaxtune.step.update import Params
from jaxtune.storage.documents import plain
from jaxtune.storage.fingerprints import json_fingerprint
from jaxtune.terminal.display import Phase
from jaxtune.train.plans import make_validation_plan, seen_examples
from jaxtune.train.resolution import TRAIN
from jaxtune.train.session import Session, compute_dtype


def validation_loss(session: Session, params: Params) -> LossResult | None:
    """Per-task loss of the validation examples, nats per token; None where there are none."""
    inputs, plan = session.inputs, session.inputs.eval_plan
    if plan is None:
        return None
    result = loss_of(session, params, plan, inputs.validation)
    if not inputs.trains_prompts:
        return result
    prompts = loss_of(session, params, plan, inputs.validation, prompts=True)
    return dataclasses.replace(result, prompt_loss=prompts.task_loss)


def seen_loss(session: Session, params: Params, steps: int) -> LossResult | None:
    """Per-task loss of training examples that the first `steps` steps met; None where nothing is validated."""
    inputs = session.inputs
    chosen: Mapping[str, Subset | Encoded] = seen_examples(inputs.plan, inputs.train, inputs.validation, steps)
    if not inputs.measures_as_it_trains:
        again = lambda name, part: encode_again(inputs.tasks[name], TRAIN, part, inputs.yardstick)
        encoded = {name: again(name, part) for name, part in chosen.items()}
        chosen = {name: part for name, part in encoded.items() if part.examples}
    like = inputs.eval_plan  # a batch of its shape needs no other program
    plan = make_validation_plan(session.config, chosen, None if like is None else like.rows_per_step)
    return None if plan is None else loss_of(session, params, plan, chosen)


def loss_of(
    session: Session, params: Params, plan: Plan, chosen: Mapping[str, Subset | Encoded], *, prompts: bool = False
) -> LossResult:
    """Per-task loss of an evaluation plan's examples, nats per token; of their `prompts` instead of the responses."""
    step = lambda batch: session.program.eval_step(params, session.base.frozen, batch, session.numbers)
    stream = contextlib.closing(session.evaluation_batches(plan, chosen, prompts=prompts))
    with stream as batches, Phase("validation", plan.num_steps, unit="batches") as phase:
        return per_task_loss(step, phase.count(batches), list(plan.tasks), session.inputs.held)


def score(session: Session, params: Params, asked: Sequence[Question] | None = None) -> ScoreResult:
    """Greedy answers to the test questions, scored; `asked`: to these of them only."""
    inputs, settings = session.inputs, session.config.eval
    asked = inputs.questions if asked is None else asked

    dtype = jnp.dtype(compute_dtype(session.config, session.mesh))

    def answer(prompts: list[list[int]]) -> list[list[int]]:
        return generate(
            session.program.graphdef, session.full_params(params), inputs.model, prompts,
            stop_ids=sorted(inputs.stop_ids), sampling=SamplingConfig(max_new_tokens=settings.max_new_tokens),
            batching=Batching(rows=settings.generate_rows, mesh=session.mesh, dtype=dtype),
        )  # fmt: skip

    metric_of = {task.name: task.metric for task in (*inputs.tasks.values(), *inputs.held.values())}
    return generation_scores(answer, asked, inputs.tokenizer, metric_of, stop_ids=inputs.stop_ids, held_out=inputs.held)


def score_key(session: Session, identity: Mapping[str, Any]) -> str:
    """A fingerprint of all that the base model's scores depend on; `identity` is the run's manifest.

    The weights count by their files, so that no array has to leave its devices.
    """
    inputs, config = session.inputs, session.config
    asked = [[q.task, q.id, q.prompt, q.reference] for q in inputs.questions]
    metric_of = {task.name: task.metric for task in (*inputs.tasks.values(), *inputs.held.values())}
    return json_fingerprint(
        plain(
            {
                "base": identity["base_model"],
                "model": inputs.model,
                "dtypes": [config.model.param_dtype, compute_dtype(config, session.mesh)],
                "adapters": config.lora,
                "tokenizer": identity["tokenizer"],
                "questions": asked,
                "metrics": metric_of,
                "stop_ids": inputs.stop_ids,
                "rows": config.eval.generate_rows,
                "max_new_tokens": config.eval.max_new_tokens,
                "mesh": config.mesh,
            }
        )
    )
