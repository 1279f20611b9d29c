"""Tokenised examples on disk: written in parts that survive a kill, read through one memory map, checked by digest.

A finished store is a folder with two files. `data` holds the arrays of `_SECTIONS` one after the other. `meta.json` is
written last and holds the facts that the content is a function of, the counts, and the digest of `data`.
"""

import collections
import dataclasses
import hashlib
import os
import resource
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxtune.batch import Example
from jaxtune.errors import UserError
from jaxtune.storage.documents import (
    UnreadableDocument,
    json_line,
    naming,
    parse_json,
    read_object,
    read_sealed,
    replacing,
    write_sealed,
)
from jaxtune.storage.notes import noted_fingerprint

FORMAT = "jaxtune tokens 2"
_SECTIONS = {
    "ends": np.dtype("<i8"),
    "records": np.dtype("<i8"),
    "lengths": np.dtype("<i4"),
    "loss_lengths": np.dtype("<i4"),
    "response_lengths": np.dtype("<i4"),
    "tokens": np.dtype("<i4"),
    "weights": np.dtype("<f4"),
}
"""Widest numbers first, so that all are aligned. `ends` is where each example ends among `tokens`; `records` is the
source's number of each example's record; the lengths are by example and template."""
_SPARE_FILES = 256
"""Open files left to the rest of the process."""


class DamagedStore(Exception):
    """A store that cannot be trusted: incomplete, altered, or made from something else. It can be made again."""


_BROKEN_ZIP = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of reading a damaged archive; a flipped bit of a header may also ask for a password or an unknown method."""


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
        arrays = {name: getattr(self, name) for name in _SECTIONS if name != "ends"}
        with replacing(path) as file:
            np.savez(file, outcomes=np.frombuffer(json_line(self.outcomes), np.uint8), **arrays)

    @staticmethod
    def read(path: Path) -> "Part":
        """Raises DamagedStore where the file is not what was written (zip members carry a checksum)."""
        try:
            with open(path, "rb") as file, np.load(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except _BROKEN_ZIP as error:
            raise DamagedStore(f"{path}: {error}") from error
        return Part(outcomes=parse_json(arrays.pop("outcomes").tobytes(), name=str(path)), **arrays)


class TaskTokens:
    """The tokenised examples of one split of one task. Pickles as its folder's name."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.meta: dict[str, Any] = read_object(self.folder / "meta.json")
        examples, templates, tokens = (self.meta[name] for name in ("examples", "templates", "tokens"))
        shapes = dict.fromkeys(_SECTIONS, (examples, templates))
        shapes |= {"ends": (examples * templates,), "records": (examples,), "tokens": (tokens,), "weights": (tokens,)}
        self._stamp = self._file_stamp()
        arrays = _sections(self.folder / "data", shapes)
        self.lengths: Int[np.ndarray, "examples templates"] = arrays["lengths"]
        self.loss_lengths: Int[np.ndarray, "examples templates"] = arrays["loss_lengths"]
        self.response_lengths: Int[np.ndarray, "examples templates"] = arrays["response_lengths"]
        self.records: Int[np.ndarray, " examples"] = arrays["records"]
        self._ends, self._tokens, self._weights = arrays["ends"], arrays["tokens"], arrays["weights"]

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
        """Number of the split's records by what became of them: kept, truncated, or dropped for a reason."""
        return self.meta["outcomes"]

    @property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return self.meta["sha256"]

    @property
    def all_tokens(self) -> Int[np.ndarray, " tokens"]:
        """The tokens of all examples in all wordings, one after another, as they lie on the disk."""
        return self._tokens

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        k = number * self.num_templates + template
        start, stop = (int(self._ends[k - 1]) if k else 0), int(self._ends[k])
        return Example(tokens=self._tokens[start:stop], loss_weights=self._weights[start:stop])

    def block_fingerprints(self, blocks: int = 256) -> list[str]:
        """First 16 digits of the SHA-256 of at most `blocks` equal runs of examples: they tell where two stores differ.

        Block b of n examples holds the examples [b * n // blocks, (b + 1) * n // blocks).
        """
        count, found = min(blocks, len(self)), []
        ends = np.concatenate([[0], self._ends])
        for b in range(count):
            low, high = b * len(self) // count, (b + 1) * len(self) // count
            start, stop = (int(ends[example * self.num_templates]) for example in (low, high))
            digest = hashlib.sha256(np.ascontiguousarray(self.lengths[low:high]).tobytes())
            digest.update(self._tokens[start:stop].tobytes())
            digest.update(self._weights[start:stop].tobytes())
            found.append(digest.hexdigest()[:16])
        return found

    def record(self, number: int) -> int:
        """Number of the example's record in the split's source."""
        return int(self.records[number])

    def verify(self, facts: Mapping[str, Any] | None = None) -> None:
        """Compare digests, of every byte or of a note (see `noted_fingerprint`).

        Raises DamagedStore, also for content made from other facts.
        """
        if facts is not None and self.meta["facts"] != dict(facts):
            raise DamagedStore(f"{self.folder}: made from other facts")
        if noted_fingerprint(self.folder / "data") != self.meta["sha256"]:
            raise DamagedStore(f"{self.folder / 'data'}: the content is not what was written")

    def check_unchanged(self) -> None:
        """Raises UserError when the data changed since they were opened."""
        if self._file_stamp() != self._stamp:
            raise UserError(f"{self.folder} changed while it was in use; start the run again")

    def _file_stamp(self) -> tuple[int, int]:
        stat = os.stat(self.folder / "data")
        return stat.st_size, stat.st_mtime_ns

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return TaskTokens, (self.folder,)


def open_store(folder: Path, facts: Mapping[str, Any]) -> TaskTokens:
    """A finished store, verified. Raises DamagedStore for one that must be made again.

    Raises UserError for a folder that is no store at all: it is not ours to replace.
    """
    try:
        ours = read_object(folder / "meta.json").get("format") == FORMAT
    except UnreadableDocument:
        ours = {*os.listdir(folder)} <= {"meta.json", "data"}
        if ours:
            raise DamagedStore(f"{folder}: meta.json cannot be read") from None
    if not ours:
        raise UserError(f"{folder} is not a token cache of jaxtune; move it away, or choose another cache folder")
    try:
        read_sealed(folder / "meta.json")
        store = TaskTokens(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedStore(f"{folder}: {error}") from error
    store.verify(facts)
    return store


def merge(parts: Sequence[Path], folder: Path, *, task: str, split: str, facts: Mapping[str, Any]) -> None:
    """Join files of parts, in order, into a finished store; `folder` appears whole or not at all."""
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a run that was killed here
        shutil.rmtree(left)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    outcomes: collections.Counter[str] = collections.Counter()
    examples, templates, tokens = 0, 1, 0
    for part in map(Part.read, parts):
        outcomes.update(part.outcomes)
        templates = part.lengths.shape[1]
        examples, tokens = examples + len(part.records), tokens + len(part.tokens)
    digest = hashlib.sha256()
    with naming(aside / "data"), open(aside / "data", "wb") as file:
        for name in _SECTIONS:
            for array in _section(name, parts):
                data = np.ascontiguousarray(array, _SECTIONS[name]).tobytes()
                file.write(data)
                digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    meta = {
        "format": FORMAT,
        "task": task,
        "split": split,
        "examples": examples,
        "templates": templates,
        "tokens": tokens,
        "outcomes": dict(outcomes),
        "sha256": digest.hexdigest(),
        "facts": dict(facts),
    }
    write_sealed(aside / "meta.json", meta)
    os.replace(aside, folder)


def allow_open_stores(number: int) -> None:
    """Let this process hold so many stores open (one file each), or raise UserError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UserError(f"{number} tasks need {needed} open files; the system allows {hard} (`ulimit -Hn`)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _section(name: str, parts: Sequence[Path]) -> Iterator[np.ndarray]:
    """One array of all parts, part by part."""
    end = 0
    for path in parts:
        with open(path, "rb") as file, np.load(file) as archive:
            if name != "ends":
                yield archive[name]
                continue
            ends = end + np.cumsum(archive["lengths"].reshape(-1), dtype=np.int64)
        yield ends
        end = int(ends[-1]) if ends.size else end


def _sections(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a data file, over one memory map."""
    sizes = {name: int(np.prod(shapes[name])) * dtype.itemsize for name, dtype in _SECTIONS.items()}
    if os.path.getsize(path) != sum(sizes.values()):
        raise ValueError(f"{path} has {os.path.getsize(path)} bytes, not {sum(sizes.values())}")
    if not sum(sizes.values()):  # an empty file cannot be mapped
        return {name: np.zeros(shapes[name], dtype) for name, dtype in _SECTIONS.items()}
    data = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array over the map: slicing a `memmap` is slow
    out, start = {}, 0
    for name, dtype in _SECTIONS.items():
        out[name] = data[start : start + sizes[name]].view(dtype).reshape(shapes[name])
        start += sizes[name]
    return out
