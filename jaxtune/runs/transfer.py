"""Transfer sweeps, read: the effect of every task on every other, from the finished runs."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxtune.errors import UserError
from jaxtune.runs.sweeps import FinishedArm, Sweep
from jaxtune.science import transfer
from jaxtune.science.contrasts import Contrast, family
from jaxtune.storage.documents import Json, read_object

RECORD = "transfer.json"


class Form(enum.Enum):
    """Kinds of transfer that runs on sets of tasks can measure."""

    ADDED = "added"  # the same examples of the target, the source's on top
    REPLACED = "replaced"  # half of the target's examples replaced by the source's
    SINGLE = "single"  # the source alone, against a neutral task
    SUBSETS_ADDED = "subsets, added"
    SUBSETS_REPLACED = "subsets, replaced"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """Tasks, neutral task and numbers of examples of a transfer sweep."""

    tasks: Sequence[str]
    baseline: str | None
    """The neutral task that only teaches the form of a chat; None: no gain of a task by itself is known."""
    examples: int
    """Training examples of a task alone."""
    subsets: Sequence[Sequence[str]] = ()
    """Sets of tasks of a subset design."""

    @classmethod
    def read(cls, sweep_dir: Path) -> "Design | None":
        """The design of a sweep folder; None where it is no transfer sweep."""
        path = sweep_dir / RECORD
        if not path.is_file():
            return None
        found = read_object(path).get("design")
        wanted = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or found.keys() != wanted:
            raise UserError(f"{path}: `design` is to be an object with {', '.join(sorted(wanted))}")
        return cls(**found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """One form of transfer over all pairs of tasks."""

    form: Form
    tasks: Sequence[str]
    pairs: transfer.Pairs
    """(source, target) -> estimate, nats per token, positive where the source helps; by place in `tasks`."""
    own: Mapping[int, Contrast]
    """By task, what its own examples bring."""
    fits: Mapping[int, transfer.SubsetFit] = dataclasses.field(default_factory=dict)
    """By target, the fit of a subset design."""

    @property
    def means(self) -> Float[np.ndarray, "tasks tasks"]:
        """Estimates [source, target] with NaN on the diagonal and where there is none."""
        values = np.full((len(self.tasks), len(self.tasks)), math.nan)
        for (source, target), one in self.pairs.items():
            values[source, target] = one.mean
        return values


def read_transfer(sweep: Sweep) -> list[Matrix]:
    """Every form that the finished runs of a transfer sweep give; empty for any other sweep."""
    design = Design.read(sweep.path)
    if design is None:
        return []
    table = Losses(sweep, design)
    found = [pair_matrix(table, Form.ADDED), pair_matrix(table, Form.REPLACED), single_matrix(table)]
    found += [subset_matrix(table, Form.SUBSETS_ADDED), subset_matrix(table, Form.SUBSETS_REPLACED)]
    return [one for one in found if one is not None and one.pairs]


class Losses:
    """Final losses of a transfer sweep by the set of tasks that was trained on, and how many examples of each."""

    def __init__(self, sweep: Sweep, design: Design):
        self.design, self.seeds = design, sweep.seeds
        self._arms: dict[tuple[tuple[str, int], ...], dict[int, FinishedArm]] = {}
        for arm in sweep.arms:
            self._arms.setdefault(trained(arm), {})[arm.seed] = arm

    def of(self, counts: Mapping[str, int], target: str) -> Float[np.ndarray, " seeds"]:
        """Loss of `target` after training on these counts, by seed; NaN where there is no finished run."""
        arms = self._arms.get(tuple(sorted(counts.items())), {})
        loss = lambda seed: arms[seed].after.task_loss.get(target, math.nan) if seed in arms else math.nan
        return np.array([loss(seed) for seed in self.seeds], float)

    def alone(self, task: str, target: str) -> Float[np.ndarray, " seeds"]:
        """Loss of `target` after training on one task."""
        return self.of({task: self.design.examples}, target)

    @property
    def baseline(self) -> Float[np.ndarray, "tasks seeds"] | None:
        """Losses after the neutral task."""
        neutral = self.design.baseline
        return None if neutral is None else np.stack([self.alone(neutral, task) for task in self.design.tasks])


def trained(arm: FinishedArm) -> tuple[tuple[str, int], ...]:
    """Tasks that a run trained on with their examples, by name."""
    return tuple(sorted((one.task, one.count) for one in arm.run.tasks if one.count))


def shared_out(tasks: Sequence[str], total: int) -> dict[str, int]:
    """`total` examples over tasks as evenly as they go, the first tasks by name taking what is left over."""
    each, rest = divmod(total, len(tasks))
    return {task: each + (index < rest) for index, task in enumerate(sorted(tasks))}


def counts_of(tasks: Sequence[str], examples: int, *, added: bool) -> dict[str, int]:
    """Examples of each task when some are trained together: as many of each as alone, or as many in all."""
    return shared_out(tasks, examples * len(tasks) if added else examples)


def own_of(table: Losses) -> dict[int, Contrast]:
    """Gains of the tasks by their own examples; empty without a neutral task."""
    baseline, tasks = table.baseline, table.design.tasks
    if baseline is None:
        return {}
    gains = transfer.own_gains(baseline, np.stack([table.alone(task, task) for task in tasks]))
    return {index: one for index, one in enumerate(gains) if one.n}


def pair_matrix(table: Losses, form: Form) -> Matrix:
    """Co-training of every pair."""
    tasks, examples = table.design.tasks, table.design.examples
    alone = np.stack([table.alone(task, task) for task in tasks])
    joint = np.full((len(tasks), *alone.shape), math.nan)
    for a, source in enumerate(tasks):
        for b, target in enumerate(tasks):
            if a != b:
                counts = counts_of((source, target), examples, added=form is Form.ADDED)
                joint[a, b] = table.of(counts, target)
    return Matrix(form=form, tasks=tasks, pairs=transfer.co_training(alone, joint), own=own_of(table))


def single_matrix(table: Losses) -> Matrix | None:
    """Each task alone against the neutral one; None without it."""
    baseline, tasks = table.baseline, table.design.tasks
    if baseline is None:
        return None
    alone = np.stack([np.stack([table.alone(source, target) for target in tasks]) for source in tasks])
    return Matrix(form=Form.SINGLE, tasks=tasks, pairs=transfer.direct(baseline, alone), own=own_of(table))


def subset_matrix(table: Losses, form: Form) -> Matrix | None:
    """Effects of a subset design; None where there is none, or no seed of it has runs enough."""
    design, added = table.design, form is Form.SUBSETS_ADDED
    tasks, sets = design.tasks, design.subsets
    if not sets:
        return None
    present = np.array([[task in names for task in tasks] for names in sets])
    fits: dict[int, transfer.SubsetFit] = {}
    for index, target in enumerate(tasks):
        counts = [subset_counts(names, design.examples, len(tasks), added=added) for names in sets]
        losses = np.stack([table.of(one, target) for one in counts])
        complete = np.isfinite(losses).sum(axis=0) > len(tasks)
        if complete.any():
            fits[index] = transfer.subset_effects(present, losses[:, complete])
    cells = {(a, b): fit.effects[a] for b, fit in fits.items() for a in range(len(tasks)) if a != b}
    pairs = dict(zip(cells, family(list(cells.values())), strict=True))
    own = dict(zip(fits, family([fit.effects[b] for b, fit in fits.items()]), strict=True))
    return Matrix(form=form, tasks=tasks, pairs=pairs, own=own, fits=fits)


def subset_counts(names: Sequence[str], examples: int, tasks: int, *, added: bool) -> dict[str, int]:
    """Examples of each task of a subset: as many as alone, or as many in all as half of the tasks have."""
    return shared_out(names, examples * len(names) if added else max(len(names), examples * tasks // 2))


def to_json(design: Design, matrices: Sequence[Matrix]) -> Json:
    """The contents of `transfer.json`."""
    return {
        "design": dataclasses.asdict(design),
        "forms": {one.form.value: matrix_json(one) for one in matrices},
    }


def matrix_json(matrix: Matrix) -> Json:
    """The cells of a matrix as plain JSON."""
    name = matrix.tasks
    cells = [{"source": name[a], "target": name[b], **contrast_json(one)} for (a, b), one in matrix.pairs.items()]
    found: Json = {"cells": cells, "own": {name[index]: contrast_json(one) for index, one in matrix.own.items()}}
    if matrix.fits:
        found["fits"] = {
            name[b]: {
                "r2": fit.r2,
                "largest_residual": fit.largest_residual,
                "of": [name[index] for index in fit.pair],
            }
            for b, fit in matrix.fits.items()
        }
    return found


def contrast_json(one: Contrast) -> Json:
    """An estimate as plain JSON."""
    return {
        "estimate": one.mean, "low": one.low, "high": one.high, "n": one.n, "p_adjusted": one.adjusted,
        "clear": one.clear, "by_seed": list(one.by_seed),
    }  # fmt: skip
