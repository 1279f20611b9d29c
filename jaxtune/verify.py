"""Is a run folder what it says it is? Everything is derived again from config and data; steps can be trained again."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, say
from jaxtune.optim import rate_table
from jaxtune.parallel.gathering import lines_of_all
from jaxtune.runs import documents, manifest, seal
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.history import METRICS, TrainRow, check_row, read_rows
from jaxtune.runs.remote import read_places
from jaxtune.runs.retention import has_checkpoint
from jaxtune.step.programs import Programs
from jaxtune.step.trials import StackMode
from jaxtune.step.update import TrainState
from jaxtune.storage.documents import number, read_json
from jaxtune.storage.notes import reading_anew
from jaxtune.storage.stores import is_url
from jaxtune.terminal.display import Phase
from jaxtune.train import resolution, resuming, staging
from jaxtune.train.agreement import compare_processes
from jaxtune.train.identity import global_batch, identify
from jaxtune.train.replay import TOLERANCE, differences, start_step
from jaxtune.train.resolution import TRAIN, Inputs
from jaxtune.train.rooms import read_room
from jaxtune.train.session import Session, open_session

BOUND = ("data", "tokenizer", "template", "base_model", "plan", "seeds", "batches", "config")
"""Parts of a manifest that must be equal: what is trained, on what, and how."""
CIRCUMSTANCES = ("code", "environment")
"""Parts whose differences may change the last bits; they are told, and loosen the comparison of a replay."""
DRAWN = 16
"""Further steps, drawn anew each time: trained tokens by task are counted in the batch and looked up in the log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    lines: tuple[str, ...] = ()
    """What differs, or what was compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The answers about one run folder."""

    run_dir: pathlib.Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        checks = [{"name": check.name, "ok": check.ok, "lines": list(check.lines)} for check in self.checks]
        return {"run_dir": str(self.run_dir), "ok": self.ok, "checks": checks}


def verify(run_dir: pathlib.Path | str, *, config_path: str | None = None, replay: int = 0) -> Verification:
    """Check a run folder, or one at a URL, against config, data, tokenizer, model and code as they are now.

    What is at a URL is copied into the cache first, the checkpoints too. All processes of a job verify together, each
    with the folder before its eyes, and a check holds where it holds for all.
    `config_path` replaces the config file that the run recorded. `replay`: so many steps are trained again. Raises
    UserError for a folder that is no run, or whose config no longer loads.
    """
    url = str(run_dir) if is_url(str(run_dir)) else None
    with reading_anew(), read_places([url or pathlib.Path(run_dir)], model=True) as (folder,):
        return _verify(folder, url, config_path, replay)


def _verify(run_dir: pathlib.Path, url: str | None, config_path: str | None, replay: int) -> Verification:
    written = run_dir / "manifest.json"
    compare_processes({"the run's manifest": written.read_text("utf-8", "replace") if written.is_file() else None})
    if not written.exists():
        raise UserError(f"{run_dir} is not a run folder: it has no manifest.json")
    try:
        recorded = documents.read_manifest(run_dir)
    except UserError as error:
        return Verification(run_dir=run_dir, checks=(Check(name="manifest", ok=False, lines=(str(error),)),))
    config = configs.of_run(run_dir) if config_path is None else configs.load(config_path)
    with Phase("deriving data, plan and batches again"):
        inputs = resolution.resolve(config, questions=False)
        inputs = dataclasses.replace(inputs, room=read_room(run_dir))
        now = identify(inputs)
    config = dataclasses.replace(config, checkpoint=config.checkpoint.kept_at(url))
    if url is not None:
        config.checkpoint.bring(run_dir)
    with Phase("files of the run"):
        files = [check_checkpoints(run_dir, config), check_files(run_dir)]
    checks = [
        Check(name="manifest", ok=True, lines=("its own fingerprint fits",)),
        check_recorded_config(run_dir, recorded),
        *check_inputs(recorded, now, inputs),
        check_log(run_dir, inputs),
        check_rates(run_dir, recorded, inputs.total_steps),
        *check_stages(run_dir, inputs),
        *files,
        describe_changes(recorded),
        describe_circumstances(recorded, now),
    ]
    if replay:
        checks.append(check_replay(run_dir, config, inputs, replay, loosened=why_loosened(recorded, now)))
    return Verification(run_dir=run_dir, checks=tuple(of_all(checks)))


def of_all(checks: Sequence[Check]) -> list[Check]:
    """The checks as all processes of a job found them: what any of them found wrong is wrong."""
    wrong = [
        line.partition("\t") for line in lines_of_all([f"{c.name}\t{x}" for c in checks if not c.ok for x in c.lines])
    ]
    found = {check.name: tuple(line for name, _, line in wrong if name == check.name) for check in checks}
    return [dataclasses.replace(c, ok=False, lines=found[c.name]) if found[c.name] else c for c in checks]


def check_recorded_config(run_dir: pathlib.Path, recorded: Mapping[str, Any]) -> Check:
    """Whether config.json still says what the manifest says."""
    written = read_json(run_dir / "config.json")
    lines = manifest.compare_manifests({"config": recorded["config"]}, {"config": written})
    lines = [f"config.json was edited after the run: {line}" for line in lines]
    return Check(name="recorded config", ok=not lines, lines=tuple(lines) or ("equals the manifest's",))


def check_inputs(recorded: Mapping[str, Any], now: Mapping[str, Any], inputs: Inputs) -> Iterator[Check]:
    """Config, data, tokenizer, template, base model, plan and pinned batches, each with what differs and why."""
    causes: list[str] = []
    for part in BOUND:
        then, again = recorded.get(part), now.get(part)
        if part == "config":
            then, again = (resuming.without_work(whole["config"]) for whole in (recorded, now))
        lines = manifest.compare_manifests({part: then}, {part: again})
        if part == "data":
            lines = [line + place_of_change(line, recorded, inputs) for line in lines]
        if part in ("plan", "batches") and lines and causes:
            lines.append(f"because of the change in: {', '.join(causes)}")
        elif lines:
            causes.append(part.replace("_", " "))
        derived = f"{len(now[part])} batches derived again are equal" if part == "batches" else "equal"
        yield Check(name=part.replace("_", " "), ok=not lines, lines=tuple(lines) or (derived,))


def place_of_change(line: str, recorded: Mapping[str, Any], inputs: Inputs) -> str:
    """Place where the data of a task changed, as ` (examples 12 to 13: qa.jsonl:13 to qa.jsonl:14)`."""
    task = next((name for name in inputs.tasks if line.startswith(f"data {name}: ")), None)
    then = recorded.get("blocks", {}).get(task, "").split()
    if task is None or not then:
        return ""
    store = inputs.train[task]
    now = store.block_fingerprints()
    different = [b for b, (x, y) in enumerate(zip(then, now, strict=False)) if x != y]
    if len(then) != len(now) or not different:
        return ""
    low = different[0] * len(store) // len(now)
    high = (different[-1] + 1) * len(store) // len(now) - 1
    where = [inputs.tasks[task].source(TRAIN).where(store.record(example)) for example in (low, high)]
    return f" (examples {low + 1} to {high + 1} of {len(store)}: {where[0]} to {where[1]})"


def check_log(run_dir: pathlib.Path, inputs: Inputs) -> Check:
    """Whether the logged steps are those of the plan: trained tokens by task of steps drawn at random, and the sums."""
    if not (run_dir / METRICS).is_file():
        return Check(name="log", ok=False, lines=(f"{METRICS} is missing",))
    rows = training_rows(run_dir)
    if not rows:
        return Check(name="log", ok=True, lines=("no step was trained",))
    lines = []
    if sorted(rows) != list(range(1, max(rows) + 1)):
        lines.append(f"metrics.jsonl holds {len(rows)} training steps, but ends at step {max(rows)}")
    beyond = [step for step in rows if not 0 < step <= inputs.total_steps]
    if beyond:
        text = f"steps {beyond[0]} to {beyond[-1]} were logged, the plan has {inputs.total_steps}"
        return Check(name="log", ok=False, lines=(*lines, text))
    drawn = np.random.default_rng().permutation(sorted(rows))[:DRAWN]
    for step in sorted(map(int, drawn)):
        planned = trained_tokens(inputs, step - 1)
        logged = {task: count for task, count in rows[step].get("task_tokens", {}).items() if count}
        if logged != planned:
            lines.append(f"step {step}: {logged} trained tokens were logged, the plan's batch has {planned}")
    ledger = inputs.plan.ledger(max(rows)).to_json()
    planned = sum(row["loss_tokens"] for row in ledger.values())
    counted = rows[max(rows)].get("loss_tokens")
    if counted != planned:
        lines.append(f"{counted} trained tokens were logged in all, the plan has {planned}")
    seen = ", ".join(str(step) for step in sorted(map(int, drawn)))
    return Check(name="log", ok=not lines, lines=tuple(lines) or (f"agrees with the plan (steps looked at: {seen})",))


def check_stages(run_dir: pathlib.Path, inputs: Inputs) -> Iterator[Check]:
    """Whether the shares of every stage are those that its policy gives for the losses that were logged."""
    if inputs.config.mixture.staged:
        lines = staging.disagreements(run_dir, inputs.config, inputs.plan)
        yield Check(name="stages", ok=not lines, lines=tuple(lines) or ("shares follow from the logged losses",))


def check_rates(run_dir: pathlib.Path, recorded: Mapping[str, Any], total_steps: int) -> Check:
    """Whether the logged learning rate of every step is that of the schedule, with the options of that step."""
    rows = training_rows(run_dir) if (run_dir / METRICS).is_file() else {}
    lines = []
    ends = [entry["after_step"] for entry in recorded.get("changes", [])]
    for low, high in itertools.pairwise(sorted({0, *ends, total_steps})):
        schedule = resuming.schedule_at(recorded, low + 1)
        planned = min(resuming.option_at(recorded, "duration.steps", low + 1) or total_steps, total_steps)
        peak, rates = schedule.peak_lr, rate_table(schedule, planned)[low:high]
        if low + len(rates) < high:
            lines.append(f"the recorded schedule ends at step {planned}, the plan derived now has {total_steps} steps")
        for step in range(low + 1, low + len(rates) + 1):
            logged = number(rows.get(step, {}).get("learning_rate", rates[step - low - 1]))
            if not math.isclose(logged, rates[step - low - 1], rel_tol=1e-5, abs_tol=1e-6 * peak):
                lines.append(f"step {step}: rate {logged:g} was logged, the schedule has {rates[step - low - 1]:g}")
    more = [f"and {len(lines) - 5} more steps"] if len(lines) > 5 else []
    text = f"{len(rows)} logged rates are those of the schedule"
    return Check(name="learning rate", ok=not lines, lines=(*lines[:5], *more) or (text,))


def describe_changes(recorded: Mapping[str, Any]) -> Check:
    """Options that were changed while the run was stopped: told, with step and date."""
    lines = [
        f"after step {entry['after_step']} ({entry['date']}): {name} was {value['then']}, is {value['now']}"
        for entry in recorded.get("changes", [])
        for name, value in entry["options"].items()
    ]
    return Check(name="changes on the way", ok=True, lines=tuple(lines) or ("none",))


def training_rows(run_dir: pathlib.Path) -> dict[int, dict[str, Any]]:
    """The logged steps by number."""
    rows = [row for row in read_rows(run_dir / METRICS) if row["kind"] == "train"]
    for row in rows:
        check_row(TrainRow, row, run_dir / METRICS)
    return {row["step"]: row for row in rows}


def trained_tokens(inputs: Inputs, step: int) -> dict[str, int]:
    """Targets with weight in a step's batch, by task, counted in the batch itself."""
    batch = global_batch(inputs, step)
    segments, tasks = np.asarray(batch.segment_ids), np.asarray(batch.task_ids)
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    counted = follows & (np.asarray(batch.loss_weights)[:, 1:] != 0)
    counts = np.bincount(tasks[:, 1:][counted], minlength=len(inputs.plan.tasks))
    return {task: int(n) for task, n in zip(inputs.plan.tasks, counts, strict=True) if n}


def check_checkpoints(run_dir: pathlib.Path, config: ExperimentConfig) -> Check:
    """Every file of every checkpoint against its digest."""
    folder = config.checkpoint.folder(run_dir)
    if not has_checkpoint(folder):
        return Check(name="checkpoints", ok=True, lines=(f"there are none in {folder}",))
    with Checkpoints(folder, config.checkpoint, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        lines = [f"step {step}: {problem}" for step in steps for problem in checkpoints.problems(step)]
        bound = {} if lines else {step: checkpoints.extra(step).get("log") for step in steps}
    if (run_dir / METRICS).is_file():
        logs = [(step, seal.check_log(run_dir, state)) for step, state in bound.items() if state]
        lines += [f"step {step}: {problem}" for step, problem in logs if problem]
    text = f"every file of the steps {', '.join(map(str, steps))} is as it was written"
    return Check(name="checkpoints", ok=not lines, lines=tuple(lines) or (text,))


def check_files(run_dir: pathlib.Path) -> Check:
    """Every file of a run that has ended against the seal that was put on it."""
    if not (run_dir / seal.SEAL).exists():
        ended = seal.has_ended(run_dir)
        text = "seal.json is missing, though the run has ended" if ended else "the run has not ended; no file is bound"
        return Check(name="files", ok=not ended, lines=(text,))
    try:
        found = seal.differences(run_dir)
    except UserError as error:
        return Check(name="files", ok=False, lines=(str(error),))
    added = [f"{name} came after the end of the run" for name in found.added]
    text = "every file is as it was at the end of the run"
    return Check(name="files", ok=not found.problems, lines=(*(found.problems or (text,)), *added))


def same_circumstances(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a replay must agree in every bit: the same code, libraries, devices and flags."""
    keep = lambda whole: {part: _relevant(whole[part]) for part in CIRCUMSTANCES}
    return keep(recorded) == keep(now)


def describe_circumstances(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> Check:
    """Differences of code, libraries and hardware: told, but no fault of the run."""
    lines = [
        line
        for part in CIRCUMSTANCES
        for line in manifest.compare_manifests({part: _relevant(recorded[part])}, {part: _relevant(now[part])})
    ]
    return Check(name="code and environment", ok=True, lines=tuple(lines) or ("equal",))


def _relevant(part: Mapping[str, Any]) -> dict[str, Any]:
    """Without what cannot change a number: the commit of equal sources, the sum of those listed, CPUs beside a GPU."""
    aside = {"commit", "dirty", "sha256"}
    if part.get("devices", {}).get("platform") != "cpu":
        aside.add("cpus")
    return {key: value for key, value in part.items() if key not in aside}


def why_loosened(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Reason why a replay need not agree in every bit; None where it must."""
    if recorded.get("stack_mode") == StackMode.BATCHED.value:
        return "it trained in one batch with others"
    return None if same_circumstances(recorded, now) else "code or environment differ"


def check_replay(
    run_dir: pathlib.Path, config: ExperimentConfig, inputs: Inputs, steps: int, *, loosened: str | None
) -> Check:
    """Train steps again, from a checkpoint or from the base model, and compare losses, gradient norms and the state."""
    rows = training_rows(run_dir) if (run_dir / METRICS).is_file() else {}
    if not rows:
        return Check(name="replay", ok=False, lines=("metrics.jsonl holds no step to compare with",))
    session = open_session(inputs, Programs())
    with jax.set_mesh(session.mesh):
        state = session.initial_state()
        folder = config.checkpoint.folder(run_dir)
        if not has_checkpoint(folder):
            return replay(session, state, rows, {}, steps, loosened=loosened)
        with Checkpoints(folder, config.checkpoint, read_only=True) as checkpoints:
            good = [step for step in checkpoints.steps() if not checkpoints.problems(step)]
            shapes = abstract(state)
            start = start_step(good, max(rows), steps)
            states = {s: checkpoints.restore(s, shapes) for s in good if start < s <= start + steps}
            if start:
                state = checkpoints.restore(start, shapes)
            return replay(session, state, rows, states, steps, loosened=loosened)


def replay(
    session: Session, state: TrainState, rows: Mapping[int, Mapping[str, Any]], states: Mapping[int, TrainState],
    steps: int, *, loosened: str | None,
) -> Check:  # fmt: skip
    """Train `steps` steps from `state`, comparing each with its logged row and with the saved states on the way."""
    start, exact = int(state.step), loosened is None
    last = min(start + steps, max(rows))
    lines = differences(session, state, rows, states, last, exact=exact)
    how = "bit for bit" if exact else f"within {TOLERANCE:g}, as {loosened}"
    compared = f", and the state{'s' * (len(states) > 1)} of step {', '.join(map(str, states))}" if states else ""
    text = f"steps {start + 1} to {last}: losses and gradient norms{compared} are equal {how}"
    return Check(name="replay", ok=not lines, lines=tuple(lines) or (text,))


def print_outcome(outcome: Verification) -> None:
    """One line for each check, and what differs below it."""
    for check in outcome.checks:
        say(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}")
        for line in check.lines:
            say(f"      {line}")
    say("verified" if outcome.ok else "NOT verified: see the lines marked FAIL")
