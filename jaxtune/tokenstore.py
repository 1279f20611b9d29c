"""Tokenised examples on disk: written in parts that survive a kill, read through memory maps, checked by digest.

A finished store is a folder: `tokens`, `weights` (all examples end to end), `ends` (where each ends), `lengths`,
`loss_lengths`, `response_lengths` (by example and template), `records` (the source's record number of each example) and
`meta.json`, which is written last and holds the facts that the content is a function of, the counts and the digests.
"""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxtune.errors import UserError
from jaxtune.packing import Example

FORMAT = "jaxtune tokens 1"
_DTYPES = {
    "tokens": np.dtype("<i4"),
    "weights": np.dtype("<f4"),
    "ends": np.dtype("<i8"),
    "lengths": np.dtype("<i4"),
    "loss_lengths": np.dtype("<i4"),
    "response_lengths": np.dtype("<i4"),
    "records": np.dtype("<i8"),
}


class DamagedStore(Exception):
    """A store that cannot be trusted: incomplete, altered, or made from something else. It can be made again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The examples of consecutive records, in every wording: what one job writes."""

    tokens: Int[np.ndarray, " tokens"]
    weights: Float[np.ndarray, " tokens"]
    lengths: Int[np.ndarray, "examples templates"]
    loss_lengths: Int[np.ndarray, "examples templates"]
    response_lengths: Int[np.ndarray, "examples templates"]
    records: Int[np.ndarray, " examples"]
    outcomes: Mapping[str, int]
    """What happened to the records, by reason: how many."""

    def write(self, path: Path) -> None:
        """All of it or nothing: a half-written file never bears the name."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in _DTYPES}
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with open(aside, "wb") as file:
            np.savez(file, outcomes=np.frombuffer(json.dumps(self.outcomes).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)

    @staticmethod
    def read(path: Path) -> "Part":
        """Raises DamagedStore where the file is not what was written (zip members carry a checksum)."""
        try:
            with open(path, "rb") as file, np.load(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DamagedStore(f"{path}: {error}") from error
        return Part(outcomes=json.loads(arrays.pop("outcomes").tobytes()), **arrays)


class TaskTokens:
    """The tokenised examples of one split of one task. Pickles as its folder's name."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        shape = (self.meta["examples"], self.meta["templates"])
        maps = {name: _mapped(self.folder / name, dtype) for name, dtype in _DTYPES.items()}
        self.lengths: Int[np.ndarray, "examples templates"] = _shaped(maps["lengths"], shape)
        self.loss_lengths: Int[np.ndarray, "examples templates"] = _shaped(maps["loss_lengths"], shape)
        self.response_lengths: Int[np.ndarray, "examples templates"] = _shaped(maps["response_lengths"], shape)
        self.records: Int[np.ndarray, " examples"] = np.asarray(maps["records"])
        self._tokens, self._weights, self._ends = (np.asarray(maps[name]) for name in ("tokens", "weights", "ends"))
        self._stamps = self._file_stamps()

    def __len__(self) -> int:
        return self.meta["examples"]

    @property
    def task(self) -> str:
        return self.meta["task"]

    @property
    def split(self) -> str:
        return self.meta["split"]

    @property
    def num_templates(self) -> int:
        return self.meta["templates"]

    @property
    def outcomes(self) -> dict[str, int]:
        """What became of the split's records, by reason: kept, truncated or dropped, and how many."""
        return self.meta["outcomes"]

    @property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return hashlib.sha256(json.dumps(self.meta["sha256"], sort_keys=True).encode()).hexdigest()

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        k = number * self.num_templates + template
        start, stop = (int(self._ends[k - 1]) if k else 0), int(self._ends[k])
        return Example(tokens=self._tokens[start:stop], loss_weights=self._weights[start:stop])

    def record(self, number: int) -> int:
        """Number of the example's record in the split's source."""
        return int(self.records[number])

    def verify(self, facts: Mapping[str, Any] | None = None) -> None:
        """Read every byte and compare digests; raises DamagedStore, also for content made from other facts."""
        if facts is not None and self.meta["facts"] != dict(facts):
            raise DamagedStore(f"{self.folder}: made from other facts")
        for name, digest in self.meta["sha256"].items():
            with open(self.folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise DamagedStore(f"{self.folder / name}: the content is not what was written")

    def check_unchanged(self) -> None:
        """Raises UserError when a file changed since it was opened."""
        if self._file_stamps() != self._stamps:
            raise UserError(f"{self.folder} changed while it was in use; start the run again")

    def _file_stamps(self) -> list[tuple[int, int]]:
        stats = [os.stat(self.folder / name) for name in _DTYPES]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return TaskTokens, (self.folder,)


def open_store(folder: Path, facts: Mapping[str, Any]) -> TaskTokens:
    """A finished store, verified. Raises DamagedStore for one that must be made again.

    Raises UserError for a folder that is no store at all: it is not ours to replace.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        ours = isinstance(meta, dict) and meta.get("format") == FORMAT
    except (OSError, ValueError):
        ours = {*os.listdir(folder)} <= {"meta.json", *_DTYPES}
        if ours:
            raise DamagedStore(f"{folder}: meta.json cannot be read") from None
    if not ours:
        raise UserError(f"{folder} is not a token cache of jaxtune; move it away, or choose another cache folder")
    try:
        store = TaskTokens(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedStore(f"{folder}: {error}") from error
    store.verify(facts)
    return store


def merge(parts: Iterator[Part], folder: Path, *, task: str, split: str, facts: Mapping[str, Any]) -> None:
    """Join parts, in order, into a finished store; `folder` appears whole or not at all."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    files = {name: open(aside / name, "wb") for name in _DTYPES}  # noqa: SIM115 - closed below, together
    digests = {name: hashlib.sha256() for name in _DTYPES}
    outcomes: collections.Counter[str] = collections.Counter()
    templates, examples, end = 1, 0, 0

    def put(name: str, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, _DTYPES[name]).tobytes()
        files[name].write(data)
        digests[name].update(data)

    try:
        for part in parts:
            for name in _DTYPES:
                if name != "ends":
                    put(name, getattr(part, name))
            ends = end + np.cumsum(part.lengths.reshape(-1), dtype=np.int64)
            put("ends", ends)
            end = int(ends[-1]) if ends.size else end
            templates, examples = part.lengths.shape[1], examples + len(part.records)
            outcomes.update(part.outcomes)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    meta = {
        "format": FORMAT,
        "task": task,
        "split": split,
        "examples": examples,
        "templates": templates,
        "tokens": end,
        "outcomes": dict(outcomes),
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
        "facts": dict(facts),
    }
    with open(aside / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file's content; an empty file cannot be mapped, and has none."""
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.zeros(0, dtype)


def _shaped(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The memory map with its shape, still a map of the whole file (so that it pickles by name)."""
    if not isinstance(array, np.memmap):
        return array.reshape(shape)
    return np.memmap(str(array.filename), array.dtype, "r", shape=shape)
