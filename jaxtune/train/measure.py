"""Held-out numbers of a session's parameters: losses of unseen and seen examples, scores of answers."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxtune.data.subset import Subset
from jaxtune.evaluate.answers import ScoreResult, generation_scores
from jaxtune.evaluate.decoding import SamplingConfig, generate
from jaxtune.evaluate.loss import LossResult, per_task_loss
from jaxtune.plan.planning import Plan
from jaxtune.step.update import Params
from jaxtune.storage.documents import plain
from jaxtune.storage.fingerprints import json_fingerprint
from jaxtune.train.plans import make_validation_plan, seen_examples
from jaxtune.train.session import Session, compute_dtype


def validation_loss(session: Session, params: Params) -> LossResult | None:
    """Per-task loss of the validation examples, nats per token; None where there are none."""
    plan = session.inputs.eval_plan
    return None if plan is None else loss_of(session, params, plan, session.inputs.validation)


def seen_loss(session: Session, params: Params, steps: int) -> LossResult | None:
    """Per-task loss of training examples that the first `steps` steps met; None where nothing is validated."""
    inputs = session.inputs
    chosen = seen_examples(inputs.plan, inputs.train, inputs.validation, steps)
    like = inputs.eval_plan  # a batch of its shape needs no other program
    plan = make_validation_plan(session.config, chosen, None if like is None else like.rows_per_step)
    return None if plan is None else loss_of(session, params, plan, chosen)


def loss_of(session: Session, params: Params, plan: Plan, chosen: Mapping[str, Subset]) -> LossResult:
    """Per-task loss of an evaluation plan's examples, nats per token."""
    step = functools.partial(session.program.eval_step, params, session.base.frozen)
    with contextlib.closing(session.evaluation_batches(plan, chosen)) as batches:
        return per_task_loss(step, batches, list(plan.tasks), session.inputs.held)


def score(session: Session, params: Params) -> ScoreResult:
    """Greedy answers to the test questions, scored."""
    inputs, settings = session.inputs, session.config.eval

    def answer(prompts: list[list[int]]) -> list[list[int]]:
        return generate(
            session.program.graphdef, session.full_params(params), inputs.model, prompts,
            stop_ids=sorted(inputs.stop_ids), sampling=SamplingConfig(max_new_tokens=settings.max_new_tokens),
            batch_size=settings.generate_rows, mesh=session.mesh,
            dtype=jnp.dtype(compute_dtype(session.config, session.mesh)),
        )  # fmt: skip

    metric_of = {task.name: task.metric for task in (*inputs.tasks.values(), *inputs.held.values())}
    return generation_scores(
        answer, inputs.questions, inputs.tokenizer, metric_of, stop_ids=inputs.stop_ids, held_out=inputs.held
    )


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
