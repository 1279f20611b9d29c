"""Problems of records: the table of rules, one problem, and a log that collects many before anything is raised."""

import collections
import dataclasses
import enum
import traceback
from collections.abc import Iterable, Sequence

from jaxtune.errors import UserError


class Severity(enum.Enum):
    """Whether a problem keeps a run from starting."""

    ERROR = "error"
    """The record cannot be trained on as it is; training stops before its first step."""
    WARNING = "warning"
    """The record can be trained on, but few people would want it so."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that data must (error) or should (warning) satisfy, and what to do when it does not."""

    severity: Severity
    remedy: str


def _error(remedy: str) -> Rule:
    return Rule(Severity.ERROR, remedy)


def _warning(remedy: str) -> Rule:
    return Rule(Severity.WARNING, remedy)


SHOWN = 20
"""Problems that the message of one error spells out."""

RULES: dict[str, Rule] = {
    # The file.
    "unreadable-file": _error("check the path and the permissions"),
    "empty-file": _error("write one JSON object per line"),
    "byte-order-mark": _error("save the file as UTF-8 without a byte order mark (sed -i '1s/^\\xEF\\xBB\\xBF//' FILE)"),
    "utf-16": _error("convert the file to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    "compressed": _error("rename the file to .jsonl.gz or .jsonl.zst, or decompress it"),
    "json-array-file": _error("write one object per line instead of one array (jq -c '.[]')"),
    "damaged-file": _error("make the file again, or fetch it again"),
    "too-large": _error("if it is what you mean, decompress it yourself and name the decompressed file"),
    # The line.
    "blank-line": _warning("remove the line; it is skipped"),
    "not-utf-8": _error("save the file as UTF-8"),
    "invalid-json": _error("write one JSON object per line, with double quotes (json.dumps, not str)"),
    "nan-literal": _error("JSON has no NaN or Infinity (RFC 8259): write a number or null, or leave the field out"),
    "large-integer": _error("readers keep only the first digits of it: write it as a string"),
    "lone-surrogate": _error("half of a surrogate pair is not text: repair or remove the character"),
    "duplicate-key": _error("give each key once; readers differ in which value they keep"),
    "nested-too-deeply": _error("flatten the record, or write the deep part as a string"),
    "unwritable": _error("text must be valid Unicode, and a value must end"),
    "not-an-object": _error("each record must be an object with named fields"),
    # The record.
    "unknown-shape": _error(
        "give messages, conversations, prompt and completion, instruction and output, or tokens, "
        "or map your columns with columns="
    ),
    "mixed-shapes": _error("keep one record shape per file; split the file, or convert the record"),
    "missing-field": _error("add the field, or remove the record"),
    "wrong-type": _error("give the field the type that is named"),
    "nested-content": _error("content must be one string: join the text parts before training"),
    "unread-content": _error("text and tool calls alone are trained: give it so, or remove the field or the record"),
    "unknown-role": _error("use system, developer, user, assistant or tool"),
    "role-order": _error("order: an optional system message, then user and assistant in turn, ending with assistant"),
    "no-assistant": _error("add the assistant's answer, or remove the record: there is nothing to train on"),
    "empty-assistant": _error("write the answer, give the message weight 0, or remove the record"),
    "bad-weight": _error("a weight is true, false, 0, or a number from 1e-6 to 1e6, on an answer or on a record"),
    "unknown-mark": _error("call it train, trainable, loss, loss_mask or weight, or rename it if it is no mark"),
    "no-trained-token": _error("give at least one token or message a weight above 0, or remove the record"),
    "bad-tokens": _error("tokens are integers from 0 to 2^31 - 1, with one weight each"),
    "decode-failed": _error("correct the decode function, or the record that it cannot read"),
    "template-failed": _error("correct the template function, or the record that it cannot word"),
    "bad-id": _warning("an id is a string or a whole number; without one, problems name only the line"),
    "repeated-role": _warning("join the two messages: many chat templates refuse two turns of one role in a row"),
    "empty-message": _warning("write the message, or remove it"),
    "unknown-message-field": _warning("remove or rename the field; it is ignored"),
    "control-character": _warning("remove the character; it is trained on as it stands"),
    "huge-answer": _warning("check the answer; most of it will be cut or dropped at the row's length"),
    # Between records.
    "duplicate-id": _warning("give every record its own id"),
    "exact-duplicate": _warning("remove one of the two; the repeat weighs like a second epoch"),
    "near-duplicate": _warning("keep one of the two, unless the difference is the point"),
    "leaked-duplicate": _warning("remove it from one of the splits: scores on it do not measure generalisation"),
    "leaked-prompt": _warning("remove it from one of the splits: the same question is asked in both"),
    # With a tokenizer.
    "control-token": _warning("remove the marker from the text; it is encoded as plain text, never as a control token"),
    "not-renderable": _error("choose another chat template, or change the record"),
    "supervision": _error("correct the chat template, or the record"),
    "too-long": _error("raise --data.seq-len, shorten the record, or choose another --data.length-policy"),
    "set-aside": _warning(
        "nothing, or take reasoning out of all turns (--data.reasoning drop), or use another template"
    ),
    "left-out": _warning("raise --data.seq-len, shorten the record, or choose another --data.length-policy"),
    "prompt-cut": _warning("raise --data.seq-len, or shorten the record"),
    "answer-cut": _warning("raise --data.seq-len, shorten the record, or drop it (--data.length-policy)"),
    "few-loss-tokens": _warning("look at the task's answers with `jaxtune preview`; it will hardly train"),
    # With a config.
    "no-usable-example": _error("check the task's files, raise --data.seq-len, or cut with --data.length-policy"),
    "question-unusable": _error("correct or remove the test record, or switch generation off (--eval.no-generate)"),
    "no-validation": _warning("give the task a validation split: without one nothing shows when it stops learning"),
    "not-asked": _warning("give test records with text: a prompt and its answer, or messages"),
    "config-refused": _error("correct the config, or give the option on the command line"),
}
"""Every rule by name."""


Finding = tuple[str, str]
"""(rule, message), before it is known where in which file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule at one place."""

    rule: str
    """A key of `RULES`."""
    message: str
    """What was found, in one sentence."""
    file: str = ""
    line: int | None = None
    """1-based line (JSON lines) or row (other formats); None when the whole file or task is meant."""
    id: str | None = None
    """The record's own id, where it has one."""
    advice: str | None = None
    """What to do, where that is known better than the rule's remedy says."""

    @property
    def severity(self) -> Severity:
        return RULES[self.rule].severity

    @property
    def remedy(self) -> str:
        return self.advice or RULES[self.rule].remedy

    @property
    def place(self) -> str:
        """file:line"""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        record = "" if self.id is None else f" (id {self.id})"
        return f"{self.place}{record}: {self.rule}: {self.message}; {self.remedy}"


class RecordError(UserError):
    """A record, or a file of records, that cannot be used; carries the problems so that many can be shown at once."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self):
        return RecordError, (self.problems,)


def has_error(findings: Iterable[Finding]) -> bool:
    """Whether there is an error among findings."""
    return any(RULES[rule].severity is Severity.ERROR for rule, _ in findings)


def raise_errors(findings: Sequence[Finding], *, file: str, line: int | None, id: str | None) -> None:
    """Raises `RecordError` when there is an error among the findings of one record."""
    errors = [finding for finding in findings if RULES[finding[0]].severity is Severity.ERROR]
    if errors:
        raise RecordError(Problem(rule=r, message=m, file=file, line=line, id=id) for r, m in errors)


INTERRUPTS = (KeyboardInterrupt, GeneratorExit)
"""What ends a user's function without being its fault; all else that it raises, `sys.exit` too, is a problem of it."""


def said_by(error: BaseException) -> str:
    """An exception of a user's function in one line: its kind, its text, and the line in the file of that function."""
    return f"{type(error).__name__}: {error}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """` (file:line)` of the line in a user's function that raised; empty where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is our call
    lines = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""


class ProblemLog:
    """Gathers problems, so that all are shown at once: counts all, keeps the first `limit` of each rule."""

    def __init__(self, limit: int = SHOWN):
        self.limit = limit
        self.kept: list[Problem] = []
        """The first of each rule, in the order in which they were found."""
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.counts[problem.rule] += 1
            if self.counts[problem.rule] <= self.limit:
                self.kept.append(problem)

    def count(self, severity: Severity) -> int:
        """Number of problems of a severity that were added."""
        return sum(count for rule, count in self.counts.items() if RULES[rule].severity is severity)

    @property
    def errors(self) -> int:
        """Number of errors that were added."""
        return self.count(Severity.ERROR)

    def raise_if_any(self, what: str = "the data") -> None:
        """Raises one `UserError` with the first errors and the counts of all, if there was an error."""
        if not self.errors:
            return
        kept = [problem for problem in self.kept if problem.severity is Severity.ERROR][:SHOWN]
        shown = "\n".join(f"  {problem}" for problem in kept)
        more = self.errors - len(kept)
        errors = [(rule, n) for rule, n in self.counts.most_common() if RULES[rule].severity is Severity.ERROR]
        counts = ", ".join(f"{rule} {count}" for rule, count in errors)
        tail = f"\n  ... and {more} more" if more else ""
        raise UserError(
            f"{self.errors} problem{'s' * (self.errors != 1)} in {what}; nothing was trained.\n{shown}{tail}\n"
            f"By rule: {counts}. `jaxtune validate CONFIG` lists every one."
        )
