"""Plans of a run: which examples are trained on, in which order and rows, and which are measured at a validation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.config import ExperimentConfig
from jaxtune.data.store import TaskTokens
from jaxtune.data.subset import Encoded, Subset, length_table
from jaxtune.mixture.settings import MixtureConfig
from jaxtune.plan import order
from jaxtune.plan.budgets import plan_for_budget
from jaxtune.plan.packing import RowLayout
from jaxtune.plan.planning import Plan, make_eval_plan
from jaxtune.plan.staged import plan_for_stages
from jaxtune.tasks import Task


def choose(stores: Mapping[str, TaskTokens], config: ExperimentConfig) -> dict[str, Subset]:
    """The first `eval.max_examples` of a seeded permutation of each task; the same ones for every seed of the run."""
    limit = config.eval.max_examples
    numbers = {
        name: order.permutation(0, name, 0, len(store))[:limit] if limit is not None else np.arange(len(store))
        for name, store in stores.items()
    }
    return {name: Subset(store=store, numbers=numbers[name]) for name, store in stores.items()}


def task_mixture(config: MixtureConfig, tasks: list[Task]) -> MixtureConfig:
    """The mixture with the limits that tasks set for themselves; a task's own limit goes before the general one."""

    def merged(field: str) -> Any:
        own = {task.name: value for task in tasks if (value := getattr(task, field)) is not None}
        general = getattr(config, field)
        if not own:
            return general
        if isinstance(general, Mapping):
            return dict(general) | own
        return {task.name: own.get(task.name, general) for task in tasks if task.name in own or general is not None}

    return dataclasses.replace(config, max_examples=merged("max_examples"), max_repeats=merged("max_repeats"))


def make_training_plan(config: ExperimentConfig, stores: Mapping[str, TaskTokens], tasks: list[Task]) -> Plan:
    """Budget, counts, order and rows of the run; of one in stages, as far as the shares of its stages are known."""
    layout = RowLayout(seq_len=config.data.seq_len, rows_per_step=config.batch.rows, packing=config.data.packing)
    mixture = task_mixture(config.mixture, tasks)
    planned = plan_for_stages if mixture.staged else plan_for_budget
    return planned(config.duration, length_table(stores), mixture, layout, seed=config.seed)


def make_validation_plan(
    config: ExperimentConfig, chosen: Mapping[str, Subset | Encoded], rows: int | None = None
) -> Plan | None:
    """Every chosen validation example once, in batches of `rows`, by default those of the config."""
    if not chosen:
        return None
    layout = RowLayout(seq_len=config.data.seq_len, rows_per_step=rows or config.eval.rows)
    return make_eval_plan(length_table(chosen), layout)


def seen_examples(
    plan: Plan, stores: Mapping[str, TaskTokens], like: Mapping[str, Subset], steps: int
) -> dict[str, Subset]:
    """Examples that the first `steps` steps trained on, by task in order of first use: as many as `like` has."""
    wanted = {name: len(part.numbers) for name, part in like.items() if name in stores}
    found: dict[str, dict[int, None]] = {name: {} for name in wanted}
    for step in range(min(steps, plan.num_steps)):
        if all(len(found[name]) >= wanted[name] for name in wanted):
            break
        for placement in (placement for row in plan.rows(step) for placement in row):
            if len(found.get(placement.task, ())) < wanted.get(placement.task, 0):
                found[placement.task][placement.example] = None
    return {name: Subset(store=stores[name], numbers=np.array(list(use))) for name, use in found.items() if use}
