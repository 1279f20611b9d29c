"""Every problem of data files or of tasks in one report, before anything is trained."""

import bisect
import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from jaxtune.errors import UserError, did_you_mean
from jaxtune.storage.stores import Store, is_url
from jaxtune.tasks import shapes
from jaxtune.tasks.problems import Problem, RecordError
from jaxtune.tasks.shapes import Shape
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.combined import ConcatSource
from jaxtune.tasks.sources.compressed import CompressedJsonlSource
from jaxtune.tasks.sources.jsonl import JsonlSource
from jaxtune.tasks.sources.open import from_file, from_hf_folder
from jaxtune.tasks.splits import TEST, TRAIN, VALIDATION, meant
from jaxtune.tasks.task import Task
from jaxtune.validate import duplicates
from jaxtune.validate.duplicates import MESSAGE, Sketches
from jaxtune.validate.report import FileSummary, Report
from jaxtune.validate.scan import MARKERS, Scanner, head_shape, record_texts

COMPARISONS = 200_000
"""Pairs of texts compared word by word in the search for near duplicates; the report says when this ended it."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".array_record")
"""Files that are read when a folder is given."""


def validate_files(paths: Sequence[str | Path]) -> Report:
    """Reads data files or folders of them, here or at URLs.

    Files are compared with each other; a file whose name says validation, test, dev or eval is a split of its own.
    """
    tasks = [_file_task(file) for path in paths for file in _expand(path)]
    return validate_tasks(tasks)


def validate_tasks(tasks: Iterable[Task], *, controls: Sequence[str] = MARKERS) -> Report:
    """Reads every split of every task once, in bounded memory, and gathers all that is wrong.

    `controls`: strings that should not stand in text; a tokenizer's own, where there is one.
    """
    start = time.monotonic()
    with Sketches() as sketches:
        run = _Run(sketches, controls)
        for task in tasks:
            run.read_task(task)
        run.compare()
    run.report.seconds = time.monotonic() - start
    return run.report


def refuse_missing(paths: Sequence[str]) -> None:
    """Raise UserError where none of the files is there; a missing one among others is a problem in their report."""
    if any(is_url(path) or Path(path).exists() for path in paths):
        return
    first = Path(paths[0])
    beside = os.listdir(first.parent) if first.parent.is_dir() else []
    raise UserError(f"no file at {', '.join(paths)}{did_you_mean(first.name, beside)}")


def _expand(given: str | Path) -> list[tuple[str | Path, str | None]]:
    """Data files at a path or a URL, each with the split of a saved data set."""
    if is_url(str(given)):
        return [(url, None) for url in _urls_below(str(given))]
    path = Path(given)
    if not os.path.isdir(path):
        return [(path, None)]
    splits = [folder.parent.name for folder in sorted(path.glob("*/state.json"))]
    if splits and os.path.isfile(path / "dataset_dict.json"):
        return [(path, split) for split in splits]
    if os.path.isfile(path / "state.json"):
        return [(path, None)]
    found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and not os.path.isdir(file))
    if not found:
        raise UserError(f"folder {path} holds no data files; data files end in {', '.join(SUFFIXES)}")
    return [(file, None) for file in found]


def _urls_below(url: str) -> list[str]:
    """A URL itself, where its name is a data file's; else those of the data files below it."""
    if url.endswith(SUFFIXES):
        return [url]
    found = sorted(name for name in Store(url.rstrip("/"), "data").names() if name.endswith(SUFFIXES))
    if not found:
        raise UserError(f"{url} holds no data files; data files end in {', '.join(SUFFIXES)}")
    return [f"{url.rstrip('/')}/{name}" for name in found]


def _file_task(file: tuple[str | Path, str | None]) -> Task:
    path, split = file
    source = from_file(path) if split is None else from_hf_folder(path, split=split)
    name = "".join(c if c.isalnum() or c in "_.-/" else "_" for c in str(path).lstrip("/")) or "file"
    return Task(name=name, splits={split or split_named(Path(path).name): source})


def split_named(name: str) -> str:
    """The split that a file name speaks of; train when it speaks of none."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    spoken = set(map(meant, words))
    return next((split for split in (VALIDATION, TEST) if split in spoken), TRAIN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Segment:
    """Consecutive rows of the sketches that come from one file."""

    first: int
    task: Task
    split: str | None
    """None where the records are shared out among splits."""
    source: RecordSource
    shape: Shape


class _Run:
    """One validation: the report, and what is kept of each record to compare it with the others."""

    def __init__(self, sketches: Sketches, controls: Sequence[str]):
        self.report = Report()
        self._controls = controls
        self._sketches = sketches
        self._segments: list[_Segment] = []
        self._read: set[tuple[str | None, str]] = set()
        self._words = functools.lru_cache(maxsize=1024)(lambda k: duplicates.Words.of(self._text(k)))

    # Reading.

    def read_task(self, task: Task) -> None:
        """Reads every file of a task."""
        whole = [] if task.records is None else [(None, task.records)]
        named = [(split, source) for split, source in task.splits.items() if isinstance(source, RecordSource)]
        for split, source in [*whole, *named]:
            seen: Shape | None = None
            for leaf in source.sources if isinstance(source, ConcatSource) else (source,):
                shape = self._read_leaf(task, split, leaf)
                if seen is not None and shape not in (None, seen):
                    text = f"the records have the shape {shape.value}, those of the files before it {seen.value}"
                    self.report.add(Problem(rule="mixed-shapes", message=text, file=leaf.name))
                seen = seen or shape

    def _read_leaf(self, task: Task, split: str | None, source: RecordSource) -> Shape | None:
        shape: Shape | None = None
        records = size = 0
        try:
            shape = _shape(task, source)
            self._segments.append(
                _Segment(first=len(self._sketches), task=task, split=split, source=source, shape=shape)
            )
            again = {(split, origin) for origin in source.origins} <= self._read
            self._read |= {(split, origin) for origin in source.origins}
            for scanned in Scanner(task, shape, controls=self._controls).scan(source):
                for line, id, (rule, message) in scanned.findings:
                    self.report.add(Problem(rule=rule, message=message, file=source.name, line=line, id=id))
                self._keep(scanned.rows, task, again)
                records += len(scanned.rows)
                size += scanned.bytes
        except RecordError as error:
            self.report.add(*error.problems)
        except (UserError, OSError) as error:
            self.report.add(Problem(rule="unreadable-file", message=str(error), file=source.name))
        self.report.files.append(
            FileSummary(
                file=source.name,
                task=task.name,
                split=split or "shared out",
                shape=shape and shape.value,
                records=records,
                bytes=size,
            )
        )
        return shape

    def _keep(self, rows: np.ndarray, task: Task, again: bool) -> None:
        """Remembers records for the comparison; nothing of those that another task reads from the same file."""
        if again:
            rows = np.zeros_like(rows)
        ids = rows["id"]
        ids[ids != 0] ^= np.uint64(hash(task.name) & (2**64 - 1))  # ids are unique within a task, not among tasks
        self._sketches.add(rows)

    def _at(self, source: RecordSource, i: int, task: Task, rule: str, message: str) -> None:
        id = shapes.record_id(source[i], task.columns)
        self.report.add(Problem(rule=rule, message=message, file=source.file(i), line=source.line(i), id=id))

    # Comparing.

    def compare(self) -> None:
        """Looks for texts, prompts and ids that stand twice."""
        repeats = self._equal_texts()
        self._equal_prompts(repeats)
        self._near_texts(repeats)
        self._equal_ids()

    def _equal_texts(self) -> set[int]:
        """Reports texts that an earlier one equals, word for word; returns their numbers."""
        repeats: set[int] = set()
        for group in self._sketches.groups("text"):
            first: dict[tuple[bytes, ...], int] = {}
            for k in map(int, group):
                other = first.setdefault(duplicates.words(self._text(k)), k)
                if other != k:
                    repeats.add(k)
                    same = self._text(k) == self._text(other)
                    self._report_pair(k, other, "exact-duplicate" if same else "near-duplicate", 1.0)
        return repeats

    def _equal_prompts(self, repeats: set[int]) -> None:
        """Reports records of one split that ask what a record of another split asks."""
        for group in self._sketches.groups("prompt"):
            seen: dict[tuple[bytes, ...], dict[str, int]] = {}
            for k in map(int, group):
                if k in repeats:
                    continue
                split = self._split(k)
                by_split = seen.setdefault(duplicates.words(self._text(k).rpartition(MESSAGE)[0]), {})
                other = next((n for name, n in by_split.items() if name != split), None)
                by_split.setdefault(split, k)
                if other is not None:
                    text = f"asks what {self._place(other)} ({self._split(other)}) asks, with another answer"
                    self._report(k, "leaked-prompt", text)

    def _near_texts(self, repeats: set[int]) -> None:
        """Reports texts that nearly equal an earlier one."""
        pairs = self._sketches.pairs()
        if len(pairs) > COMPARISONS:
            text = f"{len(pairs):,} pairs of texts may be near duplicates; the first {COMPARISONS:,} were compared"
            self.report.notes.append(text)
        for other, k in pairs[:COMPARISONS].tolist():
            if k not in repeats:
                likeness = duplicates.similarity(self._words(other), self._words(k))
                if likeness >= duplicates.THRESHOLD:
                    repeats.add(k)
                    self._report_pair(k, other, "near-duplicate", likeness)

    def _equal_ids(self) -> None:
        for group in self._sketches.groups("id"):
            first: dict[str | None, int] = {}
            for k in map(int, group):
                segment, record = self._record(k)
                other = first.setdefault(shapes.record_id(record, segment.task.columns), k)
                if other != k:
                    self._report(k, "duplicate-id", f"{self._place(other)} has the same id")

    def _report_pair(self, k: int, other: int, rule: str, likeness: float) -> None:
        """Reports a text and the earlier one that it (nearly) equals."""
        how = "equals" if rule == "exact-duplicate" else f"is {likeness:.0%} alike to"
        mine, its = self._split(k), self._split(other)
        if mine != its:
            self._report(k, "leaked-duplicate", f"{how} {self._place(other)}, which is in {its}, this one in {mine}")
        else:
            self._report(k, rule, f"{how} {self._place(other)}")

    def _report(self, k: int, rule: str, message: str) -> None:
        segment, i = self._find(k)
        self._at(segment.source, i, segment.task, rule, message)

    def _find(self, k: int) -> tuple[_Segment, int]:
        """The segment of record number k, and its number there."""
        segment = self._segments[bisect.bisect_right(self._segments, k, key=lambda segment: segment.first) - 1]
        return segment, k - segment.first

    def _place(self, k: int) -> str:
        segment, i = self._find(k)
        return segment.source.where(i)

    def _record(self, k: int) -> tuple[_Segment, Any]:
        """Record number k, which was found free of errors."""
        segment, i = self._find(k)
        if isinstance(segment.source, JsonlSource | CompressedJsonlSource):
            return segment, orjson.loads(segment.source.raw(i))
        return segment, segment.source[i]

    def _text(self, k: int) -> str:
        segment, record = self._record(k)
        return MESSAGE.join(record_texts(record, segment.task, segment.shape))

    def _split(self, k: int) -> str:
        """The split of record number k."""
        segment, record = self._record(k)
        return segment.split or segment.task.split_of(record)


def _shape(task: Task, source: RecordSource) -> Shape:
    """The shape to check a file's records by; where no record can be read, any will do to say why."""
    if task.shape is not None:
        return task.shape
    if task.templates:
        return Shape.FIELDS
    if isinstance(source, JsonlSource | CompressedJsonlSource):
        return head_shape(source, task.columns)
    return shapes.detect(source, task.columns)
