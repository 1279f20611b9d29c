"""The report of a validation: the files that were read, and every problem in them."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from jaxtune.tasks.problems import RULES, Problem, ProblemLog, Severity

KEPT = 10_000
"""Problems kept of each rule; all are counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSummary:
    """One file that was read."""

    file: str
    task: str
    split: str
    shape: str | None
    """How its records spell a conversation; None when that could not be told."""
    records: int
    bytes: int


@dataclasses.dataclass(kw_only=True)
class Report:
    """Findings of `validate_files` and `validate_tasks`."""

    log: ProblemLog = dataclasses.field(default_factory=lambda: ProblemLog(KEPT))
    files: list[FileSummary] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    """What was not looked at, and why."""
    seconds: float = 0.0

    def add(self, *problems: Problem) -> None:
        self.log.add(problems)

    @property
    def problems(self) -> list[Problem]:
        """The first of each rule, in the order in which they were found."""
        return self.log.kept

    @property
    def counts(self) -> Mapping[str, int]:
        """All problems, by rule."""
        return self.log.counts

    @property
    def num_errors(self) -> int:
        return self.log.errors

    @property
    def num_warnings(self) -> int:
        return self.log.count(Severity.WARNING)

    @property
    def records(self) -> int:
        return sum(file.records for file in self.files)

    @property
    def rules(self) -> list[str]:
        """The broken rules, errors first, then by count."""
        return sorted(self.counts, key=lambda rule: (RULES[rule].severity.value, -self.counts[rule], rule))

    def first(self, limit: int | None) -> list[Problem]:
        """The first problems of every rule in turn, errors first; at most `limit` (None: all that were kept)."""
        by_rule = {rule: [p for p in self.problems if p.rule == rule] for rule in self.rules}
        turns = itertools.chain.from_iterable(itertools.zip_longest(*by_rule.values()))
        chosen = set(map(id, itertools.islice((p for p in turns if p is not None), limit)))
        return [p for problems in by_rule.values() for p in problems if id(p) in chosen]

    def to_json(self, limit: int | None = None) -> dict[str, Any]:
        """The report in plain JSON types, with at most `limit` problems."""
        shown = self.first(limit)
        return {
            "ok": not self.num_errors,
            "errors": self.num_errors,
            "warnings": self.num_warnings,
            "records": self.records,
            "seconds": round(self.seconds, 3),
            "files": [dataclasses.asdict(file) for file in self.files],
            "counts": {
                rule: {"severity": RULES[rule].severity.value, "count": self.counts[rule], "remedy": RULES[rule].remedy}
                for rule in self.rules
            },
            "problems": [
                {**dataclasses.asdict(problem), "severity": problem.severity.value, "remedy": problem.remedy}
                for problem in shown
            ],
            "not_shown": sum(self.counts.values()) - len(shown),
            "notes": self.notes,
        }
