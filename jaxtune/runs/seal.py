"""The seal of a run folder: at the end of a run, size and SHA-256 of every file in it, and where its metrics stood.

A run that goes on loses its seal and gets another at its next end. Until then its checkpoints bind what was logged:
each one's document holds the number of rows of `metrics.jsonl` at that moment and their SHA-256.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxtune.errors import UserError
from jaxtune.runs import documents
from jaxtune.runs.history import METRICS, Run, read_run
from jaxtune.runs.retention import COMMITTED
from jaxtune.storage import locks
from jaxtune.storage.documents import Json, read_sealed, write_sealed
from jaxtune.storage.fingerprints import file_digests, files_below
from jaxtune.storage.schemas import check_shape

SEAL = "seal.json"
MODEL, CHECKPOINTS = "model", "checkpoints"
READ = ("config.json", "mixture.json", "generations.json", "summary.json", METRICS)
"""Files that the numbers of a run are read from."""
MIRRORED = ("tensorboard", "wandb", "mlflow", "mlflow.db", "mlflow.db-journal")
"""What other tools keep in a run folder and change after its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogState:
    """State of a run's metrics at a moment: number of rows and their running hash."""

    rows: int
    sha256: str
    """Of the bytes of these rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences of a run folder from its seal."""

    problems: tuple[str, ...] = ()
    """Files that are missing or have other content, and strangers beside the weights of the model."""
    added: tuple[str, ...] = ()
    """Other files that came after the end of the run; nothing of the run reads them."""


def write_seal(run_dir: pathlib.Path) -> None:
    """Bind every file of a run that has ended."""
    folder = epath.Path(run_dir)
    names = _bound(folder)
    write_sealed(run_dir / SEAL, {"format": 1, "files": _entries(folder, names)})


def break_seal(run_dir: pathlib.Path) -> None:
    """Remove the seal: the run goes on."""
    (run_dir / SEAL).unlink(missing_ok=True)


def has_ended(run_dir: pathlib.Path) -> bool:
    """Whether a run has come to its end, and its files should therefore be bound."""
    return (run_dir / SEAL).exists() or (run_dir / "summary.json").exists()


def rebind(run_dir: pathlib.Path, name: str) -> None:
    """Bind a file again that was made anew from the others, as the report; does nothing for a run without a seal.

    Raises UserError where the seal itself was damaged.
    """
    if (run_dir / SEAL).exists():
        sealed = read_sealed(run_dir / SEAL)
        files = {**_files(run_dir, sealed), **_entries(epath.Path(run_dir), [name])}
        write_sealed(run_dir / SEAL, {**sealed, "files": files})


def differences(
    run_dir: pathlib.Path, *, below: str = "", leave_out: Sequence[str] = (), skip: tuple[str, ...] = ()
) -> Differences:
    """Compare the files of a sealed run with the seal: those whose names begin with `below`, and with none of `skip`.

    Raises UserError where there is no seal, or one that was damaged.
    """
    folder = epath.Path(run_dir)
    recorded = _files(run_dir, read_sealed(run_dir / SEAL))
    compared = lambda name: name.startswith(below) and not name.startswith(skip) and name not in leave_out
    wanted, found = set(filter(compared, recorded)), set(filter(compared, _bound(folder)))
    lines = [f"{name}: missing" for name in sorted(wanted - found)]
    both = sorted(wanted & found)
    for name, (size, digest) in zip(both, file_digests(folder, both), strict=True):
        if size != recorded[name]["bytes"]:
            lines.append(f"{name}: {size} bytes, {recorded[name]['bytes']} were written")
        elif digest != recorded[name]["sha256"]:
            lines.append(f"{name}: content changed after the run wrote it")
    strangers = sorted(found - wanted)
    lines += [f"{name}: not part of the exported model" for name in strangers if name.startswith(f"{MODEL}/")]
    return Differences(
        problems=tuple(lines), added=tuple(name for name in strangers if not name.startswith(f"{MODEL}/"))
    )


def check_model(model: pathlib.Path) -> None:
    """Refuse the exported model of a run that has ended where its files are not, or may not be, those the run wrote.

    Does nothing for a folder that is no such run's: nothing says what it should hold.
    """
    run_dir = model.parent
    if model.name != MODEL or not has_ended(run_dir):
        return
    if not (run_dir / SEAL).exists():
        raise UserError(
            f"{run_dir} has lost its {SEAL}, so that nothing tells whether {MODEL}/ is what the run wrote. Put back a "
            "whole copy of the folder, or export the model again from a checkpoint with jaxtune export-hf."
        )
    found = differences(run_dir, below=f"{MODEL}/").problems
    if found:
        listed = "".join(f"\n  - {line}" for line in found[:10])
        raise UserError(
            f"the exported model of {run_dir} is not the one that the run wrote:{listed}\n"
            "Export it again from a checkpoint with jaxtune export-hf, or put back a copy of the folder."
        )


def check_unchanged(run_dir: pathlib.Path, names: Sequence[str]) -> None:
    """Refuse files of a sealed run that are not as they were at its end; does nothing for a run without a seal."""
    if not (run_dir / SEAL).exists():
        return
    recorded = _files(run_dir, read_sealed(run_dir / SEAL))
    bound = [name for name in names if name in recorded]
    present = [name for name in bound if (run_dir / name).is_file()]
    digests = dict(zip(present, file_digests(epath.Path(run_dir), present), strict=True))
    changed = [name for name in bound if digests.get(name, (0, ""))[1] != recorded[name]["sha256"]]
    if changed:
        raise UserError(
            f"{run_dir} is not as it was at the end of its run: {', '.join(changed)} changed. Put back a copy of it, "
            "or train it again"
        )


def read_unchanged(run_dir: pathlib.Path | str) -> Run:
    """A run whose numbers are set beside those of others. Raises UserError where it is sealed, and what is read of it
    is not as it was at its end."""
    check_unchanged(pathlib.Path(run_dir), READ)
    return read_run(run_dir)


def check_log(run_dir: pathlib.Path, state: Mapping[str, Any]) -> str | None:
    """Difference of `metrics.jsonl` from the rows that a checkpoint bound; None where there is none."""
    sha, rows = hashlib.sha256(), 0
    with (run_dir / METRICS).open("rb") as file:
        while rows < state["rows"] and (line := file.readline()).endswith(b"\n"):
            sha.update(line)
            rows += 1
    if rows < state["rows"]:
        return f"{METRICS} ends after {rows} rows, it had {state['rows']}"
    return None if sha.hexdigest() == state["sha256"] else f"the first {rows} rows of {METRICS} are not as they were"


def _bound(folder: epath.Path) -> list[str]:
    """Names of the files that a seal binds; of checkpoints those that their own documents do not."""

    def binds(name: str) -> bool:
        top, _, _ = name.partition("/")
        hidden = any(part.startswith(".") for part in name.split("/"))  # files in the making, a writer's lock
        if hidden or top in MIRRORED or top.endswith("_run_id"):
            return False
        return top != CHECKPOINTS or name.rpartition("/")[2] in COMMITTED

    return [name for name in files_below(folder, (SEAL, locks.NAME)) if binds(name)]


def _entries(folder: epath.Path, names: Sequence[str]) -> Json:
    digests = zip(names, file_digests(folder, names), strict=True)
    return {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digests}


def _files(run_dir: pathlib.Path, sealed: Json) -> dict[str, Json]:
    check_shape(sealed, documents.SealFile, run_dir / SEAL)
    return sealed["files"]
