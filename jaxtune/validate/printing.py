"""A validation report in the terminal."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jaxtune.tasks.problems import RULES, Severity
from jaxtune.terminal.foreign import TextConsole
from jaxtune.validate.report import Report


def print_report(report: Report, *, limit: int | None = 20, console: Console | None = None) -> None:
    """Prints files, counts by rule with remedies, and the first problems."""
    console = console or TextConsole(highlight=False)
    console.print(_file_table(report))
    if report.counts:
        console.print(_rule_table(report))
    shown = report.first(limit)
    for problem in shown:
        style = "red" if problem.severity is Severity.ERROR else "yellow"
        id = "" if problem.id is None else f" (id {problem.id})"
        console.print(Text.assemble((problem.place, "bold"), id, " ", (problem.rule, style), " ", problem.message))
    hidden = sum(report.counts.values()) - len(shown)
    if hidden:
        console.print(f"... and {hidden:,} more; --limit shows more of them, --json gives them to programs")
    for note in report.notes:
        console.print(f"Note: {note}")
    verdict = (
        "Nothing to correct."
        if not report.counts
        else f"{report.num_errors:,} errors, {report.num_warnings:,} warnings"
    )
    console.print(f"{report.records:,} records in {len(report.files)} files, {report.seconds:.1f} s. {verdict}")


def _file_table(report: Report) -> Table:
    table = Table(
        "file", "split", "shape", Column("records", justify="right"), Column("MB", justify="right"), box=SIMPLE
    )
    for file in report.files:
        size = f"{file.bytes / 1e6:.1f}" if file.bytes else ""
        table.add_row(Text(file.file), file.split, file.shape or "?", f"{file.records:,}", size)
    return table


def _rule_table(report: Report) -> Table:
    table = Table("", "rule", Column("count", justify="right"), "what to do", box=SIMPLE)
    for rule in report.rules:
        severity = RULES[rule].severity
        style = "red" if severity is Severity.ERROR else "yellow"
        table.add_row(Text(severity.value, style), rule, f"{report.counts[rule]:,}", Text(RULES[rule].remedy))
    return table
