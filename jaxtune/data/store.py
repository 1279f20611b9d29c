"""Tokenised examples on disk: written in parts that survive a kill, read through one memory map, checked by digest.

A finished store is a folder with two files. `data` holds the arrays of `sections` one after the other. `meta.json` is
written last and holds the facts that the content is a function of, the counts, and the digests of content and `data`.

A token takes two bytes where the vocabulary has at most 65,536 tokens, else four. Weights are kept as runs of equal
ones, 8 bytes each, of which a conversation has a few: where the weights of a record change at every token, they take 8
bytes a token.
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
from jaxtyping import Float, Int, Integer

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

FORMAT = "jaxtune tokens 3"
_FORMATS = "jaxtune tokens "
"""How the format of every version begins."""
CONTENT = {
    "ends": np.dtype("<i8"),
    "records": np.dtype("<i8"),
    "lengths": np.dtype("<i4"),
    "loss_lengths": np.dtype("<i4"),
    "response_lengths": np.dtype("<i4"),
    "tokens": np.dtype("<i4"),
    "weights": np.dtype("<f4"),
}
"""What is in a store, whatever its format: its fingerprint is over these arrays in this order, so that runs of earlier
versions can be compared. `ends` is where each example ends among `tokens`; `records` is the source's number of each
example's record; the lengths are by example and template."""
RUNS = ("runs", "run_lengths", "run_weights")
"""The weights of a part: number of runs of each example, and length and weight of each run."""


def token_type(limit: int) -> np.dtype:
    """The smallest type of token ids below `limit`."""
    if not 0 < limit <= 2**32:
        raise ValueError(f"a vocabulary has between 1 and 2**32 tokens, got {limit}")
    return np.dtype("<u2" if limit <= 2**16 else "<u4")


def sections(token: np.dtype) -> dict[str, np.dtype]:
    """The arrays of a data file in order, widest numbers first, so that all are aligned.

    `run_ends` is where the runs of each example end among the runs of equal weights.
    """
    wide = {"ends": CONTENT["ends"], "records": CONTENT["records"], "run_ends": np.dtype("<i8")}
    counts = {name: CONTENT[name] for name in ("lengths", "loss_lengths", "response_lengths")}
    return wide | counts | {"run_lengths": np.dtype("<i4"), "run_weights": np.dtype("<f4"), "tokens": token}


_SPARE_FILES = 256
"""Open files left to the rest of the process."""


class DamagedStore(Exception):
    """A store that cannot be trusted: incomplete, altered, or made from something else. It can be made again."""


_BROKEN_ZIP = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of reading a damaged archive; a flipped bit of a header may also ask for a password or an unknown method."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The examples of consecutive records, in every wording: what one job writes."""

    tokens: Integer[np.ndarray, " tokens"]
    weights: Float[np.ndarray, " tokens"]
    lengths: Int[np.ndarray, "examples templates"]
    loss_lengths: Int[np.ndarray, "examples templates"]
    response_lengths: Int[np.ndarray, "examples templates"]
    records: Int[np.ndarray, " examples"]
    outcomes: Mapping[str, int]
    """What happened to the records, by reason: how many."""

    def write(self, path: Path, token_limit: int) -> None:
        """All of it or nothing: a half-written file never bears the name. Token ids are below `token_limit`."""
        if self.tokens.size and not 0 <= self.tokens.min() <= self.tokens.max() < token_limit:
            raise ValueError(f"token ids {self.tokens.min()} to {self.tokens.max()}, but the limit is {token_limit}")
        names = ("lengths", "loss_lengths", "response_lengths", "records")
        arrays = {name: getattr(self, name) for name in names}
        arrays |= {"tokens": self.tokens.astype(token_type(token_limit))}
        arrays |= dict(zip(RUNS, runs_of(self.weights, self.lengths.reshape(-1)), strict=True))
        with replacing(path) as file:
            np.savez(file, outcomes=np.frombuffer(json_line(self.outcomes), np.uint8), **arrays)

    @staticmethod
    def read(path: Path) -> "Part":
        """Raises DamagedStore where the file is not what was written (zip members carry a checksum)."""
        try:
            with open(path, "rb") as file, np.load(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
            _, lengths, weights = (arrays.pop(name) for name in RUNS)
        except _BROKEN_ZIP as error:
            raise DamagedStore(f"{path}: {error}") from error
        outcomes = parse_json(arrays.pop("outcomes").tobytes(), name=str(path))
        return Part(outcomes=outcomes, weights=np.repeat(weights, lengths), **arrays)


def runs_of(
    weights: Float[np.ndarray, " tokens"], lengths: Int[np.ndarray, " examples"]
) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " runs"], Float[np.ndarray, " runs"]]:
    """Runs of weights with the same bits, none across two examples: number in each example, lengths, weights."""
    weights = np.ascontiguousarray(weights, CONTENT["weights"])
    ends, bits = np.cumsum(lengths, dtype=np.int64), weights.view("<u4")
    begins = np.zeros(len(weights), bool)
    begins[1:] = bits[1:] != bits[:-1]
    begins[(ends - lengths)[lengths > 0]] = True
    starts = np.flatnonzero(begins)
    each = np.diff(np.searchsorted(starts, ends), prepend=0)
    return each.astype("<i4"), np.diff(starts, append=len(weights)).astype("<i4"), weights[starts]


class TaskTokens:
    """The tokenised examples of one split of one task. Pickles as its folder's name."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.meta: dict[str, Any] = read_object(self.folder / "meta.json")
        examples, templates, tokens, runs = (self.meta[name] for name in ("examples", "templates", "tokens", "runs"))
        token = np.dtype(self.meta["token_type"])
        shapes = dict.fromkeys(sections(token), (examples, templates))
        shapes |= dict.fromkeys(("ends", "run_ends"), (examples * templates,)) | {"records": (examples,)}
        shapes |= dict.fromkeys(("run_lengths", "run_weights"), (runs,)) | {"tokens": (tokens,)}
        self._stamp = self._file_stamp()
        arrays = _sections(self.folder / "data", sections(token), shapes)
        self.lengths: Int[np.ndarray, "examples templates"] = arrays["lengths"]
        self.loss_lengths: Int[np.ndarray, "examples templates"] = arrays["loss_lengths"]
        self.response_lengths: Int[np.ndarray, "examples templates"] = arrays["response_lengths"]
        self.records: Int[np.ndarray, " examples"] = arrays["records"]
        self._ends, self._tokens = arrays["ends"], arrays["tokens"]
        self._run_ends, self._run_lengths, self._run_weights = (
            arrays[name] for name in ("run_ends", "run_lengths", "run_weights")
        )

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
        """sha256 of the content, whatever its format (see `CONTENT`)."""
        return self.meta["sha256"]

    @property
    def all_tokens(self) -> Integer[np.ndarray, " tokens"]:
        """The tokens of all examples in all wordings, one after another, as they lie on the disk."""
        return self._tokens

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        k = number * self.num_templates + template
        return Example(tokens=self._tokens_of(k, k + 1), loss_weights=self._weights_of(k, k + 1))

    def _tokens_of(self, low: int, high: int) -> Int[np.ndarray, " tokens"]:
        """Tokens of the wordings [low, high) of all examples, numbered one after another."""
        return self._tokens[_begin(self._ends, low) : _begin(self._ends, high)].astype(CONTENT["tokens"])

    def _weights_of(self, low: int, high: int) -> Float[np.ndarray, " tokens"]:
        """Weights of the same."""
        runs = slice(_begin(self._run_ends, low), _begin(self._run_ends, high))
        return self._run_weights[runs].repeat(self._run_lengths[runs])

    def block_fingerprints(self, blocks: int = 256) -> list[str]:
        """First 16 digits of the SHA-256 of at most `blocks` equal runs of examples: they tell where two stores differ.

        Block b of n examples holds the examples [b * n // blocks, (b + 1) * n // blocks).
        """
        count, found = min(blocks, len(self)), []
        for b in range(count):
            low, high = b * len(self) // count, (b + 1) * len(self) // count
            wordings = low * self.num_templates, high * self.num_templates
            digest = hashlib.sha256(np.ascontiguousarray(self.lengths[low:high]).tobytes())
            digest.update(self._tokens_of(*wordings).tobytes())
            digest.update(self._weights_of(*wordings).tobytes())
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
        if noted_fingerprint(self.folder / "data") != self.meta["data_sha256"]:
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
        version = str(read_object(folder / "meta.json").get("format"))
    except UnreadableDocument:
        if {*os.listdir(folder)} <= {"meta.json", "data"}:
            raise DamagedStore(f"{folder}: meta.json cannot be read") from None
        version = ""
    if version.startswith(_FORMATS) and version != FORMAT:
        raise DamagedStore(f"{folder}: its format is {version!r}, not {FORMAT!r}")
    if version != FORMAT:
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
    examples, templates, tokens, runs, token = 0, 1, 0, 0, np.dtype("<u2")
    for path in parts:
        part = Part.read(path)
        outcomes.update(part.outcomes)
        templates, token = part.lengths.shape[1], part.tokens.dtype
        examples, tokens = examples + len(part.records), tokens + len(part.tokens)
        runs += len(next(_section("run_lengths", [path])))
    content, whole = hashlib.sha256(), hashlib.sha256()
    with naming(aside / "data"), open(aside / "data", "wb") as file:
        for name, dtype in sections(token).items():
            for array in _section(name, parts):
                data = np.ascontiguousarray(array, dtype).tobytes()
                file.write(data)
                whole.update(data)
                if name in CONTENT:
                    content.update(data if dtype == CONTENT[name] else array.astype(CONTENT[name]).tobytes())
        for weights, lengths in zip(_section("run_weights", parts), _section("run_lengths", parts), strict=True):
            content.update(np.repeat(weights, lengths).tobytes())
        file.flush()
        os.fsync(file.fileno())
    meta = {
        "format": FORMAT, "task": task, "split": split,
        "examples": examples, "templates": templates, "tokens": tokens, "runs": runs, "token_type": token.str,
        "outcomes": dict(outcomes), "sha256": content.hexdigest(), "data_sha256": whole.hexdigest(),
        "facts": dict(facts),
    }  # fmt: skip
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


def _begin(ends: Int[np.ndarray, " n"], k: int) -> int:
    """Where the k-th of things that end at `ends` begins."""
    return ends.item(k - 1) if k else 0


def _section(name: str, parts: Sequence[Path]) -> Iterator[np.ndarray]:
    """One array of all parts, part by part."""
    counted, end = {"ends": "lengths", "run_ends": "runs"}.get(name), 0
    for path in parts:
        with open(path, "rb") as file, np.load(file) as archive:
            if counted is None:
                yield archive[name]
                continue
            ends = end + np.cumsum(archive[counted].reshape(-1), dtype=np.int64)
        yield ends
        end = int(ends[-1]) if ends.size else end


def _sections(
    path: Path, types: Mapping[str, np.dtype], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays of a data file, over one memory map."""
    sizes = {name: int(np.prod(shapes[name])) * dtype.itemsize for name, dtype in types.items()}
    if os.path.getsize(path) != sum(sizes.values()):
        raise ValueError(f"{path} has {os.path.getsize(path)} bytes, not {sum(sizes.values())}")
    if not sum(sizes.values()):  # an empty file cannot be mapped
        return {name: np.zeros(shapes[name], dtype) for name, dtype in types.items()}
    data = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array over the map: slicing a `memmap` is slow
    out, start = {}, 0
    for name, dtype in types.items():
        out[name] = data[start : start + sizes[name]].view(dtype).reshape(shapes[name])
        start += sizes[name]
    return out
