"""A run folder's life: refused, prepared, filled with facts, resumed."""

import contextlib
import datetime
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.errors import UserError
from jaxtune.parallel.job import answer_of_main, is_main
from jaxtune.runs import documents, manifest, seal
from jaxtune.runs.history import read_rows
from jaxtune.runs.remote import RemoteFolder
from jaxtune.storage import locks, userfiles
from jaxtune.storage.documents import clear_remains, made_folder, read_object, write_json, write_sealed

MARK = "config.json"
"""The file that makes a folder a run folder; the first one written."""


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, remote: RemoteFolder | None = None) -> Iterator[None]:
    """Be the only job that writes a run's or a sweep's folder; process 0 holds the lock, all learn whether it could.

    With `remote` the folder is its working copy, which the store fills at the start and is filled from at the end.
    Raises FolderInUse on every process, before anything is touched, where another job writes there.
    """
    with contextlib.ExitStack() as held:
        answer_of_main(lambda: held.enter_context(writing(folder, remote)), kinds=(locks.FolderInUse,))
        yield
        answer_of_main(held.close)  # what could not be sent at the end is every process's error


@contextlib.contextmanager
def writing(folder: pathlib.Path, remote: RemoteFolder | None = None) -> Iterator[None]:
    """Be the only process that writes a run's or a sweep's folder: `only_writer` for a process that asks nobody."""
    if not folder.is_absolute() and folder.parts and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", folder.parts[0]):
        raise UserError(f"{folder} comes of a URL; run folders are local, and checkpoint.directory may be a URL")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is needed here, for example runs/first")
    with locks.only_writer(folder) if remote is None else remote.writing():
        yield


_PROBE = ".probe-"
PROBE_SECONDS = 5.0
"""How long a file that another host has just written may take to be seen through a network disk."""


def refuse_private_disks(folder: pathlib.Path) -> None:
    """Refuse a local folder for checkpoints that not all processes of the job see. In a process alone, only make it.

    Process 0 writes a file with a name of chance and the others look for it, so a folder of the same name on another
    disk is told from the same folder. Raises UserError on every process. All processes must call it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    answer_of_main(lambda: str(made_folder(folder)))
    if jax.process_count() == 1:
        return
    probe = folder / answer_of_main(lambda: _place_probe(folder))
    deadline = time.monotonic() + PROBE_SECONDS
    while not (seen := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    sights = np.asarray(multihost_utils.process_allgather(np.array([seen], np.int32))).reshape(-1)
    if is_main():
        probe.unlink()
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for path in missing:
                path.rmdir()
    blind = np.flatnonzero(sights == 0).tolist()
    if blind:
        raise UserError(
            f"process {', '.join(map(str, blind[:8]))}{' and more' if len(blind) > 8 else ''} of this job cannot see "
            f"the folder {folder} of process 0, into which all processes write checkpoints; give a bucket "
            "(--run-dir gs://bucket/runs/name, --sweep-dir gs://bucket/sweeps/name) or a folder on a disk that all "
            "hosts mount"
        )


def _place_probe(folder: pathlib.Path) -> str:
    name = f"{_PROBE}{secrets.token_hex(8)}"
    (folder / name).touch()
    return name


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of the folder besides the lock of the process that asks."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name != locks.NAME and not path.name.startswith(_PROBE)]


def clear(folder: pathlib.Path) -> None:
    """Remove what lies in the folder, but not the lock of who is asking."""
    for path in entries(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check(run_dir: pathlib.Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over anything unasked, and to resume what is not a run."""
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite deletes it; give one of them")
    holds = bool(entries(run_dir))
    is_run = (run_dir / MARK).is_file()
    if resume and not is_run:
        raise UserError(
            f"nothing to resume: {run_dir} {'holds no run' if holds else 'is empty or missing'}; leave --resume away"
        )
    if holds and not resume and not overwrite and not unstarted(run_dir):
        raise UserError(
            f"{run_dir} is not empty; continue its run with --resume, replace it with --overwrite, or choose another"
        )
    if holds and overwrite and not is_run:
        raise UserError(
            f"{run_dir} holds files but no run (no {MARK}); --overwrite deletes only run folders. Choose another folder"
        )


def unstarted(run_dir: pathlib.Path) -> bool:
    """Whether a run folder holds the facts of a run that ended before it measured or saved anything."""
    metrics, checkpoints = run_dir / "metrics.jsonl", run_dir / seal.CHECKPOINTS
    logged = metrics.is_file() and metrics.stat().st_size > 0
    saved = checkpoints.is_dir() and any(checkpoints.iterdir())
    return (run_dir / MARK).is_file() and not logged and not saved


def prepare(run_dir: pathlib.Path, *, overwrite: bool) -> None:
    """Create the folder, empty. Only called when everything else is known to be good."""
    if overwrite or unstarted(run_dir):
        clear(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)


def reopen(run_dir: pathlib.Path) -> None:
    """Remove seal and summary, which say how a run ended: it is going on."""
    clear_remains(run_dir)
    seal.break_seal(run_dir)
    (run_dir / "summary.json").unlink(missing_ok=True)


def note(run_dir: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Add facts of a run that goes on to its manifest."""
    write_sealed(run_dir / "manifest.json", {**documents.read_manifest(run_dir), **facts})


def write_facts(
    run_dir: pathlib.Path, *, config: Any, identity: Mapping[str, Any], mixture: Any, samples: Any,
    command: Mapping[str, Any],
) -> None:  # fmt: skip
    """Config, environment, manifest, mixture, samples and the command: what is known before step 0."""
    write_json(run_dir / MARK, config)
    write_json(run_dir / "command.json", command)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(run_dir / "environment.json", {"started": started, **manifest.environment()})
    write_sealed(run_dir / "manifest.json", identity)
    write_json(run_dir / "mixture.json", mixture)
    write_json(run_dir / "samples.json", samples)


WATCHED = ("data", "tokenizer", "template", "plan", "seeds", "base_model")
"""Parts of the manifest that must be the same for a run to continue."""


def check_same(run_dir: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose data, tokenizer, template, plan, seed or base model changed; says what did.

    A plan that begins with the recorded one is that of a run with more steps, and no refusal.
    """
    recorded = documents.read_manifest(run_dir)
    longer = recorded["plan"]["hash"] in identity["plan"].get("earlier", {})
    watched = [name for name in WATCHED if name != "plan" or not longer]
    keep = lambda whole: {key: whole.get(key) for key in watched}
    differences = manifest.compare_manifests(keep(recorded), keep(identity))
    if differences:
        config = manifest.compare_manifests({"config": recorded["config"]}, {"config": identity["config"]})
        listed = "".join(f"\n  - {line}" for line in [*differences, *config][:20])
        raise UserError(
            f"{run_dir} cannot be resumed, because what it trains on is not the same:{listed}\n"
            "Resume with the config, data and base model it started from, or start another run folder."
        )


def first_numbers(run_dir: pathlib.Path) -> dict[str, Any]:
    """Validation loss and scores of step 0, from the metrics."""
    numbers: dict[str, Any] = {}
    for row in read_rows(run_dir / "metrics.jsonl"):
        if row["step"] != 0:
            break
        if row["kind"] in ("eval", "score"):
            losses = ("loss", "macro_loss", "task_loss", "task_prompt_loss", "seen_task_loss")
            wanted = (*losses, "task_score", "task_interval", "macro_exact_match", "lm_eval")
            numbers |= {key: row[key] for key in wanted if key in row}
        if row["kind"] == "retention":
            numbers["retention"] = row["texts"]
    return numbers


def read_command(run_dir: pathlib.Path) -> tuple[str, list[str]]:
    """Config file and overrides that the run was started with."""
    path = run_dir / "command.json"
    if not path.is_file():
        raise UserError(f"{run_dir} has no command.json: not a run folder that `jaxtune train` wrote")
    seal.check_unchanged(run_dir, ["command.json"])
    command = read_object(path)
    if not command.get("config"):
        raise UserError(f"{run_dir} was started from Python, not from a config file; name the config with --config")
    config, overrides = command["config"], command.get("overrides")
    if not isinstance(config, str) or not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        raise UserError(
            f"{path}: `config` is a file name and `overrides` a list of options; put back a whole copy of it"
        )
    return config, overrides


def keep_sources(run_dir: pathlib.Path, config: pathlib.Path) -> None:
    """Copy the config file, and the modules of its folder that it imported, into `sources/`, for people to read."""
    if not config.is_file():
        return
    for file in userfiles.sources(config):
        copy = run_dir / "sources" / file.relative_to(config.resolve().parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def read_working_folder(run_dir: pathlib.Path) -> pathlib.Path | None:
    """The working folder of the command that started the run; None where the record does not say."""
    folder = read_object(run_dir / "command.json").get("folder")
    return pathlib.Path(folder) if isinstance(folder, str) else None


def look_where_started(run_dir: pathlib.Path) -> None:
    """From now on, look up relative paths where the run was started as well: beside its config, and where one stood."""
    command = read_object(run_dir / "command.json") if (run_dir / "command.json").is_file() else {}
    places = [pathlib.Path(command[key]) for key in ("config", "folder") if isinstance(command.get(key), str)]
    userfiles.started_in(*(place.parent if place.suffix == ".py" else place for place in places))


def resolve_model_folder(path: pathlib.Path) -> pathlib.Path:
    """A Hugging Face folder: the path itself, or the exported model of a run folder."""
    if not os.path.isdir(path):
        kind = (
            "a file, not a folder" if os.path.exists(path) else f"no such folder{userfiles.looked_for(path.absolute())}"
        )
        raise UserError(f"{path}: {kind}. Give a run folder, or the folder of a Hugging Face checkpoint.")
    if (path / MARK).is_file() and (path / seal.MODEL / "config.json").is_file():
        path = path / seal.MODEL
    # by its name, where a link may stand in the place of a run's model, and by what a link to such a model leads to
    for named in {pathlib.Path(os.path.abspath(path)), path.resolve()}:
        seal.check_model(named)
    if (path / "metrics.jsonl").is_file():
        raise UserError(
            f"{path} is a run without an exported model (it did not finish); export one with jaxtune export-hf"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is neither a run folder nor a Hugging Face model folder (no config.json)")
    return path
