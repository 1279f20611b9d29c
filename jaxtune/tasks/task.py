"""A task: named records, their splits, and how a record becomes a conversation."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.batch import Example
from jaxtune.chat import Conversation
from jaxtune.errors import UserError
from jaxtune.storage.fingerprints import hash64, texts_fingerprint
from jaxtune.tasks import messages as chats
from jaxtune.tasks import reading, shapes
from jaxtune.tasks.exemplars import MOST_DRAWS, draws, joined, question
from jaxtune.tasks.identity import wording_identity
from jaxtune.tasks.marks import check_marks, check_unknown, given_marks, weight_of
from jaxtune.tasks.problems import Finding, Problem, ProblemLog, RecordError, has_error, raise_errors
from jaxtune.tasks.scoring import Scoring
from jaxtune.tasks.shapes import Shape
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.combined import SubsetSource
from jaxtune.tasks.splits import TRAIN, complete_splits
from jaxtune.tasks.values import Unwritable, canonical
from jaxtune.tasks.wording import Builder, FewShot, Template, call_builder, fill_messages


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One kind of conversation and its sources. Nothing is read before it is needed.

    Task(name="qa", splits={"train": from_jsonl("qa.jsonl"), "validation": from_jsonl("qa_dev.jsonl")})
    Task(name="sums", records=from_parquet("sums.parquet"), splits={"validation": 0.02, "test": 0.02})
    """

    name: str
    """Letters, digits and _ . - / only."""
    records: RecordSource | None = None
    """All records, where splits are shares of them."""
    splits: Mapping[str, RecordSource | float] = dataclasses.field(default_factory=dict)
    """By name: a source of its own, or a share of `records` in (0, 1); what is left of `records` is `train`."""
    columns: Mapping[str, str] | None = None
    """Canonical field -> column, where the file has other names: {"prompt": "question", "completion": "a.text"}."""
    shape: Shape | None = None
    """The records' shape; None detects it from the first records of each split, or is `fields` with templates."""
    templates: tuple[Template | Builder, ...] = ()
    """Wordings; an example meets every one before it meets one twice. Without any, records are used as they are."""
    few_shot: FewShot | None = None
    """Exemplars before each prompt."""
    cluster: str | None = None
    """What kind of task it is; a/b nests b in a. Mixture groups and held-out clusters go by it."""
    leaks_into: tuple[str, ...] = ()
    """Clusters that this task would give away (paraphrase into natural language inference): left out with them."""
    variant_of: str | None = None
    """Name of the task whose records this one words differently; the two are held out together."""
    metric: str | Scoring = "exact_match"
    """How generated answers are scored: a key of `metrics.METRICS`, or a `Scoring` with several and what they need."""
    max_examples: int | None = None
    """At most so many distinct examples take part."""
    max_repeats: float | None = None
    """At most so many passes over the examples that take part."""
    split_by: str | None = None
    """Field that keeps records together when splits are shares: all records of one document fall in one split."""

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.\-/]+", self.name):
            raise UserError(f"task name {self.name!r}: use letters, digits and _ . - / only")
        _check_types(self)
        for field in ("templates", "leaks_into"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "splits", complete_splits(self.name, self.records, self.splits))
        shapes.check_columns(self.columns)
        if self.shape is Shape.FIELDS and not self.templates:
            raise UserError(f"task {self.name}: records of the shape `fields` need templates=")
        self.scoring.check(self.name)
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"task {self.name}: max_examples must be 1 or more, got {self.max_examples}")
        if self.max_repeats is not None and not self.max_repeats >= 0:
            raise UserError(f"task {self.name}: max_repeats must be 0 or more, got {self.max_repeats}")

    @property
    def scoring(self) -> Scoring:
        """`metric` as a `Scoring`."""
        return self.metric if isinstance(self.metric, Scoring) else Scoring(metrics=(self.metric,))

    # Splits.

    def source(self, split: str = TRAIN) -> RecordSource:
        """The records of a split."""
        if split not in self.splits:
            raise UserError(f"task {self.name} has no split {split!r}; it has {sorted(self.splits)}")
        source = self.splits[split]
        return source if isinstance(source, RecordSource) else self._shares[split]

    @functools.cached_property
    def _shares(self) -> dict[str, SubsetSource]:
        assert self.records is not None
        names = [name for name, share in self.splits.items() if isinstance(share, float)]
        owners = np.array([names.index(split) for split in self._owners()], np.int64)
        return {
            name: SubsetSource(self.records, np.flatnonzero(owners == k), label=name) for k, name in enumerate(names)
        }

    def _owners(self) -> Iterator[str]:
        """The split of each of `records`; raises one `UserError` with all that cannot be read."""
        assert self.records is not None
        log = ProblemLog()
        for i in range(len(self.records)):
            try:
                yield self.split_of(self.records[i], file=self.records.file(i), line=self.records.line(i))
            except RecordError as error:
                log.add(error.problems)
        log.raise_if_any(self.records.name)

    def split_of(self, record: Mapping[str, Any], *, file: str = "", line: int | None = None) -> str:
        """Split of a record among the shares of `records`, by a hash of its content without its id.

        Adding or reordering records moves no other record; equal records fall in one split, whatever task they are in.
        `train` comes last on the scale, so another share may grow at its cost alone.
        """
        place: Any = {"file": file, "line": line}
        try:
            key = canonical(record)
        except Unwritable as error:
            raise RecordError([Problem(rule="unwritable", message=str(error), **place)]) from error
        if self.split_by is not None:
            try:
                key = repr(shapes.look_up(record, self.split_by)).encode()
            except KeyError:
                message = f"no field {self.split_by!r}, which split_by= names; it has {sorted(record)}"
                raise RecordError([Problem(rule="missing-field", message=message, **place)]) from None
        position = hash64(key) / 2.0**64
        for name, share in self.splits.items():
            if name != TRAIN and isinstance(share, float):
                if position < share:
                    return name
                position -= share
        return TRAIN

    def shape_in(self, split: str = TRAIN) -> Shape:
        """The records' shape in a split."""
        if self.shape is not None:
            return self.shape
        if self.templates:
            return Shape.FIELDS
        found = self._shapes.get(split)
        if found is None:
            found = self._shapes[split] = shapes.detect(self.source(split), self.columns)
        return found

    @functools.cached_property
    def _shapes(self) -> dict[str, Shape]:
        return {}

    # Records.

    @property
    def num_templates(self) -> int:
        """Wordings of each example; 1 without templates."""
        return max(1, len(self.templates))

    def read(self, split: str, i: int, template: int = 0) -> Conversation | Example:
        """Example i of a split, in one wording; an `Example` where records hold tokens.

        Raises `RecordError` with file, line and id when the record cannot be used.
        """
        source = self.source(split)
        place = {"file": source.file(i), "line": source.line(i)}
        record = source[i]
        shape = self.shape_in(split)
        if shape is Shape.TOKENS:
            return reading.to_example(record, self.columns, **place)
        return self.conversation(record, template, shape=shape, **place)

    def conversation(
        self,
        record: Mapping[str, Any],
        template: int = 0,
        *,
        shape: Shape | None = None,
        file: str = "",
        line: int | None = None,
    ) -> Conversation:
        """A record in one wording, with its exemplars; a pure function of the task and the record.

        `shape` is the record's, by default that of the first split; `file` and `line` are for messages.
        """
        wording = self.templates[template] if self.templates else None
        shape = self.shape_in(next(iter(self.splits))) if shape is None else shape
        plain = self._plain(record, wording, shape, file, line)
        shots = self._shots(wording)
        if not shots:
            return plain
        return self._with_exemplars(plain, record, template, shots)

    def check(self, record: Any, shape: Shape) -> list[Finding]:
        """(rule, message) of everything that is wrong with one record, in any wording; errors and warnings."""
        findings = reading.check_record(record, shape, self.columns)
        if self.templates and not has_error(findings):
            renamed = shapes.rename(record, self.columns)[0]
            for wording in self.templates:
                findings += self._worded(renamed, wording, id=None)[1]
        return list(dict.fromkeys(findings))

    def _plain(
        self, record: Mapping[str, Any], wording: Template | Builder | None, shape: Shape, file: str, line: int | None
    ) -> Conversation:
        """One conversation without exemplars."""
        if wording is None:
            return reading.to_conversation(record, shape, self.columns, file=file, line=line)
        id = shapes.record_id(record, self.columns)
        renamed, findings = shapes.rename(record, self.columns)
        raise_errors(findings, file=file, line=line, id=id)
        built, findings = self._worded(renamed, wording, id=id)
        raise_errors(findings, file=file, line=line, id=id)
        assert built is not None  # without an error there is a conversation
        return built if built.id is not None else dataclasses.replace(built, id=id)

    def _worded(
        self, record: Mapping[str, Any], wording: Template | Builder, *, id: str | None
    ) -> tuple[Conversation | None, list[Finding]]:
        """A record in one wording, None where that is an error, and what is wrong with it."""
        if not isinstance(wording, Template):
            return call_builder(wording, record)
        filled, findings = fill_messages(wording, record)
        unworded = self._switches_and_numbers(record)
        marks = given_marks(unworded)
        findings = findings or check_marks(marks, "") + check_unknown(unworded, ())
        messages = filled if findings else chats.scaled(filled, weight_of(marks))
        findings = findings or chats.check_messages(messages)
        return None if has_error(findings) else chats.conversation_of(messages, id=id), findings

    def _switches_and_numbers(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record of named fields that may be marks: those that no template words, and no text or list.

        A template function sees the whole record and sets the weights of its messages itself.
        """
        wordings = [wording for wording in self.templates if isinstance(wording, Template)]
        used = {field.partition(".")[0] for wording in wordings for field in wording.fields}
        used |= set((self.columns or {}).values()) - set(self.columns or {})
        kinds = bool | int | float | Mapping
        return {name: value for name, value in record.items() if name not in used and isinstance(value, kinds)}

    def _shots(self, wording: Template | Builder | None) -> int:
        if isinstance(wording, Template) and wording.shots is not None:
            return wording.shots
        return self.few_shot.count if self.few_shot else 0

    def _with_exemplars(
        self, plain: Conversation, record: Mapping[str, Any], template: int, shots: int
    ) -> Conversation:
        few_shot = self.few_shot or FewShot(count=shots)
        chosen: list[Conversation] = []
        asked = {question(plain)}
        wording = self.templates[template] if self.templates else None
        source = self.source(TRAIN)
        key = f"{few_shot.seed}|{self.name}|{template}|".encode() + canonical(record)
        for i in itertools.islice(draws(key, len(source)), MOST_DRAWS):
            place = {"file": source.file(i), "line": source.line(i)}
            exemplar = self._plain(source[i], wording, self.shape_in(TRAIN), **place)
            if question(exemplar) not in asked:  # never the example itself, nor the same question again
                asked.add(question(exemplar))
                chosen.append(exemplar)
            if len(chosen) == shots:
                return joined(chosen, plain, few_shot)
        raise UserError(
            f"task {self.name} asks for {shots} exemplars, but found only {len(chosen)} other questions among "
            f"{len(source)} train records; lower few_shot.count or add records"
        )

    # Identity.

    def fingerprint(self, split: str = TRAIN) -> str:
        """sha256 over everything that decides the split's conversations: content, wordings, columns, exemplars."""
        parts = [
            split,
            self.source(split).fingerprint,
            self.shape_in(split).value,
            repr(sorted((self.columns or {}).items())),
        ]
        parts += [wording_identity(wording) for wording in self.templates]
        if any(self._shots(wording) for wording in self.templates or (None,)):
            parts += [self.name, repr(self.few_shot), self.source(TRAIN).fingerprint]
        return texts_fingerprint(parts)

    def check_unchanged(self) -> None:
        """Raises `UserError` when a file of any split changed since it was opened."""
        for split in self.splits:
            self.source(split).check_unchanged()

    def cached_in(self, folder: Path) -> "Task":
        """The same task, with the copies that reading its files needs kept in `folder`."""
        records = None if self.records is None else self.records.cached_in(folder)
        splits = {
            name: value.cached_in(folder) if isinstance(value, RecordSource) else value
            for name, value in self.splits.items()
        }
        return dataclasses.replace(self, records=records, splits=splits)


def _check_types(task: Task) -> None:
    """Raises `UserError` for a field of a type that would fail, or be misread, far from here."""
    for name, kinds, written in _KINDS:
        value = getattr(task, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"task {task.name}: {name} must be {written}; got {value!r}")
    for wording in task.templates:
        if not isinstance(wording, Template) and not callable(wording):
            raise UserError(f"task {task.name}: templates are Template(...) or functions of a record; got {wording!r}")


_NONE = type(None)
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("columns", (Mapping, _NONE), "a mapping of canonical fields to columns, such as {'prompt': 'question'}"),
    ("shape", (Shape, _NONE), f"a Shape ({', '.join('Shape.' + shape.name for shape in Shape)}) or None"),
    ("templates", (tuple, list), "a tuple of templates, such as (Template(...),)"),
    ("few_shot", (FewShot, _NONE), "a FewShot(count=...) or None"),
    ("cluster", (str, _NONE), "a string or None"),
    ("leaks_into", (tuple, list), "a tuple of clusters, such as ('nli',)"),
    ("variant_of", (str, _NONE), "the name of a task, or None"),
    ("metric", (str, Scoring), "the name of a metric, or a Scoring(metrics=...)"),
    ("max_examples", (int, _NONE), "a whole number or None"),
    ("max_repeats", (int, float, _NONE), "a number or None"),
    ("split_by", (str, _NONE), "the name of a field, or None"),
)
"""By field of a task: the types that it takes, and those in words."""
