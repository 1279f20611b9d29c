"""Stages of a run: the shares of each are set when the one before it has ended, and the run goes on from there.

A stage ends with a validation and a checkpoint. The shares of the next one are a pure function of the losses in
metrics.jsonl; they become the option `mixture.stage_shares`, whose change the manifest dates like any other, and the
plan goes on behind the stages that are done. So a run that is killed resumes in the stage it was in, and `verify`
computes the shares again.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.mixture.policies import next_shares
from jaxtune.mixture.settings import MixtureConfig, Policy
from jaxtune.mixture.stages import shares_by_stage, stage_ends
from jaxtune.plan.planning import Plan
from jaxtune.runs import documents
from jaxtune.runs.history import METRICS, read_rows
from jaxtune.storage.documents import Json, number
from jaxtune.tasks import Task
from jaxtune.tasks.splits import VALIDATION
from jaxtune.train.resuming import Change

OPTION = "mixture.stage_shares"
FLAG = "--mixture.stage-shares"


def check_stages(config: ExperimentConfig, kept: Mapping[str, Task]) -> None:
    """Raises UserError where the policy of the stages has no loss to go by."""
    mixture = config.mixture
    if not mixture.staged:
        return
    blind = [name for name, task in kept.items() if VALIDATION not in task.splits]
    if blind:
        raise UserError(
            f"mixture.policy {mixture.policy.value!r} sets the shares of a stage by validation losses, and task "
            f"{blind[0]!r} has no split named 'validation'; give it one, or choose the policy constant"
        )
    given = mixture.policy_reference or {}
    missing = [name for name in kept if name not in given] if mixture.policy is Policy.LOSS_GAP else []
    unknown = [name for name in given if name not in {task.name for task in config.tasks}]
    if missing or unknown:
        what = f"has no loss for {missing[0]!r}" if missing else f"names the unknown task {unknown[0]!r}"
        raise UserError(f"mixture.policy_reference {what}; give one for each trained task: {', '.join(kept)}")


def ends_of(config: ExperimentConfig) -> list[int]:
    """Updates after which each stage of a run ends whose shares change; empty for another one."""
    steps = config.duration.steps
    return stage_ends(steps, config.mixture.stages) if config.mixture.staged and steps is not None else []


def pause_after(config: ExperimentConfig, plan: Plan) -> int | None:
    """Updates after which the run waits for the shares of its next stage; None: it goes to its end."""
    ends = ends_of(config)
    return plan.num_steps if ends and plan.num_steps < ends[-1] else None


def recorded_shares(run_dir: pathlib.Path, resume_step: int | None) -> list[float]:
    """Shares of the stages that a run folder has come to; UserError where it is to go on before the last of them."""
    recorded = documents.read_manifest(run_dir)
    begun = [entry["after_step"] for entry in recorded.get("changes", []) if OPTION in entry["options"]]
    if resume_step is not None and begun and resume_step < max(begun):
        raise UserError(
            f"--resume-step {resume_step} lies before the stage that begins after step {max(begun)}, whose shares are "
            "set by what came before it; resume from there on, or start again in another folder"
        )
    return list(recorded["config"]["mixture"].get("stage_shares", ()))


def with_shares(config: ExperimentConfig, flat: Sequence[float]) -> ExperimentConfig:
    """The config with the shares of its later stages, where it does not know more of them itself."""
    if len(flat) <= len(config.mixture.stage_shares):
        return config
    return dataclasses.replace(config, mixture=dataclasses.replace(config.mixture, stage_shares=tuple(flat)))


def command_of(command: Mapping[str, Any], config: ExperimentConfig) -> Mapping[str, Any]:
    """The command of a run in stages with what its config needs to be read again."""
    shares = config.mixture.stage_shares
    if not shares:
        return command
    return {**command, "overrides": [*without_shares(command.get("overrides", ())), FLAG, *map(repr, shares)]}


def without_shares(words: Iterable[str]) -> list[str]:
    """Words of a command without the shares of an earlier stage."""
    kept, inside = [], False
    for word in words:
        inside = word == FLAG or (inside and not word.startswith("--"))
        kept += [] if inside else [word]
    return kept


def accepted(changes: Sequence[Change]) -> list[Change]:
    """Of the changes of a resumed run, the shares of one more stage behind those that are recorded."""
    goes_on = lambda one: list(one.now)[: len(one.then or ())] == list(one.then or ())
    return [one for one in changes if one.name == OPTION and goes_on(one)]


def losses_by_stage(run_dir: pathlib.Path, ends: Sequence[int]) -> list[dict[str, float]]:
    """Validation losses by task before the first update and after `ends` updates, as metrics.jsonl has them."""
    rows = {row["step"]: row for row in read_rows(run_dir / METRICS) if row["kind"] == "eval"}
    found = [rows.get(step, {}).get("task_loss", {}) for step in (0, *ends)]
    return [{task: number(loss) for task, loss in losses.items()} for losses in found]


def shares_after(config: MixtureConfig, plan: Plan, losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Shares of the stage behind those whose losses are given."""
    assert plan.allocation is not None
    return next_shares(config, plan.allocation.probabilities, losses)


def following(run_dir: pathlib.Path, config: ExperimentConfig, plan: Plan) -> list[float]:
    """All shares of a run that has come to the end of its plan, those of the stage to come at the end."""
    ends = [end for end in ends_of(config) if end <= plan.num_steps]
    shares = shares_after(config.mixture, plan, losses_by_stage(run_dir, ends))
    return [*config.mixture.stage_shares, *(shares[task] for task in plan.tasks)]


def stage_rows(config: MixtureConfig, plan: Plan, steps: int) -> list[Json]:
    """Stages as mixture.json holds them: steps, shares, and the ledger of each; those that are planned."""
    assert plan.allocation is not None
    shares = [dict(plan.allocation.probabilities), *shares_by_stage(config, plan.tasks)]
    shares += [shares[0]] * (0 if config.staged else config.stages - 1)
    rows: list[Json] = []
    before, first = plan.ledger(0), 0
    for own, end in zip(shares, stage_ends(steps, config.stages), strict=False):
        ledger = plan.ledger(end)
        drawn = {
            task: {name: value - before.to_json()[task][name] for name, value in columns.items()}
            for task, columns in ledger.to_json().items()
        }
        rows.append({"first_step": first + 1, "last_step": end, "shares": own, "drawn": drawn})
        before, first = ledger, end
    return rows


def disagreements(run_dir: pathlib.Path, config: ExperimentConfig, plan: Plan) -> list[str]:
    """Stages whose recorded shares are not those that the policy gives for the logged losses."""
    ends = ends_of(config)
    losses = losses_by_stage(run_dir, ends)
    found = []
    for index, recorded in enumerate(shares_by_stage(config.mixture, plan.tasks)):
        again = shares_after(config.mixture, plan, losses[: index + 2])
        if again != recorded:
            found.append(f"stage {index + 2}: shares {recorded} are recorded, the logged losses give {again}")
    return found
