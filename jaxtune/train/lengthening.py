"""Lengthening of a run: resumed with more steps than it was planned with, its plan and its schedule go on.

The plan of a lengthened run begins with the one it had, example by example, and the warmup keeps its steps. So with a
schedule whose beginning does not depend on the end (constant, inverse square root, WSD before its decay) the steps that
are done are those of the longer run.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.config import Budget, ExperimentConfig, OptimConfig
from jaxtune.errors import UserError, say
from jaxtune.optim import Schedule, rate_table, warmup_steps
from jaxtune.runs import documents
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.runs.retention import CheckpointConfig, has_checkpoint
from jaxtune.train.export import part
from jaxtune.train.resuming import Change

OPTIONS = ("duration.steps", "duration.lengthened", "optim.warmup_steps")
"""Options that lengthening a run changes."""


def lengthened(run_dir: pathlib.Path, config: ExperimentConfig) -> list[Any]:
    """[steps before, warmup in steps] with which a resumed run of `config` goes on; empty for one that is as it was.

    Plain JSON, which process 0 can send to the others.
    """
    recorded = documents.read_manifest(run_dir)["config"]
    then, now = recorded["duration"], config.duration
    if not then.get("steps") or now.steps is None or now.lengthened or now.steps < then["steps"]:
        return []
    optim, before = part(run_dir, OptimConfig, recorded["optim"]), list(then.get("lengthened", ()))
    if now.steps > then["steps"]:
        before.append(then["steps"])
    if not before:
        return []
    warm = config.optim.warmup_steps
    return [before, warmup_steps(optim, then["steps"]) if warm is None else warm]


def with_history(config: ExperimentConfig, found: Sequence[Any]) -> ExperimentConfig:
    """The config of a lengthened run; `found` is what `lengthened` says."""
    if not found:
        return config
    duration = Budget(steps=config.duration.steps, lengthened=tuple(found[0]))
    return dataclasses.replace(
        config, duration=duration, optim=dataclasses.replace(config.optim, warmup_steps=found[1])
    )


def command_of(command: Mapping[str, Any], found: Sequence[Any]) -> Mapping[str, Any]:
    """The command of a lengthened run with what its config needs to be read again."""
    if not found:
        return command
    steps = [str(step) for step in found[0]]
    more = ["--duration.lengthened", *steps, "--optim.warmup-steps", str(found[1])]
    return {**command, "overrides": [*command.get("overrides", ()), *more]}


def accepted(
    run_dir: pathlib.Path, config: ExperimentConfig, changes: Sequence[Change], done: int, *, accept: bool
) -> list[Change]:
    """Of the changes of a resumed run, those that lengthening brings and that alter no step of the `done` ones.

    Raises UserError where they alter the rates of such steps and that is not accepted.
    """
    own = [change for change in changes if change.name in OPTIONS]
    if "duration.steps" not in {change.name for change in own} or not config.duration.lengthened:
        return []
    recorded = documents.read_manifest(run_dir)["config"]
    before, after = recorded["duration"]["steps"], config.duration.steps
    assert after is not None
    optim = part(run_dir, OptimConfig, recorded["optim"])
    old, new = rate_table(optim, before), rate_table(config.optim, after)
    differ = np.flatnonzero(old[:done] != new[:done])
    say(f"lengthening the run from {before:,} to {after:,} steps, of which {done:,} are done", file=sys.stderr)
    if not differ.size:
        return own
    first = int(differ[0])
    told = (
        f"step {first + 1} of {before:,} had the learning rate {old[first]:.3g} and would have had {new[first]:.3g} in "
        f"a run of {after:,}; step {done + 1} would have {new[min(done, after - 1)]:.3g}, after {old[done - 1]:.3g}"
    )
    if accept:
        say(f"the schedule begins anew from here: {told}", file=sys.stderr)
        return own
    raise UserError(
        f"{run_dir} cannot be lengthened from {before:,} to {after:,} steps as it is: its schedule "
        f"`{optim.schedule.value}` depends on the end. {told[0].upper()}{told[1:]}. {_remedy(optim, first)}"
        "--accept-change goes on with the rates of the longer run from there; a run with schedule constant or wsd can "
        "be lengthened without."
    )


def _remedy(optim: OptimConfig, first: int) -> str:
    """What a WSD run can do: go on from before its decay."""
    if optim.schedule is not Schedule.WSD or first < 1:
        return ""
    return f"--resume-step takes an earlier checkpoint: up to step {first} the decay had not begun. "


def steps_done(checkpoint: CheckpointConfig, run_dir: pathlib.Path, resume_step: int | None, planned: int) -> int:
    """Steps of the checkpoint that a run goes on from; `planned` where the checkpoints are not on this disk."""
    if resume_step is not None:
        return resume_step
    folder = checkpoint.folder(run_dir)
    if checkpoint.bucket() is not None or not has_checkpoint(folder):
        return planned
    with Checkpoints(folder, checkpoint, read_only=True) as checkpoints:
        return checkpoints.latest() or planned
