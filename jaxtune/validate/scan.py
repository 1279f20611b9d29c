"""One pass over a split's records for `jaxtune validate`: what is wrong with each, and what is kept to compare them.

JSON lines are read in chunks. A chunk in which every record is of the usual kind (messages of exactly role and content,
roles in order, no key twice) is settled by a few operations on whole columns; only where that fails are records taken
one by one. Both ways give the same findings.
"""

import contextlib
import dataclasses
import functools
import gc
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from jaxtune.tasks import shapes
from jaxtune.tasks.marks import MARKS, is_unknown_mark, may_be_mark, sounds_like_mark
from jaxtune.tasks.messages import HUGE_ANSWER, UNREAD, check_roles, control_characters
from jaxtune.tasks.problems import Finding, RecordError, has_error
from jaxtune.tasks.reading import SPEAKERS, messages_of
from jaxtune.tasks.shapes import Shape
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.sources.compressed import CompressedJsonlSource
from jaxtune.tasks.sources.jsonl import JsonlSource, parse_line, written_keys
from jaxtune.tasks.task import Task
from jaxtune.tasks.values import MAX_DEPTH, keys_and_depth
from jaxtune.validate.duplicates import MESSAGE, RECORD, sketch
from jaxtune.validate.needles import Needles

CHUNK = 1 << 17
"""Bytes of JSON lines settled together; few enough to stay in a processor's cache."""

PIECE = 16
"""Records settled together where a whole chunk was not."""

MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|end|>", "[INST]", "[/INST]", "</s>"),
)
"""Control strings of well-known chat formats, looked for in text where no tokenizer is given."""


@dataclasses.dataclass(kw_only=True)
class Scanned:
    """Some consecutive records of one source."""

    findings: list[tuple[int | None, str | None, Finding]] = dataclasses.field(default_factory=list)
    """(line, id, finding)"""
    rows: np.ndarray
    """A `duplicates.DTYPE` element for each record; zero for records with an error, which are not compared."""
    bytes: int = 0
    """Bytes of the file that they take."""


@dataclasses.dataclass(kw_only=True)
class _Part:
    """Records of a chunk while it is being settled; `texts` are empty where a record has an error."""

    findings: list[tuple[int | None, str | None, Finding]] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    ids: list[Any] = dataclasses.field(default_factory=list)
    lines: list[int] = dataclasses.field(default_factory=list)
    messages: int = 0


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage collection off: parsed records hold no cycles, and looking for some takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Scanner:
    """Scans records of one shape of a task."""

    def __init__(self, task: Task, shape: Shape, *, controls: Sequence[str] = MARKERS):
        """`controls`: strings that should not stand in text."""
        self.task = task
        self.shape = shape
        self._usual = shape in _USUAL and not task.columns and not task.templates
        self._controls = Needles(controls)
        self._blank: list[int] = []

    def scan(self, source: RecordSource) -> Iterator[Scanned]:
        """Scans all records of a file."""
        if isinstance(source, JsonlSource | CompressedJsonlSource):
            return self._scan_lines(source.text_path)
        return self._scan_records(source)

    def _scan_records(self, source: RecordSource) -> Iterator[Scanned]:
        for start in range(0, len(source), 256):
            part = _Part()
            for i in range(start, min(start + 256, len(source))):
                try:
                    self._judge(part, source[i], source.line(i))
                except RecordError as error:
                    found = [(problem.rule, problem.message) for problem in error.problems]
                    self._add(part, source.line(i), None, found)
            yield self._finish(part, 0)

    def _scan_lines(self, path: Path) -> Iterator[Scanned]:
        with path.open("rb") as file, _no_collection():
            number = 1
            rest: list[bytes] = []
            while block := file.read(CHUNK):
                whole, newline, tail = block.rpartition(b"\n")
                if newline:
                    yield self._chunk(b"".join((*rest, whole)), number)
                    number += whole.count(b"\n") + 1
                    rest.clear()
                rest.append(tail)
            if any(rest):
                yield self._chunk(b"".join(rest), number)

    def _chunk(self, block: bytes, first: int) -> Scanned:
        lines = block.split(b"\n")
        part = _Part()
        if not (self._usual and self._settle(part, block, lines, first)):
            for start in range(0, len(lines), PIECE):
                piece = lines[start : start + PIECE]
                if not (self._usual and self._settle(part, b"\n".join(piece), piece, first + start)):
                    self._one_by_one(part, piece, first + start)
        return self._finish(part, len(block) + 1)

    def _settle(self, part: _Part, block: bytes, lines: list[bytes], first: int) -> bool:
        """Takes all the lines if each of them is a usual record."""
        try:
            records = [orjson.loads(line) for line in lines]
            ids = [record.get("id") for record in records]
            turns = _USUAL[self.shape](records)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return False
        ends = list(itertools.accumulate(turns.counts))
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        usual = (
            set(map(type, turns.contents)) == {str}
            and set(map(type, ids)) <= _ID_TYPES
            and not any(_holds(records, field) for field in turns.absent)
            and not any(_marked(records, field) for field in set().union(*records))
            and all(map(_in_order, {turns.roles[a:b] for a, b in spans}))
            and all(turns.contents)
            and not any(map(str.isspace, turns.contents))
            and max(map(len, turns.contents)) <= HUGE_ANSWER
            and _well_formed(block, lines, records, turns.keys)
        )
        if usual:
            self._flush_blank(part)
            part.texts += [MESSAGE.join(turns.contents[a:b]) for a, b in spans]
            part.messages += len(turns.contents)
            part.ids += ids
            part.lines += range(first, first + len(lines))
        return usual

    def _one_by_one(self, part: _Part, lines: Sequence[bytes], first: int) -> None:
        for number, line in enumerate(lines, first):
            if not line.strip():
                self._blank.append(number)
                continue
            self._flush_blank(part)
            value, findings = parse_line(line)
            if findings:
                self._add(part, number, None, findings)
            else:
                self._judge(part, value, number)

    def _flush_blank(self, part: _Part) -> None:
        """Blank lines are reported once a record follows them: those at the end of a file are nobody's concern."""
        part.findings += [(number, None, ("blank-line", "the line is empty or white space")) for number in self._blank]
        self._blank.clear()

    def _judge(self, part: _Part, record: Any, line: int) -> None:
        findings = self.task.check(record, self.shape)
        self._add(part, line, shapes.record_id(record, self.task.columns), findings)
        if not has_error(findings):
            texts = record_texts(record, self.task, self.shape)
            part.texts[-1] = MESSAGE.join(texts)
            part.messages += len(texts) - 1

    def _add(self, part: _Part, line: int, id: str | None, findings: Sequence[Finding]) -> None:
        part.texts.append("")
        part.messages += 1
        part.ids.append(id)
        part.lines.append(line)
        part.findings += [(line, id, finding) for finding in findings]

    def _finish(self, part: _Part, size: int) -> Scanned:
        joined = RECORD.join(part.texts).encode(errors="replace")
        result = sketch(joined, len(part.texts), part.messages)
        if not result.plain:
            self._find_control_characters(part)
            clean = [text.translate(_CLEAN) for text in part.texts]
            result = sketch(RECORD.join(clean).encode(errors="replace"), len(clean), len(clean))
        self._find_controls(part, joined)
        hashes = np.fromiter(map(hash, map(str, part.ids)), np.int64, len(part.ids)).view(np.uint64)
        result.rows["id"] = np.where([id is None for id in part.ids], 0, hashes) if None in part.ids else hashes
        return Scanned(findings=part.findings, rows=result.rows, bytes=size)

    def _find_control_characters(self, part: _Part) -> None:
        """Adds the findings that settling whole chunks left to the sketch."""
        told = {line for line, _, (rule, _) in part.findings if rule == "control-character"}
        for k, text in enumerate(part.texts):
            found = control_characters(text.replace(MESSAGE, ""), "the text")
            if found and part.lines[k] not in told:
                part.findings += [(part.lines[k], _text_id(part.ids[k]), finding) for finding in found]

    def _find_controls(self, part: _Part, joined: bytes) -> None:
        present = self._controls.found_in(joined)
        for k, text in enumerate(part.texts if present else ()):
            found = [control for control in present if control in text]
            if found:
                finding = ("control-token", f"the text holds {', '.join(found)}")
                part.findings.append((part.lines[k], _text_id(part.ids[k]), finding))


_LETTERS = {"system": "s", "developer": "d", "user": "u", "assistant": "a", "tool": "t"}
_ROLES = {letter: role for role, letter in _LETTERS.items()}
_SPEAKERS = {speaker: _LETTERS[role] for speaker, role in SPEAKERS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turns:
    """The messages of some records as columns."""

    counts: Iterable[int]
    """Messages of each record."""
    roles: str
    """A letter for each message."""
    contents: list[Any]
    """Text of each message; in an odd record a value of another type."""
    keys: int
    """Object keys in all records, if no value is an object but those that are messages."""
    absent: tuple[str, ...]
    """Fields that a usual record does not have."""


def _listed_turns(field: str, role: str, content: str, letters: Mapping[str, str], absent: tuple[str, ...]):
    """Reads records that hold a list of objects of exactly a role and a content.

    Only an object can be asked for a field by its name, and anything but a list of objects fails on the way, so types
    need no test here.
    """
    of_record, of_role, of_content = map(operator.itemgetter, (field, role, content))

    def read(records: list[Any]) -> _Turns:
        lists = list(map(of_record, records))
        messages = list(itertools.chain.from_iterable(lists))
        if set(map(len, messages)) != {2}:
            raise KeyError(field)
        return _Turns(
            counts=map(len, lists),
            roles="".join(map(letters.__getitem__, map(of_role, messages))),
            contents=list(map(of_content, messages)),
            keys=sum(map(len, records)) + 2 * len(messages),
            absent=absent,
        )

    return read


def _pairs(records: list[Any], prompts: list[Any], answers: list[Any], absent: tuple[str, ...]) -> _Turns:
    """Columns of records of one prompt and one answer, texts but for odd records."""
    contents = list(itertools.chain.from_iterable(zip(prompts, answers, strict=True)))
    keys = sum(map(len, records))
    return _Turns(counts=[2] * len(records), roles="ua" * len(records), contents=contents, keys=keys, absent=absent)


def _prompt_completion(records: list[Any]) -> _Turns:
    prompts, answers = ([record[field] for record in records] for field in ("prompt", "completion"))
    return _pairs(records, prompts, answers, ("tools", "system", "instruction", *_STRANGE, *UNREAD))


def _alpaca(records: list[Any]) -> _Turns:
    asked, answers = ([record[field] for record in records] for field in ("instruction", "output"))
    given = [record.get("input") for record in records]
    prompts = ["\n\n".join(filter(None, pair)) for pair in zip(asked, given, strict=True)]
    if not (all(asked) and set(map(type, given)) <= {str, type(None)}):
        raise KeyError("instruction")
    return _pairs(records, prompts, answers, ("tools", "system", "history", *_STRANGE, *UNREAD))


_STRANGE = ("messages", "conversations", "tokens", "input_ids")
"""Fields of other shapes that are looked for first."""

_USUAL = {
    Shape.MESSAGES: _listed_turns("messages", "role", "content", _LETTERS, ("tools", "system", *UNREAD)),
    Shape.SHAREGPT: _listed_turns(
        "conversations", "from", "value", _SPEAKERS, ("tools", "system", "messages", *UNREAD)
    ),
    Shape.PROMPT_COMPLETION: _prompt_completion,
    Shape.ALPACA: _alpaca,
}
"""By shape: records -> their messages as columns; fails with KeyError or TypeError where one is unusual."""


def _holds(records: list[Any], field: str) -> bool:
    return any(map(operator.contains, records, itertools.repeat(field)))


def _marked(records: list[Any], field: str) -> bool:
    """Whether a field of some records may be a mark of what trains; what the value decides is looked at only then."""
    if field in MARKS or sounds_like_mark(field):
        return True
    return may_be_mark(field) and any(is_unknown_mark(field, record.get(field)) for record in records)


_ID_TYPES = {str, int, type(None)}
_CLEAN = {ord(c): " " for c in map(chr, [*range(32), 127]) if c not in "\t\n\r"}


def _text_id(value: Any) -> str | None:
    return None if value is None else str(value)


@functools.lru_cache(maxsize=65536)
def _in_order(letters: str) -> bool:
    return "a" in letters and not check_roles([_ROLES[letter] for letter in letters])


def _well_formed(block: bytes, lines: Sequence[bytes], records: list[Any], keys: int) -> bool:
    """Whether lines hold as many keys as were parsed, none of them twice in an object, and no deep nesting.

    `keys` counts those of records and messages: where there are no others, only arrays can lie in one another.
    """
    written = _keys_in(block)
    if written == keys:
        return all(line.count(b"[") < MAX_DEPTH for line in lines)
    counts = list(map(keys_and_depth, records)) if written is not None else []
    return written == sum(count for count, _ in counts) and all(depth <= MAX_DEPTH for _, depth in counts)


def _keys_in(block: bytes) -> int | None:
    """`written_keys` for large blocks, four times as fast."""
    data = np.frombuffer(block, np.uint8)
    if data.size < 4:
        return None
    quote, slash = data == ord('"'), data == ord("\\")
    closes = quote[1:-1] & (data[2:] == ord(":"))
    escaped = closes & slash[:-2]
    loose = quote[1:-1] & (data[2:] <= ord(" ")) & ~slash[:-2]
    if loose.any() or (escaped[1:] & slash[:-3]).any():
        return written_keys(block)
    return int(np.count_nonzero(closes)) - int(np.count_nonzero(escaped))


def record_texts(record: Any, task: Task, shape: Shape) -> list[str]:
    """Texts of a record that are compared: each message; all text where the task's own templates word it."""
    if shape in (Shape.FIELDS, Shape.TOKENS):
        return [" ".join(_leaves({key: value for key, value in record.items() if key != "id"}))]
    messages = messages_of(record, shape, task.columns)
    return [message.get("content") or "" for message in messages]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)


def head_shape(
    source: JsonlSource | CompressedJsonlSource, columns: Mapping[str, str] | None, sample: int = 100
) -> Shape:
    """`shapes.detect` for a JSON lines file without building its index; `messages` where no line can be read."""
    source.check_format()
    with source.text_path.open("rb") as file:
        parsed = [parse_line(line) for line in itertools.islice(file, sample) if line.strip()]
    records = [value for value, findings in parsed if not findings and isinstance(value, dict)]
    if parsed and not records:
        return Shape.MESSAGES
    return shapes.majority(records, source.name, columns)
