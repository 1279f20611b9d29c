"""Lanes, which compute: a run alone, in place, or several side by side on the trial axis.

The bits of a run do not depend on its lane: it may go on alone, or in another group, from where it stood. Only where
trials are computed in one batch (`StackMode.BATCHED`) do the last bits depend on it, and the manifest says so.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxtune.batch import Batch
from jaxtune.evaluate.loss import LossResult, per_task_loss
from jaxtune.parallel import sharding
from jaxtune.plan.planning import Plan
from jaxtune.step import trials
from jaxtune.step.losses import LossSums
from jaxtune.step.programs import Programs
from jaxtune.step.trials import StackMode, TrialPrograms
from jaxtune.step.update import Hparams, StepMetrics, TrainState
from jaxtune.terminal.display import Phase
from jaxtune.train import measure
from jaxtune.train.session import Session


@runtime_checkable
class Lane(Protocol):
    """The states of runs that share a program, by the runs' numbers, and what computes on them."""

    def computes(self, number: int) -> bool:
        """Whether devices of this process compute on a run's batches; no other process needs to make them."""
        ...

    def put(self, batches: Mapping[int, Batch]) -> Batch:
        """Host batches [micro_batches, rows, seq] by run, on the devices; of runs that are computed here."""
        ...

    def update(self, batch: Batch, steps: Mapping[int, int]) -> StepMetrics:
        """One update of runs, each on its own batch, by number with the updates they have done before.

        Returns before the devices are done.
        """
        ...

    def fetch(self, metrics: StepMetrics, numbers: Collection[int]) -> dict[int, StepMetrics]:
        """An update's metrics on the host, by run; waits for the devices."""
        ...

    def state(self, number: int) -> TrainState:
        """The state of a run, placed as a run alone has it. Valid until the next update."""
        ...

    def replace(self, number: int, state: TrainState) -> None:
        """Let a run go on from another state."""
        ...

    def losses(self, numbers: Collection[int]) -> dict[int, LossResult | None]:
        """Validation losses of these runs as they are; None where there are no validation data."""
        ...


class Solo:
    """A run alone. Its state is updated in place: no second copy of it is ever made."""

    def __init__(self, session: Session):
        self.session = session
        self._state = session.take_initial_state()

    def computes(self, number: int) -> bool:
        return True

    def put(self, batches: Mapping[int, Batch]) -> Batch:
        [batch] = batches.values()
        return self.session.put(batch)

    def update(self, batch: Batch, steps: Mapping[int, int]) -> StepMetrics:
        [done], session = steps.values(), self.session
        step = session.program.train_step
        self._state, metrics = step(self._state, session.base.frozen, batch, session.numbers_at(done))
        return metrics

    def fetch(self, metrics: StepMetrics, numbers: Collection[int]) -> dict[int, StepMetrics]:
        values = jax.device_get(metrics)
        return {number: values for number in numbers}

    def state(self, number: int) -> TrainState:
        return self._state

    def replace(self, number: int, state: TrainState) -> None:
        self._state = state

    def losses(self, numbers: Collection[int]) -> dict[int, LossResult | None]:
        return {number: measure.validation_loss(self.session, self._state.measured) for number in numbers}


class Stacked:
    """Several runs of one program, their states stacked on a leading trial axis."""

    def __init__(self, sessions: Sequence[Session], compiled: TrialPrograms):
        self.session, self._sessions, self._compiled = sessions[0], sessions, compiled
        self._numbers = stacked_numbers([session.numbers for session in sessions], compiled.size)
        self._here = frozenset(compiled.here())
        self._padding: Batch | None = None
        self._state = compiled.blank()
        for number, session in enumerate(sessions):
            self.replace(number, session.initial_state())

    def computes(self, number: int) -> bool:
        return number in self._here

    def put(self, batches: Mapping[int, Batch]) -> Batch:
        if not batches and self._padding is None:  # all runs of this process have ended, or it only fills up the mesh
            with contextlib.closing(self.session.train_batches(0)) as stream:
                self._padding = next(stream)
        batch = stacked_batch(batches, self._compiled.size, self._padding)
        return sharding.put_batch(self.session.mesh, batch, self.session.inputs.micro_rows, trials=True)

    def update(self, batch: Batch, steps: Mapping[int, int]) -> StepMetrics:
        rates = np.zeros(self._compiled.size, np.float32)
        for number, done in steps.items():
            rates[number] = self._sessions[number].rates[done]
        numbers = dataclasses.replace(self._numbers, learning_rate=rates)
        frozen = self.session.base.frozen
        self._state, metrics = self._compiled.train_step(self._state, frozen, batch, numbers, sorted(steps))
        return metrics

    def fetch(self, metrics: StepMetrics, numbers: Collection[int]) -> dict[int, StepMetrics]:
        values = self._compiled.fetch(metrics)
        return {number: trial(values, number) for number in numbers}

    def state(self, number: int) -> TrainState:
        return self._compiled.take(self._state, number)

    def replace(self, number: int, state: TrainState) -> None:
        self._state = self._compiled.put(self._state, number, state)

    def losses(self, numbers: Collection[int]) -> dict[int, LossResult | None]:
        """One pass over the data for all of them, and one over the prompts for those that train on prompts."""
        plan = self.session.inputs.eval_plan
        if plan is None or not numbers:
            return dict.fromkeys(numbers)
        results = self._losses(plan, numbers)
        prompted = [k for k in numbers if self._sessions[k].inputs.trains_prompts]
        if prompted:
            prompts, replace = self._losses(plan, prompted, prompts=True), dataclasses.replace
            results |= {k: replace(results[k], prompt_loss=found.task_loss) for k, found in prompts.items()}
        return dict(results)

    def _losses(self, plan: Plan, numbers: Collection[int], *, prompts: bool = False) -> dict[int, LossResult]:
        """Losses of the plan's responses, or prompts, by run."""
        inputs = self.session.inputs
        stream = contextlib.closing(self.session.evaluation_batches(plan, inputs.validation, prompts=prompts))
        with stream as batches, Phase("validation", plan.num_steps, unit="batches") as phase:
            sums = list(self._sums(phase.count(batches), numbers))
        tasks, held = list(plan.tasks), {k: self._sessions[k].inputs.held for k in numbers}
        return {k: per_task_loss(lambda s, k=k: trial(s, k), sums, tasks, held[k]) for k in numbers}

    def _sums(self, batches: Iterable[Batch], numbers: Collection[int]) -> Iterator[LossSums]:
        """Each validation batch's loss sums of all trials, fetched one batch late, so that host and device overlap."""
        waiting = None
        for batch in batches:
            frozen = self.session.base.frozen
            sums = self._compiled.eval_step(self._state.measured, frozen, batch, self._numbers, sorted(numbers))
            if waiting is not None:
                yield self._compiled.fetch(waiting)
            waiting = sums
        if waiting is not None:
            yield self._compiled.fetch(waiting)


def make_lane(sessions: Sequence[Session], programs: Programs, mode: StackMode = StackMode.ORDER) -> Lane:
    """The lane of runs that share a program, with their states at step 0. Takes the parameters of a run alone over."""
    if len(sessions) == 1:
        return Solo(sessions[0])
    return Stacked(sessions, trial_programs(sessions[0], programs, len(sessions), mode))


def trial_programs(first: Session, programs: Programs, count: int, mode: StackMode) -> TrialPrograms:
    """The compiled functions of so many trials, built once."""
    key = ("trials", id(first.program), count, mode)
    if key not in programs.shared:
        programs.shared[key] = trials.build(first.program, first.base.trainable, first.mesh, count, mode)
    return programs.shared[key]


def trial(tree: Any, number: int) -> Any:
    """One trial of a stacked tree on the host."""
    return jax.tree.map(lambda x: np.asarray(x[number]), tree)


def stacked_numbers(numbers: Sequence[Hparams], size: int) -> Hparams:
    """Numbers of every trial; those that only fill up the mesh repeat the first."""
    filled = [*numbers, *[numbers[0]] * (size - len(numbers))]
    return jax.tree.map(lambda *values: np.stack(values), *filled)


def stacked_batch(own: Mapping[int, Batch], size: int, like: Batch | None = None) -> Batch:
    """Host batches by trial as one [trial, micro_batches, rows, seq]; trials without one get padding, as `like`."""
    padding = jax.tree.map(np.zeros_like, next(iter(own.values()), like))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *[own.get(k, padding) for k in range(size)])
