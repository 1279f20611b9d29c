"""The training loop: update, log the round before, decide, validate, save, end. A single run is a list of one arm."""

import contextlib
import dataclasses
import math
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtune.data.batches import BatchIterator
from jaxtune.evaluate.loss import LossResult
from jaxtune.parallel.job import StopSignal
from jaxtune.step.update import StepMetrics, TrainState
from jaxtune.terminal.display import Phase
from jaxtune.terminal.progress import GroupProgress, TrainProgress
from jaxtune.train import measure
from jaxtune.train.arm import Arm, NotFinite
from jaxtune.train.decisions import Status
from jaxtune.train.forecast import Forecast
from jaxtune.train.lanes import Lane
from jaxtune.train.profile import StepTrace

RESUMABLE = (Status.STOPPED, Status.PAUSED)
"""Ends of a run that goes on another time, from its checkpoint."""
SLOW_STEP, SLOW_STEP_IN_LOGS = 3.0, 10.0
"""Seconds of a step after which a terminal, or a log, says that it is still being computed, and how far it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Arms that train together, each at its own step, and what they share."""

    arms: Sequence[Arm]
    lane: Lane
    display: TrainProgress | GroupProgress
    shared: dict[Any, Any]
    """Results that one arm computes for all."""
    watch: "Stopwatch"
    forecast: Forecast = dataclasses.field(default_factory=Forecast)

    @property
    def running(self) -> list[Arm]:
        """Arms that still train."""
        return [arm for arm in self.arms if arm.status is None]

    def say(self, arm: Arm, text: str) -> None:
        """A line on the terminal about an arm."""
        self.display.of(arm.name).write(text)

    def state_of(self, arm: Arm) -> Callable[[], TrainState]:
        """A function that gives an arm's state; where runs are stacked that is a copy, made when it is needed."""
        return lambda: self.lane.state(arm.number)

    def step_phase(self, step: int) -> Phase:
        """The line of a step that takes long: its micro-batches, as far as they can be estimated."""
        expected = self.display.seconds_a_step * len(self.running)
        count = self.arms[0].config.batch.micro_batches
        total = count if count > 1 and math.isfinite(expected) else 0
        first = SLOW_STEP if self.display.live else SLOW_STEP_IN_LOGS
        return Phase(f"step {step}", total, unit="micro-batches", first=first, expected=expected)

    def share_time(self) -> None:
        """Count the time since this was last called, in equal parts, to the arms that still train."""
        running, seconds = self.running, self.watch.lap()
        for arm in running:
            arm.seconds += seconds / len(running)


class Stopwatch:
    """Seconds between two questions."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since this was last asked, or since the start."""
        before, self._last = self._last, time.monotonic()
        return self._last - before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One update of every running arm: which update of which arm, and metrics that the devices may still compute."""

    steps: Mapping[int, int]
    """Arm number -> its updates done, this one included."""
    metrics: StepMetrics


def run(ensemble: Ensemble) -> int:
    """Train every arm to its end, or until a signal; returns the exit code of the process, 0 without a signal."""
    with ensemble.display:
        begin(ensemble)
        return train_to_end(ensemble)


def train_to_end(ensemble: Ensemble) -> int:
    """The updates of every arm, and what comes between and after them; returns the exit code of the process."""
    running = ensemble.running
    with contextlib.ExitStack() as stack:
        mine = [arm for arm in running if ensemble.lane.computes(arm.number)]
        feeds = {arm.number: arm.session.train_batches(arm.done) for arm in mine}
        for feed in feeds.values():
            stack.enter_context(contextlib.closing(feed))
        first = ensemble.arms[0]  # a run that is traced has no others beside it
        trace = stack.enter_context(StepTrace(first.config.health.profile_steps, first.run_dir / "profile"))
        stop = stack.enter_context(StopSignal())
        for arm in running:
            arm.restart_clock()
        start = rounds = max((arm.done for arm in running), default=0)
        pending = None
        while ensemble.running:
            latest = update(ensemble, feeds, trace, compiles=rounds == start)
            if pending is not None:
                log(ensemble, pending)  # the round before, while the devices work on this one
            pending = latest
            rounds += 1
            stopping = stop.after(rounds)
            if any(arm.waits(stopping=stopping) for arm in ensemble.running):
                log(ensemble, pending)
                pending = None
                settle(ensemble, stopping=stopping)
            ensemble.share_time()
        return stop.exit_code if any(arm.status is Status.STOPPED for arm in ensemble.arms) else 0


def begin(ensemble: Ensemble) -> None:
    """Start of the loop: the base's numbers, validations that are still to be done, arms at their end."""
    fresh = [arm for arm in ensemble.arms if arm.done == 0]
    behind = [arm for arm in ensemble.arms if arm.counters.unvalidated]
    forecast = ensemble.forecast
    results = forecast.timed("validation", lambda: losses(ensemble, [*fresh, *behind]))
    for arm in fresh:
        state = ensemble.lane.state(arm.number)
        seen = measure.seen_loss(arm.session, state.measured, arm.rules.total)
        say_validation(ensemble, arm, arm.validated(results[arm.number], lambda state=state: state, seen))
        forecast.timed("answers", lambda arm=arm, state=state: arm.score(state, 0, "before", ensemble.shared))
        arm.retain(state, "before")
    for arm in behind:
        say_validation(ensemble, arm, arm.catch_up(results[arm.number], ensemble.state_of(arm)))
    end(ensemble, {arm: arm.ended for arm in ensemble.arms if arm.ended is not None})


def update(ensemble: Ensemble, feeds: Mapping[int, BatchIterator], trace: StepTrace, *, compiles: bool) -> Round:
    """Send one update of every running arm to the devices; `compiles`: the program is not there yet."""
    lane, running = ensemble.lane, ensemble.running
    first = running[0].done + 1
    trace.before(first)
    asked = time.monotonic()
    batch = lane.put({arm.number: next(feeds[arm.number]) for arm in running if arm.number in feeds})
    waited = time.monotonic() - asked
    for arm in running:
        arm.updated(waited)
    with Phase("compiling the training step") if compiles else ensemble.step_phase(first):
        metrics = lane.update(batch, {arm.number: arm.done - 1 for arm in running})
    trace.after(first, metrics)
    return Round(steps={arm.number: arm.done for arm in running}, metrics=metrics)


def log(ensemble: Ensemble, round: Round) -> None:
    """A round's numbers into each arm's metrics; an arm whose numbers are not finite ends, and only that arm."""
    step = max(round.steps.values())
    ensemble.display.expect(max(ensemble.forecast.seconds(arm.rules, step - 1) for arm in ensemble.running))
    with ensemble.step_phase(step):
        values = ensemble.lane.fetch(round.metrics, round.steps)
    for arm in [arm for arm in ensemble.running if arm.number in round.steps]:
        try:
            arm.log(round.steps[arm.number], values[arm.number], ensemble.display.of(arm.name))
        except NotFinite as error:
            arm.status, arm.failure = Status.FAILED, str(error)
            if len(ensemble.arms) > 1:
                ensemble.display.write(f"{arm.name} ends here, the others go on: {error}")
    ensemble.display.show([arm.name for arm in ensemble.running])


def settle(ensemble: Ensemble, *, stopping: bool) -> None:
    """Validate, save and end the arms whose last update asks for it."""
    started, forecast = time.monotonic(), ensemble.forecast
    decisions = {arm: arm.decide(stopping=stopping) for arm in ensemble.running}
    validating = [arm for arm, decision in decisions.items() if decision.validate]
    results = losses(ensemble, validating) if validating else {}
    ending: dict[Arm, Status] = {}
    saving = 0.0
    for arm, decision in decisions.items():
        watched = None
        if decision.validate:
            watched = arm.validated(results[arm.number], ensemble.state_of(arm))
            decision = arm.decide(watched=watched)
            say_validation(ensemble, arm, watched)
            arm.write_report()
        if decision.save:
            before = time.monotonic()
            arm.save(ensemble.lane.state(arm.number), watched)
            saving += time.monotonic() - before
        if decision.end is not None:
            ending[arm] = decision.end
    forecast.saving = saving or forecast.saving
    forecast.validation = time.monotonic() - started - saving if validating else forecast.validation
    ensemble.share_time()
    end(ensemble, ending)
    for arm in ensemble.running:
        arm.restart_clock()
    ensemble.display.pause(time.monotonic() - started)


def end(ensemble: Ensemble, ending: Mapping[Arm, Status]) -> None:
    """End arms: those that go on another time are concluded as they are saved, the others with their best state."""
    for arm, status in ending.items():
        say_end(ensemble, arm, status)
        if status in RESUMABLE:
            arm.conclude(status)
    finish(ensemble, {arm: status for arm, status in ending.items() if status not in RESUMABLE})


def say_validation(ensemble: Ensemble, arm: Arm, watched: float | None) -> None:
    """The watched loss of a validation and the best so far, in a line that stays on the terminal."""
    if watched is None:
        return
    counters, how = arm.counters, arm.config.early_stopping.aggregate.value.replace("_", " ")
    text = f"validation at step {arm.done}: {how} {watched:.4f}"
    if not math.isfinite(watched):
        text += ", which is not finite and is never the best"
    if counters.best_step >= 0:
        text += f", best {counters.best_value:.4f} at step {counters.best_step}"
    ensemble.say(arm, text)
    if arm.config.eval.print_answers:
        for task, rows in arm.answers.items():
            for row in rows:
                ensemble.say(arm, f"  {'✓' if row['correct'] else '✗'} {task}: {in_short(row)}")


def in_short(row: Mapping[str, Any]) -> str:
    """A question and its answer in one line."""
    question, answer = (textwrap.shorten(str(row[name]), 120, placeholder=" ...") for name in ("prompt", "prediction"))
    return f"{question} -> {answer or '(empty)'}"


def say_end(ensemble: Ensemble, arm: Arm, status: Status) -> None:
    """Print the end of an arm that stops before its last update."""
    if status is Status.STOPPED:
        total = arm.rules.total
        ensemble.say(arm, f"stopped after step {arm.done} of {total}; the same command with --resume continues")
    elif status is Status.PAUSED:
        why = "for the shares of its next stage" if arm.config.mixture.staged else "for the other settings"
        ensemble.say(arm, f"waits after step {arm.done} of {arm.rules.total} {why}")
    elif status is Status.EARLY_STOPPED:
        best = arm.counters.best_step
        ensemble.say(arm, f"stopped early after step {arm.done}: best validation was at step {best}")


def finish(ensemble: Ensemble, ending: Mapping[Arm, Status]) -> None:
    """Score and export the best parameters of arms that are at their end, and write their summaries."""
    lane = ensemble.lane
    steps: dict[Arm, int] = {}
    for arm in ending:
        state = lane.state(arm.number)
        best = arm.best_state(state)
        if best is not state:
            lane.replace(arm.number, best)
        steps[arm] = int(best.step)
    results = losses(ensemble, [arm for arm, step in steps.items() if not arm.knows_loss(step)])
    ensemble.share_time()
    for arm, status in ending.items():
        arm.finish(status, lane.state(arm.number), results.get(arm.number), ensemble.shared)
    ensemble.watch.lap()  # each has counted the time of its own end


def losses(ensemble: Ensemble, arms: Collection[Arm]) -> dict[int, LossResult | None]:
    """Validation losses of some arms by number, in one pass."""
    return ensemble.lane.losses([arm.number for arm in arms])
