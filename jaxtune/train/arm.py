"""One run while it trains: its place, its counters, and what it writes into its folder."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxtune.config import to_json
from jaxtune.errors import UserError, say
from jaxtune.evaluate.answers import ScoreResult, spread
from jaxtune.evaluate.hooks import call_hook
from jaxtune.evaluate.loss import LossResult
from jaxtune.parallel.job import answer_of_main, from_main, is_main
from jaxtune.reports import run as report
from jaxtune.runs import folder as runfolder
from jaxtune.runs import seal
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.documents import Generations, read_as, read_manifest
from jaxtune.runs.history import METRICS, read_rows
from jaxtune.runs.main_checkpoints import MainCheckpoints
from jaxtune.runs.mirrors import Labels, make_mirror
from jaxtune.runs.retention import WATCHED
from jaxtune.runs.sweeps import is_sweep
from jaxtune.runs.tracker import JsonlTracker, Tracker, Trackers
from jaxtune.step.update import StepMetrics, TrainState
from jaxtune.storage.documents import Json, read_object, write_json
from jaxtune.terminal.display import Phase
from jaxtune.terminal.progress import RunProgress, TrainProgress
from jaxtune.train import measure, resuming, retention
from jaxtune.train.decisions import Counters, Decision, Health, Status, decide, ended, judge, rules
from jaxtune.train.documents import mixture_json
from jaxtune.train.export import export_model
from jaxtune.train.lanes import Lane
from jaxtune.train.planned import MODEL, Planned
from jaxtune.train.rows import Exported, answers_row, eval_row, logged_losses, score_row, summary, train_row
from jaxtune.train.session import Session, load_base

RETENTION = "retention.json"
"""File of a run folder with the losses of the retention texts, document by document, before and after tuning."""


LM_EVAL = "lm_eval.json"
"""File of a run folder with lm-eval's questions, one by one, before and after tuning."""


class NotFinite(UserError):
    """A run met more non-finite losses or gradients than its budget allows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Receivers of a run's numbers and states: open trackers and checkpoints."""

    run: Planned
    checkpoints: Checkpoints | MainCheckpoints
    tracker: Tracker
    rows: JsonlTracker | None
    """The tracker of metrics.jsonl, one of those in `tracker`; None on processes that write nothing."""
    trained_with: tuple[str, ...] = ()
    """Names of runs that are computed in the same program; times and rates are then shared with them."""


class Arm:
    """One run of those that train together; a run alone is the only one.

    `done` counts its updates, `counters` what they added up to. `status` is None while it trains.
    """

    def __init__(self, number: int, session: Session, record: Record, counters: Counters, done: int):
        self.number, self.session, self.record = number, session, record
        self.counters, self.done = counters, done
        self.name, self.run_dir = record.run.name, record.run.run_dir
        self.inputs, self.config = session.inputs, session.config
        validated = self.inputs.eval_plan is not None
        self.rules = rules(self.config, self.inputs.total_steps, validated=validated, until=record.run.until)
        if record.run.decay is not None:  # a branch is compared where it ends, and not stopped before
            self.rules = dataclasses.replace(self.rules, patience=None)
        self.status: Status | None = None
        self.failure: str | None = None
        self.seconds = record.run.seconds
        """Its own time and its share of the time of those that train together."""
        self.summary: dict[str, Any] = {}
        self.answers: Mapping[str, Sequence[Mapping[str, Any]]] = {}
        """Task -> answers to the fixed questions at the last validation; empty where none were asked."""
        self._validated: tuple[int, LossResult | None] | None = None
        self._clock, self._waited = time.monotonic(), 0.0

    @property
    def ended(self) -> Status | None:
        """Status with which the run ends where it stands; None while it goes on."""
        return ended(self.counters, self.done, self.rules)

    def decide(self, *, stopping: bool = False, watched: float | None = None) -> Decision:
        """Decide what comes after the last update, and count a validation loss that is given."""
        self.counters, decision = decide(self.counters, self.done, self.rules, stopping=stopping, watched=watched)
        return decision

    def waits(self, *, stopping: bool) -> bool:
        """Whether there is anything to do before the next update."""
        return decide(self.counters, self.done, self.rules, stopping=stopping)[1].waits

    def updated(self, waited: float) -> None:
        """One more update is on its way; its data took `waited` seconds."""
        self.done += 1
        self._waited += waited

    def restart_clock(self) -> None:
        """Rates are counted from now on: what came before was no training."""
        self._clock, self._waited = time.monotonic(), 0.0

    def log(self, step: int, values: StepMetrics, display: TrainProgress | RunProgress) -> None:
        """Check, count and write the numbers of the update that made `step` updates done. Raises NotFinite."""
        now = time.monotonic()
        seconds, waited = now - self._clock, self._waited
        self._clock, self._waited = now, 0.0
        missing = values.sums.over_capacity
        assert not missing, f"step {step}: {missing} weighted positions beyond the planned capacity"
        self._check_health(step, values)
        names = self.inputs.task_names
        self.counters = self.counters.counted(
            tokens=int(values.real_tokens),
            task_examples=self.inputs.examples_in(step - 1),
            task_tokens=dict(zip(names, values.sums.tokens.tolist(), strict=True)),
        )
        row = train_row(step, values, self.counters, self.session, seconds=seconds, waited=waited)
        self.record.tracker.log(row)
        shown = ("loss", "tokens_per_s", "loss_tokens_per_s", "padding", "data_wait")
        display.update(step, **{name: row[name] for name in shown})

    def _check_health(self, step: int, values: StepMetrics) -> None:
        """Log spikes and non-finite numbers with the step's examples; raise NotFinite beyond the budget."""
        loss, health = float(values.loss), self.config.health
        self.counters, found = judge(
            self.counters, loss, applied=bool(values.applied), finite=bool(values.finite),
            spike_factor=health.spike_factor,
        )  # fmt: skip
        if found not in (Health.SPIKE, Health.NOT_FINITE):
            return
        examples = self.inputs.describe_step(step - 1)
        if found is Health.SPIKE:
            self.record.tracker.log({"kind": "spike", "step": step, "loss": loss, "examples": examples})
            return
        self.record.tracker.log({"kind": "nonfinite", "step": step, "examples": examples})
        if self.counters.skipped > health.skip_budget:
            raise NotFinite(
                f"step {step}: not finite: loss {loss}, gradient norm {float(values.grad_norm)}; "
                f"health.skip_budget={health.skip_budget} allows no more. Lower the learning rate, or "
                f"look at the examples of the step: {', '.join(examples[:8])}{' ...' if len(examples) > 8 else ''}"
            )

    def validated(
        self, result: LossResult | None, state: Callable[[], TrainState], seen: LossResult | None = None
    ) -> float | None:
        """A validation after the last update into the metrics; returns the number that is watched.

        `state`: gives the parameters that were validated, to the config's hook and to the fixed questions. `seen`:
        losses of training examples by the same parameters.
        """
        self._validated = self.done, result
        if result is None:
            return None
        row, hook = eval_row(self.done, result, seen), self.config.on_validation
        if hook is not None:
            row["hook"] = call_hook(hook, self.done, self.session.full_params(state().measured), row)
        self.record.tracker.log(row)
        self._answer(state)
        stopping = self.config.early_stopping
        return from_main(
            result.watched(stopping.aggregate, stopping.task) + stopping.forget_weight * self._forgot(state)
        )

    def _answer(self, state: Callable[[], TrainState]) -> None:
        """Answers to the fixed questions into the metrics. Those before and after tuning are in generations.json."""
        self.answers = {}
        asked = spread(self.inputs.questions, self.config.eval.answers)
        if asked and 0 < self.done < self.rules.total:
            result = measure.score(self.session, state().measured, asked)
            self.record.tracker.log(answers_row(self.done, result))
            self.answers = result.answers

    def retain(self, state: TrainState, when: str) -> Json | None:
        """Measure the retention texts `before` or `after` tuning; None without any. Kept in retention.json."""
        if not self.inputs.retention:
            return None
        base = None if when == "before" else load_base(self.inputs, self.session.mesh)
        found = retention.read_all(self.session, state.measured, base)
        texts = {name: one.to_json() for name, one in found.items()}
        if is_main():
            path = self.run_dir / RETENTION
            write_json(path, (read_object(path) if path.exists() else {}) | {when: texts})
        means = {name: {key: value for key, value in one.items() if key != "documents"} for name, one in texts.items()}
        self.record.tracker.log({"kind": "retention", "step": int(state.step), "texts": means})
        return means

    def _forgot(self, state: Callable[[], TrainState]) -> float:
        """Nats per token lost on the retention texts so far; 0 where that is not watched."""
        if not self.config.early_stopping.forget_weight or self.done == 0:
            return 0.0
        before = read_object(self.run_dir / RETENTION)["before"] if is_main() else {}
        base = from_main(retention.mean_loss({name: one["loss"] for name, one in before.items()}))
        now = retention.read_all(self.session, state().measured)
        return retention.mean_loss({name: one.loss for name, one in now.items()}) - base

    def catch_up(self, result: LossResult | None, state: Callable[[], TrainState]) -> float | None:
        """The validation that a stop signal left undone: the metrics become those of a run that never stopped."""
        watched = self.validated(result, state)
        self.decide(watched=watched)
        if watched is not None:
            self.record.checkpoints.set_metrics(self.done, {WATCHED: watched})
        return watched

    def score(self, state: TrainState, step: int, when: str, shared: dict[Any, Any]) -> ScoreResult | None:
        """Answers to the test questions, scored; kept in generations.json. `shared`: results of other runs."""
        key = measure.score_key(self.session, self.record.run.identity) if when == "before" else None
        result = None if key is None else shared.get(key)
        if result is None:
            result = measure.score_all(self.session, state.measured)
        if result is None:
            return None
        if key is not None:
            shared[key] = result
        self.record.tracker.log(score_row(step, result))
        if is_main():
            path = self.run_dir / "generations.json"
            write_json(path, (read_as(path, Generations) if path.exists() else {}) | {when: result.answers})
            if result.harness is not None:
                path = self.run_dir / LM_EVAL
                write_json(path, (read_object(path) if path.exists() else {}) | {when: result.harness.rows})
        return result

    def save(self, state: TrainState, watched: float | None) -> None:
        """Checkpoint after the last update."""
        extra = {
            "progress": self.counters.to_json(), "plan_hash": self.inputs.plan.hash, "seed": self.config.seed,
            "log": self.record.rows and self.record.rows.state(),
        }  # fmt: skip
        metrics = {} if watched is None else {WATCHED: watched}
        with Phase("saving a checkpoint"):
            self.record.checkpoints.save(self.done, state, extra, metrics)

    def best_state(self, state: TrainState) -> TrainState:
        """The state of the best checkpoint; `state` where nothing was validated."""
        best = self.counters.best_step
        if best in (-1, int(state.step)):
            return state
        return self.record.checkpoints.restore(best, abstract(state))

    def knows_loss(self, step: int) -> bool:
        """Whether the validation loss after `step` updates was measured last."""
        return self._validated is not None and self._validated[0] == step

    def finish(self, status: Status, state: TrainState, loss: LossResult | None, shared: dict[Any, Any]) -> None:
        """Score and export `state`, whose validation loss is `loss` if it was not measured last, and conclude."""
        started, step = time.monotonic(), int(state.step)
        known = self._validated[1] if self._validated is not None and self.knows_loss(step) else loss
        exported = Exported(
            step=step, loss=known, seen=measure.seen_loss(self.session, state.measured, step),
            score=self.score(state, step, "after", shared), retention=self.retain(state, "after"),
        )  # fmt: skip
        with Phase("writing the model"):
            export_model(self.session, state.measured, self.run_dir / MODEL, overwrite=True)  # of a run killed here
        self.seconds += time.monotonic() - started
        self.conclude(status, exported)

    def write_report(self) -> None:
        """The page of the run as it stands."""
        if is_main():
            report.write_report(self.run_dir)

    def conclude(self, status: Status, exported: Exported | None = None) -> None:
        """The run has ended: write summary and report."""
        self.status = status
        before = runfolder.first_numbers(self.run_dir) if is_main() else {}
        self.summary = summary(
            self.session, self.counters, status, self.done, exported,
            before=before, seconds=self.seconds, trained_with=list(self.record.trained_with),
        )  # fmt: skip
        self.record.checkpoints.wait()
        if is_main():
            write_json(self.run_dir / "summary.json", self.summary)
        self.write_report()
        if is_main():
            seal.write_seal(self.run_dir)


def open_arm(
    stack: contextlib.ExitStack, number: int, session: Session, lane: Lane, run: Planned,
    trained_with: tuple[str, ...],
) -> Arm:  # fmt: skip
    """A run with its checkpoints and tracker open, which `stack` closes; a resumed one gets its state in `lane`."""
    checkpoints = stack.enter_context(open_checkpoints(run))
    counters, done = Counters(), 0
    if run.resume:
        checkpoints.fetch()
        state, counters = restore(checkpoints, lane.state(number), run)
        lane.replace(number, state)
        done = int(state.step)
        if is_main():
            resuming.record(run.run_dir, run.identity, run.changes, done, dict(run.command))
            if run.changes:
                write_json(run.run_dir / "mixture.json", mixture_json(run.inputs))
    tracker, rows = open_tracker(run, done if run.resume else None, validated=not counters.unvalidated)
    stack.callback(tracker.close)
    record = Record(run=run, checkpoints=checkpoints, tracker=tracker, rows=rows, trained_with=trained_with)
    return Arm(number, session, record, counters, done)


def open_checkpoints(run: Planned) -> Checkpoints | MainCheckpoints:
    """The checkpoints of a run, as far as its bucket holds them; on hosts without a shared disk those of process 0."""
    config, remote = run.checkpoint, run.remote
    folder, bucket = config.folder(run.run_dir), config.bucket()
    if remote is None:
        return Checkpoints(folder, config)
    if run.resume:
        answer_of_main(lambda: config.bring(run.run_dir))
    if bucket is not None and jax.process_count() > 1:
        return MainCheckpoints(folder, config, before=remote.send)
    return Checkpoints(folder, config, before=remote.send if is_main() else None)


def restore(checkpoints: Checkpoints | MainCheckpoints, state: TrainState, run: Planned) -> tuple[TrainState, Counters]:
    """The state to continue from: the newest checkpoint, or the one asked for. Never falls back in silence."""
    step = checkpoints.latest() if run.resume_step is None else run.resume_step
    if step is None:
        raise UserError(f"no checkpoint to resume from in {checkpoints.directory}; start again with --overwrite")
    restored = checkpoints.restore(step, abstract(state))
    extra, planned = checkpoints.extra(step), run.inputs.plan.hash
    if extra["plan_hash"] != planned and step > run.inputs.plan.earlier.get(extra["plan_hash"], -1):
        raise UserError(
            f"checkpoint {step} was made with plan {extra['plan_hash'][:12]}, this config gives "
            f"{planned[:12]}; resume with the config and data of the run, or start another run folder"
        )
    checkpoints.set_aside_after(step)
    counters = judged_again(checkpoints, Counters.from_json(extra["progress"]), step, run)
    steps = checkpoints.steps()
    if counters.best_step not in (-1, *steps):
        losses = {kept: checkpoints.metrics(kept).get(WATCHED, math.nan) for kept in steps}
        gone = counters.best_step
        say(f"{run.name}: the best checkpoint, step {gone}, is gone; the best of those left counts from here on")
        counters = counters.without_best(losses)
    return restored, counters


def labels_of(run: Planned) -> Labels:
    """Labels of a run in its mirrors: a run of a sweep in the group of the sweep's folder, if the config names none."""
    config, above = run.inputs.config, run.run_dir.absolute().parent.parent
    swept = run.remote.sweep_name() if run.remote is not None else above.name if is_sweep(above) else None
    group = config.mirror_group or swept
    return Labels(project=config.name, group=group, tags=config.mirror_tags)


def judged_again(checkpoints: Checkpoints | MainCheckpoints, counters: Counters, step: int, run: Planned) -> Counters:
    """The counters of a checkpoint, and what ranks the others, by the validation loss that is watched now.

    After an accepted change of what is watched, older losses are computed again from the logged ones of each task.
    After one of the validation examples they cannot be: none of them counts any more.
    """
    found = answer_of_main(lambda: losses_judged_again(run, step))
    if found is None:
        return counters
    losses = dict(found)
    for saved in checkpoints.steps():
        checkpoints.set_metrics(saved, {WATCHED: losses[saved]} if saved in losses else {})
    return counters.recounted(losses, run.inputs.config.early_stopping.min_change)


def losses_judged_again(run: Planned, step: int) -> list[tuple[int, float]] | None:
    """(step, watched loss) of the validations up to `step` that count under today's options; None: as before."""
    inputs, rule = run.inputs, run.inputs.config.early_stopping
    recorded = read_manifest(run.run_dir)
    watch, examples = (
        resuming.differs_at(recorded, run.identity["config"], names, step)
        for names in (resuming.WATCHING, resuming.VALIDATING)
    )
    if not (watch or examples) or inputs.eval_plan is None:
        return None
    since = math.inf if examples else resuming.last_change(recorded, resuming.VALIDATING, step)
    rows = [row for row in read_rows(run.run_dir / METRICS) if row["kind"] == "eval" and since < row["step"] <= step]
    return [(row["step"], logged_losses(row, inputs.held).watched(rule.aggregate, rule.task)) for row in rows]


def open_tracker(
    run: Planned, resume_step: int | None, *, validated: bool = True
) -> tuple[Tracker, JsonlTracker | None]:
    """All trackers as one, and that of metrics.jsonl: on the main process; nothing on the others."""
    if not is_main():
        return Trackers([]), None
    config = run.inputs.config
    mirrors = [
        make_mirror(kind, run.run_dir, config=to_json(config), labels=labels_of(run), resume_step=resume_step)
        for kind in config.mirrors
    ]
    rows = JsonlTracker(run.run_dir, resume_step=resume_step, validated=validated)
    return Trackers([rows, *mirrors]), rows
