"""Agreement of a job's processes: before its first step all compare what they are about to train, and how."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt32

from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.storage.documents import Json, dotted

OWN = frozenset(
    {
        *("data.workers", "data.prefetch", "data.processes", "data.cache_dir", "compilation_cache"),
        *("model.path", "model.tokenizer", "model.template", "lora.start"),
    }
)
"""Options that each process may have its own way: folders, whose content is compared, and how its work is done."""
FIRST = ("code", "library versions")
"""Compared before everything else: other code may have another list of things to compare."""
PARTS = ("data", "tokenizer", "template", "base_model", "plan", "seeds", "batches")
"""Parts of a run's identity."""


def check_processes(identity: Json, start: Mapping[str, Any]) -> None:
    """Compare this run's identity, options and `start` (how it begins: resumed, from which step) with all processes.

    Every process raises the same UserError, naming process and thing, where one differs from process 0. Does nothing in
    a process alone. All processes must call it.
    """
    if jax.process_count() == 1:
        return
    first: dict[str, Any] = dict(
        zip(FIRST, (identity["code"]["sha256"], identity["environment"]["packages"]), strict=True)
    )
    for things in (first, compared(identity, start)):
        compare_processes(things)


def compare_processes(things: Mapping[str, Any]) -> None:
    """Compare things (plain JSON by name; the same names everywhere) with those of process 0.

    Raises the same UserError on every process where one differs; in a process alone nothing can.
    """
    if jax.process_count() == 1:
        return
    gathered = np.asarray(multihost_utils.process_allgather(digests(things)))
    if found := disagreements(gathered, list(things)):
        raise UserError(in_words(found, things))


def compared(identity: Json, start: Mapping[str, Any]) -> dict[str, Any]:
    """By name, everything in which the processes must be the same; the names depend on the code alone."""
    tasks = [{key: value for key, value in task.items() if key != "splits"} for task in identity["config"]["tasks"]]
    options = dotted({**identity["config"], "tasks": tasks})
    known = [name for name in sorted(configs.leaves()) if name not in OWN]
    within = lambda name: {key: value for key, value in options.items() if key == name or key.startswith(f"{name}.")}
    return {
        **{part.replace("_", " "): identity.get(part) for part in PARTS},
        **{f"--{name.replace('_', '-')}": within(name) for name in known},
        **start,
    }


def digests(things: Mapping[str, Any]) -> UInt32[np.ndarray, "things 2"]:
    """64 bits of the SHA-256 of each thing's JSON."""
    texts = [json.dumps(value, sort_keys=True, default=str) for value in things.values()]
    data = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(data, "<u4").reshape(-1, 2).astype(np.uint32)


def disagreements(gathered: UInt32[np.ndarray, "processes things 2"], names: Sequence[str]) -> list[tuple[int, str]]:
    """(process, name) of everything in which a process differs from process 0."""
    differs = (gathered != gathered[:1]).any(axis=-1)
    return [(int(process), names[int(thing)]) for process, thing in np.argwhere(differs).tolist()]


def in_words(found: Sequence[tuple[int, str]], things: Mapping[str, Any]) -> str:
    """One line for all processes, the first differences with their value on this one."""
    process = jax.process_index()
    shown = []
    for other, name in found[:6]:
        value = json.dumps(things[name], default=str)
        here = f" (here, on process {process}: {value})" if name.startswith("--") and len(value) < 80 else ""
        shown.append(f"process {other} differs from process 0 in {name}{here}")
    more = f"; and {len(found) - 6} more differences" if len(found) > 6 else ""
    return (
        f"the processes of this job do not agree, so none of them trains: {'; '.join(shown)}{more}. "
        "Give every process the same command, config, data and version"
    )
