"""The record of a sweep folder, `sweep.json`: its config and the list of its runs, which only grows."""

import contextlib
import dataclasses
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.runs import folder as runfolder
from jaxtune.runs.remote import RemoteFolder, folder_of
from jaxtune.runs.sweeps import RECORD, read_record, record_entries
from jaxtune.step.room import Room
from jaxtune.storage import locks
from jaxtune.storage.documents import dotted, plain, write_json
from jaxtune.storage.fingerprints import text_fingerprint
from jaxtune.storage.lease import Lease
from jaxtune.sweep.language import Setting
from jaxtune.train.resuming import WORK

LONGEST_NAME = 100
"""Characters of a run's folder; file systems stop at 255."""
LOCK_SECONDS = 60.0
"""How long to wait for other processes that write the sweep's folder."""
REMOTE_LOCK_SECONDS = 600.0
"""The same in a bucket: of many hosts that begin at once, each asks the store a few times while it has its turn."""
Place = pathlib.Path | RemoteFolder
"""A sweep's folder on this disk, or in a bucket."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and one seed."""

    setting: Setting
    seed: int
    confirms: bool = False
    """Made after a setting was chosen, on a seed that chose nothing."""

    @property
    def name(self) -> str:
        """Folder name: the setting and the seed; shortened where it is long, with a fingerprint to stay unique."""
        words = re.sub(r"[^\w.=+,-]", "+", self.setting.name)
        if len(words) > LONGEST_NAME or words != self.setting.name:
            words = f"{words[:LONGEST_NAME]}~{text_fingerprint(repr(sorted(self.setting.overrides.items())))[:8]}"
        return f"{words}_seed={self.seed}"

    def arguments(self) -> list[str]:
        """Options of the command line that set these values."""
        return [*self.setting.arguments(), "--seed", str(self.seed)]

    def entry(self) -> dict[str, Any]:
        """Entry of `sweep.json`."""
        row: dict[str, Any] = {"name": self.name, "overrides": dict(self.setting.overrides), "seed": self.seed}
        row |= {"tag": self.setting.tag} if self.setting.tag else {}
        return row | {"dir": f"runs/{self.name}"} | ({"confirms": True} if self.confirms else {})

    @classmethod
    def of_entry(cls, row: Mapping[str, Any]) -> "Trial":
        """The trial of an entry."""
        setting = Setting(overrides=dict(row["overrides"]), tag=row.get("tag", ""))
        return cls(setting=setting, seed=row["seed"], confirms=row.get("confirms", False))


def trials_of(settings: Sequence[Setting], seeds: Sequence[int]) -> list[Trial]:
    """Every setting with every seed, seeds innermost; one setting given twice is one."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds lists a seed twice: {list(seeds)}")
    every = [Trial(setting=setting, seed=seed) for setting in settings for seed in seeds]
    return list({trial.name: trial for trial in every}.values())


def grow(place: Place, config: Mapping[str, Any], trials: Sequence[Trial], *, overwrite: bool) -> None:
    """Create the folder or add runs to it; an existing one must hold the same config. Nothing listed is ever dropped.

    `UserError` if the folder holds something else, another config, or one of the seeds of a confirmation.
    """
    sweep_dir = folder_of(place)
    path = sweep_dir / RECORD
    with written_alone(place):
        if overwrite and path.is_file():
            refuse_running(place)
            if isinstance(place, RemoteFolder):
                place.clear()
            runfolder.clear(sweep_dir)
        if runfolder.entries(sweep_dir) and not path.is_file():
            raise UserError(f"{sweep_dir} holds files but no sweep; choose another folder")
        entries = {}
        if path.is_file():
            check_config(sweep_dir, config)
            entries = {entry["name"]: entry for entry in record_entries(sweep_dir)}
        check_seeds(sweep_dir, entries, trials)
        added = {trial.name: trial.entry() for trial in trials if trial.name not in entries}
        known = read_rooms(sweep_dir)
        rooms = {"rooms": {key: room.to_json() for key, room in known.items()}} if known else {}
        write_json(path, {"config": config, "runs": [*entries.values(), *added.values()], **rooms})


def read_rooms(sweep_dir: pathlib.Path) -> dict[str, Room]:
    """The rooms that runs of the sweep share, by the fingerprints of their shapes."""
    rooms = read_record(sweep_dir).get("rooms", {}) if (sweep_dir / RECORD).is_file() else {}
    return {key: Room.from_json(room) for key, room in rooms.items()}


def share_rooms(place: Place, needed: Mapping[str, Room]) -> dict[str, Room]:
    """Make the sweep's rooms large enough for what is `needed`, by shape; returns them.

    They are recorded, so that runs started later have the room, and so the bits, of those that were started at once.
    """
    sweep_dir = folder_of(place)
    with written_alone(place):
        known = read_rooms(sweep_dir)
        rooms = known | {key: room.joined(known.get(key, room)) for key, room in needed.items()}
        if rooms != known:
            plain_rooms = {key: room.to_json() for key, room in rooms.items()}
            write_json(sweep_dir / RECORD, read_record(sweep_dir) | {"rooms": plain_rooms})
    return rooms


@contextlib.contextmanager
def written_alone(place: Place) -> Iterator[None]:
    """Be the sweep folder's only writer for a moment; processes that share the folder take turns.

    Of a job, process 0 alone calls it, and whatever calls it.

    Of a folder in a bucket, the working copy is brought at the start and what was changed in it is sent at the end.
    """
    remote = place if isinstance(place, RemoteFolder) else None
    until = time.monotonic() + (LOCK_SECONDS if remote is None else REMOTE_LOCK_SECONDS)
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(runfolder.writing(folder_of(place), remote))
                break
            except locks.FolderInUse:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05 if remote is None else 1.0)
        if remote is not None:
            held.enter_context(remote.named())
        yield


def refuse_running(place: Place) -> None:
    """Refuse to remove runs that another process is training."""
    if isinstance(place, RemoteFolder):
        held = [name.split("/") for name in place.store.names() if name.endswith(f"/{locks.NAME}")]
        for run in (parts[1] for parts in held if len(parts) == 3 and parts[0] == "runs"):
            with Lease(place.run(run).store):
                pass
        return
    for folder in (place / "runs").glob("*/"):
        with runfolder.writing(folder):
            pass


def check_config(sweep_dir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """The folder's config must be this one; options that are younger than the folder may be at their defaults.

    How a machine does its work may differ, as it may from host to host.
    """
    then, now = dotted(read_record(sweep_dir).get("config")), dotted(plain(config))
    defaults = dotted(configs.to_json(_defaults()))
    aside = {*WORK, *(name for name in now.keys() - then.keys() if name in defaults and now[name] == defaults[name])}
    named = [name for name in (*then, *now) if name not in aside and then.get(name) != now.get(name)]
    if named:
        lines = [f"\n  - {name}: was {then.get(name)!r}, is {now.get(name)!r}"[:200] for name in dict.fromkeys(named)]
        more = f"\n  - and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise UserError(
            f"{sweep_dir} holds a sweep of another config; continue it with that one, "
            f"choose another folder, or replace it with --overwrite. What differs:{''.join(lines[:10])}{more}"
        )


def _defaults() -> dict[str, Any]:
    """Values that parts of a config have without being set; those of adapters as if they were used."""
    fields = [field for field in dataclasses.fields(configs.ExperimentConfig) if field.name != "compiler_options"]
    held = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return {**held, "compiler_options": {}, "lora": configs.LoraConfig()}


def check_seeds(sweep_dir: pathlib.Path, entries: Mapping[str, Mapping[str, Any]], trials: Sequence[Trial]) -> None:
    """A seed that confirmed a choice cannot choose any more."""
    spent = {entry["seed"] for entry in entries.values() if entry.get("confirms")}
    again = sorted({trial.seed for trial in trials if trial.seed in spent and not trial.confirms})
    if again:
        raise UserError(
            f"seeds {again} of {sweep_dir} have confirmed a setting, so they cannot be used to choose one; "
            "take other --seeds"
        )
