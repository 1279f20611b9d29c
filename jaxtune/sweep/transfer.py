"""Transfer sweeps: tasks alone, in pairs or in random subsets, with counts of examples that make them comparable."""

import dataclasses
import itertools
import pathlib
import shlex
from collections.abc import Mapping, Sequence

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, did_you_mean
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.runs.sweeps import read_sweep
from jaxtune.runs.transfer import RECORD, Design, counts_of, read_transfer, subset_counts, to_json
from jaxtune.science.transfer import balanced_subsets
from jaxtune.storage.documents import Json, write_json
from jaxtune.sweep.language import Setting
from jaxtune.sweep.record import Trial, trials_of, written_alone
from jaxtune.tasks import hold_out
from jaxtune.tasks.splits import VALIDATION
from jaxtune.train.resolution import resolve

NEUTRAL = "format"
"""Task that is the baseline where the config has one of this name and none is given."""
DESIGNS = ("pairs", "subsets", "single")
MODES = ("added", "replaced")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRequest:
    """Tasks, design, modes and seeds that `jaxtune transfer` is asked for."""

    tasks: Sequence[str]
    design: str = "pairs"
    modes: Sequence[str] = ("added",)
    baseline: str | None = None
    examples: int | None = None
    """Training examples of a task alone; None: the config's budget in equal parts."""
    subsets: int | None = None
    seeds: Sequence[int] = (0, 1, 2, 3, 4)


def check(request: TransferRequest, config: ExperimentConfig) -> str | None:
    """The neutral task; UserError for whatever would make the sweep meaningless, before anything is read."""
    parted = hold_out(config.tasks, config.held_out)
    known, tasks = list(parted.kept), list(request.tasks)
    for name in (*tasks, *([request.baseline] if request.baseline else [])):
        if name not in known:
            raise UserError(
                f"{name!r} is no task that this config trains on; it has {', '.join(known)}{did_you_mean(name, known)}"
            )
        if VALIDATION not in parted.kept[name].splits:
            raise UserError(f"task {name} has no validation data, so no transfer to it can be measured; add a split")
    if len(tasks) < 2 or len(set(tasks)) < len(tasks):
        raise UserError(f"--tasks takes two or more different tasks, got {' '.join(tasks) or 'none'}")
    if len(set(request.seeds)) < 2:
        raise UserError(f"--seeds {' '.join(map(str, request.seeds))}: at least two seeds, better five")
    if config.mixture.groups:
        raise UserError("jaxtune transfer sets the tasks' weights itself; take mixture.groups out of the config")
    if request.examples is not None and request.examples < 2:
        raise UserError(f"--examples {request.examples}: at least 2 examples a task")
    if request.subsets is not None and request.design != "subsets":
        raise UserError(f"--subsets goes with --design subsets; got --design {request.design}")
    neutral = request.baseline or (NEUTRAL if NEUTRAL in known and NEUTRAL not in tasks else None)
    if neutral in tasks:
        raise UserError(f"--baseline {neutral} is one of --tasks; the neutral task is another one")
    if neutral is None and request.design == "single":
        raise UserError(
            "--design single compares with a model tuned on a neutral task that teaches the form of a chat and nothing "
            "else; name one of the config's tasks with --baseline (the base model loses nats on any chat prompt)"
        )
    return neutral


def base_config(request: TransferRequest, config: ExperimentConfig) -> tuple[ExperimentConfig, list[str], int]:
    """The config that all runs start from, its overrides, and the examples of a task alone.

    Runs are measured at their end: a best step chosen by the mean over tasks that a run never trains on says nothing.
    """
    examples = request.examples
    if examples is None:
        examples = max(2, resolve(config, questions=False).plan.num_examples // len(config.tasks))
    names = list(hold_out(config.tasks, config.held_out).kept)
    options = ["--eval.every", "0", "--mixture.unit", "examples", "--mixture.on-cap", "error"]
    options += ["--mixture.strategy", "weights", "--mixture.weights", *(word for name in names for word in (name, "1"))]
    return configs.override(config, [*options, "--duration.examples", str(examples)]), options, examples


def drawn_subsets(request: TransferRequest) -> list[tuple[str, ...]]:
    """The random sets of a subset design; none for the others."""
    if request.design != "subsets":
        return []
    tasks = list(request.tasks)
    try:
        rows = balanced_subsets(len(tasks), request.subsets if request.subsets is not None else 3 * len(tasks))
    except ValueError as error:
        raise UserError(f"--design subsets: {error}; give --subsets N, or --design pairs for few tasks") from None
    return [tuple(task for task, there in zip(tasks, row, strict=True) if there) for row in rows]


def settings(request: TransferRequest, names: Sequence[str], design: Design) -> list[Setting]:
    """The settings of a design: what is trained alone first, then pairs or subsets. `names`: all trained tasks."""
    tasks, examples = list(request.tasks), design.examples
    alone = [design.baseline] if design.baseline else []
    alone += tasks if request.design != "subsets" else []
    found = [(name, {name: examples}) for name in alone]
    for mode in request.modes:
        added = mode == "added"
        for members in itertools.combinations(tasks, 2) if request.design == "pairs" else ():
            tag = " + ".join(members) + ("" if added else ", replaced")
            found.append((tag, counts_of(members, examples, added=added)))
        for members in design.subsets if request.design == "subsets" else ():
            tag = " + ".join(members) + ("" if added else ", replaced in subsets")
            found.append((tag, subset_counts(members, examples, len(tasks), added=added)))
    return [setting(tag, counts, names) for tag, counts in found]


def setting(tag: str, counts: Mapping[str, int], names: Sequence[str]) -> Setting:
    """A run on exactly these counts."""
    weights = " ".join(f"{shlex.quote(name)} {counts.get(name, 0)}" for name in names)
    return Setting(overrides={"mixture.weights": weights, "duration.examples": str(sum(counts.values()))}, tag=tag)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """A transfer sweep before it runs."""

    config: ExperimentConfig
    options: Sequence[str]
    """Overrides that all runs share."""
    trials: Sequence[Trial]
    design: Design


def plan(request: TransferRequest, config: ExperimentConfig) -> TransferPlan:
    """The runs of a request. Raises UserError before anything trains."""
    neutral = check(request, config)
    base, options, examples = base_config(request, config)
    names = list(hold_out(config.tasks, config.held_out).kept)
    subsets = [list(members) for members in drawn_subsets(request)]
    design = Design(tasks=list(request.tasks), baseline=neutral, examples=examples, subsets=subsets)
    trials = trials_of(settings(request, names, design), request.seeds)
    options += ["--duration.examples", str(examples)]
    return TransferPlan(config=base, options=options, trials=trials, design=design)


def begin(sweep_dir: pathlib.Path, design: Design) -> None:
    """Write the design into the folder of a sweep; that of another one there is a UserError."""
    there = Design.read(sweep_dir)
    if there is not None:
        subsets = design.subsets or there.subsets
        if dataclasses.replace(there, subsets=subsets) != dataclasses.replace(design, subsets=subsets):
            raise UserError(
                f"{sweep_dir} holds a transfer sweep of {', '.join(there.tasks)} with {there.examples} examples and "
                f"baseline {there.baseline}; continue that one, or choose another folder"
            )
        design = dataclasses.replace(design, subsets=subsets)
    with written_alone(sweep_dir):
        write_json(sweep_dir / RECORD, to_json(design, []))


def conclude(sweep_dir: pathlib.Path) -> Json:
    """Write the estimates of the finished runs into `transfer.json` and the page; returns the former."""
    sweep = read_sweep(sweep_dir)
    design = Design.read(sweep_dir)
    assert design is not None, f"{sweep_dir} has no design"
    found = to_json(design, read_transfer(sweep))
    with written_alone(sweep_dir):
        write_json(sweep_dir / RECORD, found)
        write_sweep_report(sweep)
    return found
