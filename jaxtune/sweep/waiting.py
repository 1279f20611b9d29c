"""Runs of a sweep that wait for their turn: claimed by one process each, planned, left to others."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from jaxtune.config import ExperimentConfig
from jaxtune.errors import say
from jaxtune.parallel.job import answer_of_main, is_main
from jaxtune.runs import folder as runfolder
from jaxtune.runs.remote import LATE, RemoteFolder, folder_of, how_far
from jaxtune.storage import locks
from jaxtune.storage.documents import parse_json
from jaxtune.storage.lease import holder_of
from jaxtune.sweep.record import Place, Trial
from jaxtune.train.planned import Planned, plan_run
from jaxtune.train.resolution import Inputs
from jaxtune.train.run import ENDS, is_finished

CommandOf = Callable[[Trial], Mapping[str, Any]]


def tell(text: str) -> None:
    """Print a line about a sweep, once for all processes of a job."""
    if is_main():
        say(text, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """A run of a sweep that is not finished."""

    label: str
    """Its number among all, for the terminal."""
    folder: pathlib.Path
    settings: ExperimentConfig
    command: Mapping[str, Any]
    inputs: Inputs | None = None
    """Its config resolved, in the room of the program that it shares."""
    until: int | None = None
    """Updates after which it waits for the other settings; None: it goes to its end."""
    decay: int | None = None
    """Updates before `until` in which its rate goes to zero; None for a run that is no branch."""
    remote: RemoteFolder | None = None
    """The run's folder in a bucket, of which `folder` is the working copy."""

    def say(self, text: str = "") -> None:
        """A line on the terminal about this run."""
        tell(f"{self.label} {self.folder.name}{text}")

    def plan(self) -> Planned:
        """The run checked and planned: from its last checkpoint if it was interrupted, else from its start."""
        place = self.folder if self.remote is None else self.remote.url
        saved, started = answer_of_main(lambda: how_far(place, self.settings.checkpoint))
        saved = saved and started
        if started:
            self.say(f": {'goes on from its last checkpoint' if saved else 'has no checkpoint, starts again'}")
        planned = plan_run(
            self.settings, self.remote or self.folder, command=self.command, resume=saved,
            overwrite=started and not saved,
            inputs=None if saved and self.settings.mixture.staged else self.inputs,  # it has come to a later stage
        )  # fmt: skip
        return planned if self.until is None else dataclasses.replace(planned, until=self.until, decay=self.decay)

    def claim(self, held: contextlib.ExitStack) -> bool:
        """Become the run's only writer for as long as `held` is open; False where others have finished it.

        Of a job process 0 writes, and all processes must call it. Raises `FolderInUse` on all where others train it.
        """
        if not answer_of_main(lambda: self.remote is not None and ended(self.remote)):
            held.enter_context(runfolder.only_writer(self.folder, self.remote))
            if not answer_of_main(lambda: is_finished(self.folder)):
                return True
        self.say(": another process has finished it")
        return False

    def is_claimed(self) -> bool:
        """Whether a process says, in a bucket, that it trains the run; it may be one that was killed on another host.

        On a disk the system forgets a claim with its process, so that trying is quick.
        """

        def look() -> bool:
            holder = None if self.remote is None else holder_of(self.remote.store)
            return holder is not None and not holder.is_gone

        return answer_of_main(look)

    def clean(self) -> None:
        """Remove the working copy of a run that is finished and in its bucket: there may be many, and one disk."""
        if self.remote is not None and is_finished(self.folder):
            self.remote.forget()


def waiting_runs(
    place: Place,
    trials: Sequence[Trial],
    resolved: Sequence[ExperimentConfig],
    command_of: Callable[[Trial], Mapping[str, Any]],
) -> list[Waiting]:
    """The runs that are not finished."""
    waiting, runs = [], folder_of(place) / "runs"
    finished = set(answer_of_main(lambda: [trial.name for trial in trials if is_finished(runs / trial.name)]))
    for index, (trial, settings) in enumerate(zip(trials, resolved, strict=True), start=1):
        remote = place.run(trial.name) if isinstance(place, RemoteFolder) else None
        run = Waiting(
            label=f"[{index}/{len(trials)}]", folder=runs / trial.name if remote is None else remote.folder,
            settings=settings, command=command_of(trial), remote=remote,
        )  # fmt: skip
        if trial.name in finished:
            run.say(": finished before")
        else:
            waiting.append(run)
    return waiting


def ended(remote: RemoteFolder) -> bool:
    """Whether a run in a bucket went to its end, of which only its summary is read."""
    summary = remote.store.read(LATE[0])
    return summary is not None and parse_json(summary, name=f"{remote.url}/{LATE[0]}").get("status") in ENDS


def planned_one_by_one(waiting: Sequence[Waiting]) -> Generator[Sequence[Planned]]:
    """Each run in a group of its own, claimed and planned at its turn.

    Those that others have claimed come last: by then they are finished, or their process may have died.
    """
    claimed: list[Waiting] = []
    for last, runs in ((False, waiting), (True, claimed)):
        for run in runs:
            if not last and run.is_claimed():
                claimed.append(run)
                continue
            with contextlib.ExitStack() as held:
                try:
                    is_mine = run.claim(held)
                except locks.FolderInUse as error:
                    run.say(f": left out, {error}") if last else claimed.append(run)
                    continue
                if is_mine:
                    run.say()
                    yield [run.plan()]
            run.clean()


def claimed_now(waiting: Sequence[Waiting], held: contextlib.ExitStack) -> dict[str, Waiting]:
    """The runs, by name, that this process has claimed for as long as `held` is open; the others are left out."""
    mine = {}
    for run in waiting:
        try:
            if run.claim(held):
                mine[run.folder.name] = run
        except locks.FolderInUse as error:
            run.say(f": left out, {error}")
    return mine
