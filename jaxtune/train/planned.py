"""A run before it starts: checked, resolved, planned. Nothing of it is on a device or written."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from jaxtune.config import ExperimentConfig, to_json
from jaxtune.errors import UserError, say
from jaxtune.hf import folder as hf
from jaxtune.parallel.job import answer_of_main, is_main
from jaxtune.parallel.mesh import all_devices
from jaxtune.runs import folder as runfolder
from jaxtune.runs.mirrors import check_packages
from jaxtune.runs.remote import RemoteFolder
from jaxtune.runs.retention import CheckpointConfig
from jaxtune.step.room import Room
from jaxtune.step.trials import StackMode
from jaxtune.storage.documents import Json
from jaxtune.terminal.display import Phase
from jaxtune.train import lengthening, resuming, staging
from jaxtune.train.documents import mixture_json, samples
from jaxtune.train.identity import identify
from jaxtune.train.resolution import Inputs, resolve
from jaxtune.train.rooms import read_room, write_room

MODEL = "model"
"""Folder of the exported model in a run folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that is ready to start or to go on."""

    run_dir: pathlib.Path
    inputs: Inputs
    identity: Json
    """Contents of its manifest."""
    command: Mapping[str, Any]
    resume: bool = False
    resume_step: int | None = None
    """The checkpoint to go on from; None: the newest."""
    overwrite: bool = False
    changes: tuple[resuming.Change, ...] = ()
    """Options with which it goes on that are not those it was started with."""
    seconds: float = 0.0
    """How long planning took."""
    stack_mode: StackMode = StackMode.ORDER
    """How it is computed beside others."""
    until: int | None = None
    """Updates after which it waits, for a decision of its sweep or for its next stage; None: it goes to its end."""
    decay: int | None = None
    """Of the updates before `until`, those in which the rate goes to zero, whatever the schedule; None: none."""
    remote: RemoteFolder | None = None
    """The bucket's run folder, of which `run_dir` is the working copy."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """Place and times of its checkpoints."""
        return self.inputs.config.checkpoint.kept_at(self.remote and self.remote.url)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.run_dir.name

    def write_folder(self) -> None:
        """A new run folder with everything that is known before step 0; a resumed one is opened again."""
        if not is_main():
            return
        how = {} if self.stack_mode is StackMode.ORDER else {"stack_mode": self.stack_mode.value}
        if self.resume:
            runfolder.reopen(self.run_dir)
            if how:
                runfolder.note(self.run_dir, how)
            hf.clear_remains(self.run_dir / MODEL)
            if self.remote is not None:
                self.remote.drop(MODEL)  # of an end that will be reached again
                self.remote.send()
            return
        if self.remote is not None:
            self.remote.clear()
        runfolder.prepare(self.run_dir, overwrite=self.overwrite)
        runfolder.write_facts(
            self.run_dir, config=to_json(self.inputs.config), identity={**self.identity, **how},
            mixture=mixture_json(self.inputs), samples=samples(self.inputs), command=dict(self.command),
        )  # fmt: skip
        if self.inputs.room is not None:
            write_room(self.run_dir, self.inputs.room)
        if self.command.get("config"):
            runfolder.keep_sources(self.run_dir, pathlib.Path(self.command["config"]))
        if self.remote is not None:
            self.remote.send()


@functools.cache
def _say_once(text: str) -> None:
    """Says something of a run's data, once for all runs of a sweep."""
    say(text, file=sys.stderr, flush=True)


def checked(
    run_dir: pathlib.Path, config: ExperimentConfig, identity: Json, *, resume_step: int | None, accept: bool
) -> list[resuming.Change]:
    """Options of a resumed run that are not those it was started with. Raises UserError where they may not change."""
    changes = resuming.differences(run_dir, identity)
    allowed = staging.accepted(changes)
    if config.duration.lengthened:
        done = lengthening.steps_done(config.checkpoint, run_dir, resume_step, config.duration.lengthened[-1])
        allowed = lengthening.accepted(run_dir, config, changes, done, accept=accept)
    return resuming.check(run_dir, identity, accept=accept, allowed=allowed)


def plan_run(
    config: ExperimentConfig, run_dir: pathlib.Path | RemoteFolder, *, command: Mapping[str, Any] | None = None,
    resume: bool = False, resume_step: int | None = None, overwrite: bool = False, accept_change: bool = False,
    inputs: Inputs | None = None,
) -> Planned:  # fmt: skip
    """Check and plan a run. Raises UserError for whatever in its input cannot be used.

    `run_dir` may be a run folder in a bucket, of which there is a working copy. Process 0 alone looks at it: the other
    hosts of a job need not have it. With `accept_change` a resumed run may go on with other options than it was started
    with (see `resuming`). `inputs` are those of the config, where they were resolved before.
    """
    with Phase("preparing"):
        return _plan_run(
            config, run_dir, command or {"config": None, "overrides": []}, resume=resume, resume_step=resume_step,
            overwrite=overwrite, accept_change=accept_change, inputs=inputs,
        )  # fmt: skip


def _plan_run(
    config: ExperimentConfig, place: pathlib.Path | RemoteFolder, command: Mapping[str, Any], *, resume: bool,
    resume_step: int | None, overwrite: bool, accept_change: bool, inputs: Inputs | None,
) -> Planned:  # fmt: skip
    started = time.monotonic()
    remote = place if isinstance(place, RemoteFolder) else None
    run_dir = place.folder if isinstance(place, RemoteFolder) else place
    named = contextlib.nullcontext if remote is None else remote.named
    with named():
        answer_of_main(lambda: runfolder.check(run_dir, resume=resume, overwrite=overwrite))
    check_packages(config.mirrors)
    all_devices()  # refuses a platform that is not here
    longer: list[Any] = []
    if resume and inputs is None:
        longer = answer_of_main(lambda: lengthening.lengthened(run_dir, config))
    config, command = lengthening.with_history(config, longer), lengthening.command_of(command, longer)
    if resume and inputs is None and config.mixture.staged:
        config = staging.with_shares(config, answer_of_main(lambda: staging.recorded_shares(run_dir, resume_step)))
    command = staging.command_of(command, config)
    inputs = inputs or resolve(config)
    if resume:
        room = answer_of_main(lambda: (found := read_room(run_dir)) and found.to_json())
        inputs = dataclasses.replace(inputs, room=room and Room.from_json(room))
    if inputs.unwatched and is_main():
        _say_once(f"no split named 'validation': nothing is measured of {', '.join(inputs.unwatched)} while training")
    if inputs.unasked and is_main():
        _say_once(f"test records of {', '.join(inputs.unasked)} are token ids, without a text: none of them is asked")
    identity = identify(inputs)
    changes: list[resuming.Change] = []
    if resume:
        as_json = lambda: [
            dataclasses.asdict(change)
            for change in checked(run_dir, config, identity, resume_step=resume_step, accept=accept_change)
        ]
        with named():
            changes = [resuming.Change(**change) for change in answer_of_main(as_json)]
    else:
        kept = config.checkpoint.kept_at(remote and remote.url)
        own = overwrite and kept is not config.checkpoint  # they lie in the run folder that is replaced
        if not own and answer_of_main(kept.in_use):
            raise UserError(f"{kept.directory} holds checkpoints of another run; set checkpoint.directory")
    return Planned(
        run_dir=run_dir, inputs=inputs, identity=identity, command=command,
        resume=resume, resume_step=resume_step, overwrite=overwrite, changes=tuple(changes), remote=remote,
        seconds=time.monotonic() - started, until=staging.pause_after(inputs.config, inputs.plan),
    )  # fmt: skip
