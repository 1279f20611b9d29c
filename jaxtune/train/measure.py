"""Held-out numbers of a session's parameters: losses of unseen and seen examples, scores of answers."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxtune.data.subset import Encoded, Subset, encode_again
from jaxtune.evaluate.answers import Question, Respondent, ScoreResult, generation_scores, summed_up
from jaxtune.evaluate.code_runs import run_programs
from jaxtune.evaluate.decoding import Batching, SamplingConfig, generate
from jaxtune.evaluate.harness import Model, evaluate_tasks
from jaxtune.evaluate.likelihood import cut_left, likelihoods
from jaxtune.evaluate.loss import LossResult, per_task_loss
from jaxtune.parallel.job import answer_of_main
from jaxtune.plan.planning import Plan
from jaxtune.step.update import Params
from jaxtune.storage.documents import plain
from jaxtune.storage.fingerprints import json_fingerprint
from jaxtune.tasks import Scoring
from jaxtune.terminal.display import Phase
from jaxtune.train.plans import make_validation_plan, seen_examples
from jaxtune.train.resolution import TRAIN, Inputs
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
    """Answers to the test questions, scored; `asked`: to these of them only, by exact match alone."""
    inputs, scorings = session.inputs, scoring_of(session.inputs)
    return generation_scores(
        respondent(session, params), inputs.questions if asked is None else asked, inputs.tokenizer,
        scorings if asked is None else dict.fromkeys(scorings, Scoring()),
        stop_ids=inputs.stop_ids, held_out=inputs.held,
    )  # fmt: skip


def score_all(session: Session, params: Params) -> ScoreResult | None:
    """Answers to the test questions, scored, and the tasks of lm-eval; None where the run has neither."""
    inputs, settings = session.inputs, session.config.eval.lm_eval
    if not inputs.questions and not settings.tasks:
        return None
    result = score(session, params) if inputs.questions else summed_up({}, (), {})
    if not settings.tasks:
        return result
    with Phase("lm-eval"):
        return dataclasses.replace(result, harness=evaluate_tasks(harness_model(session, params), settings))


def harness_model(session: Session, params: Params) -> Model:
    """The model of some parameters as lm-eval asks it."""
    inputs, full = session.inputs, session.full_params(params)
    batching = batching_of(session)
    return Model(
        tokenizer=inputs.tokenizer, template=inputs.template, max_length=inputs.model.max_seq_len,
        stop_ids=inputs.stop_ids,
        score=lambda pairs: likelihoods(full, inputs.model, pairs, batching=batching),
        generate=lambda prompts, sampling: generate(
            session.program.graphdef, full, inputs.model, prompts,
            stop_ids=sorted(inputs.stop_ids), sampling=sampling, batching=batching,
        ),
    )  # fmt: skip


def batching_of(session: Session) -> Batching:
    """Rows, number format and devices of generation and likelihoods."""
    dtype = jnp.dtype(compute_dtype(session.config, session.mesh))
    return Batching(rows=session.config.eval.generate_rows, mesh=session.mesh, dtype=dtype)


def respondent(session: Session, params: Params) -> Respondent:
    """The model of some parameters, as far as scores need it."""
    inputs, settings, full = session.inputs, session.config.eval, session.full_params(params)
    batching = batching_of(session)

    def sampled(prompts: list[list[int]], temperature: float) -> list[list[int]]:
        sampling = SamplingConfig(
            max_new_tokens=settings.max_new_tokens, temperature=temperature, seed=session.config.seed
        )
        return generate(
            session.program.graphdef, full, inputs.model, prompts,
            stop_ids=sorted(inputs.stop_ids), sampling=sampling, batching=batching,
        )  # fmt: skip

    return Respondent(
        answer=lambda prompts: sampled(prompts, 0.0), sample=sampled,
        likelihoods=lambda pairs: likelihoods(
            full, inputs.model, [cut_left(pair, inputs.model) for pair in pairs], batching=batching
        ),
        run=lambda programs: answer_of_main(lambda: run_programs(programs, settings.code)),
    )  # fmt: skip


def scoring_of(inputs: Inputs) -> dict[str, Scoring]:
    """Scoring of every task of a run, by name."""
    return {task.name: task.scoring for task in (*inputs.tasks.values(), *inputs.held.values())}


def score_key(session: Session, identity: Mapping[str, Any]) -> str:
    """A fingerprint of all that the base model's scores depend on; `identity` is the run's manifest.

    The weights count by their files, so that no array has to leave its devices.
    """
    inputs, config = session.inputs, session.config
    asked = [[q.task, q.id, q.prompt, q.reference, q.expected] for q in inputs.questions]
    return json_fingerprint(
        plain(
            {
                "base": identity["base_model"],
                "model": inputs.model,
                "dtypes": [config.model.param_dtype, compute_dtype(config, session.mesh)],
                "adapters": config.lora,
                "tokenizer": identity["tokenizer"],
                "questions": asked,
                "metrics": scoring_of(inputs),
                "held_out": sorted(inputs.held),
                "stop_ids": inputs.stop_ids,
                "rows": config.eval.generate_rows,
                "max_new_tokens": config.eval.max_new_tokens,
                "code": config.eval.code,
                "lm_eval": config.eval.lm_eval,
                "seed": config.seed if any(task.samples > 1 for task in scoring_of(inputs).values()) else None,
                "mesh": config.mesh,
            }
        )
    )
