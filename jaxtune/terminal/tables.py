"""Tables for the terminal; what they show is plain data, which `--json` prints as it is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxtune.storage.documents import number
from jaxtune.terminal.foreign import TextConsole
from jaxtune.terminal.numbers import decimal, duration, percent, quantity, score, whole


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> Table:
    """A table whose first `text_columns` columns are text and the rest numbers, set right-aligned."""
    drawn = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index < text_columns else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return drawn


def console() -> Console:
    """Standard output; as wide as its tables need when it is not a terminal, so that nothing is cut in a pipe."""
    out = TextConsole(highlight=False)
    return out if out.is_terminal else TextConsole(highlight=False, width=200)


def mixture_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Sizes, shares, counts and epochs of a mixture; columns that no row has are left out."""
    total = sum(int(row["size"]) for row in rows)
    wanted = {
        "size": ("size", lambda row: whole(row["size"])),
        "usable": ("usable", lambda row: whole(row["usable"])),
        "natural": ("natural", lambda row: percent(int(row["size"]) / total if total else 0.0)),
        "probability": ("nominal", lambda row: percent(row["probability"], 2)),
        "realised": ("sampled", lambda row: percent(row["realised"], 2)),
        "count": ("drawn", lambda row: whole(row["count"])),
        "epochs": ("epochs", lambda row: decimal(row["epochs"], 2)),
        "tokens": ("tokens", lambda row: whole(row["tokens"])),
        "loss_tokens": ("trained tokens", lambda row: whole(row["loss_tokens"])),
        "loss_token_share": ("of all trained", lambda row: percent(row["loss_token_share"])),
        "capped": ("", lambda row: "cap" if row["capped"] else ""),
    }
    shown = [key for key in wanted if key == "natural" or any(row.get(key) is not None for row in rows)]
    columns = ["task", *(wanted[key][0] for key in shown)]
    return table("", columns, [[row["task"], *(wanted[key][1](row) for key in shown)] for row in rows])


def print_mixture(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the mixture's table and its totals."""
    out = console()
    out.print(mixture_table(rows))
    counts = [int(row["count"]) for row in rows if row.get("count") is not None]
    sizes = sum(int(row["size"]) for row in rows)
    out.print(f"[dim]{sizes:,} examples" + (f", {sum(counts):,} drawn" if counts else "") + "[/dim]")


def scores_table(result: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Table:
    """Validation loss and scores by task, with their means; next to those of `before` where given."""
    sides = [side for side in (before, result) if side]
    tasks = list(
        dict.fromkeys(task for side in sides for name in ("task_loss", "task_score") for task in side.get(name, {}))
    )
    metrics = list(
        dict.fromkeys(m for side in sides for score in side.get("task_score", {}).values() for m in score if m != "n")
    )
    named = {"loss": "task_loss", "prompt loss": "task_prompt_loss"}  # the second one where prompts train
    losses = {label: key for label, key in named.items() if any(side.get(key) for side in sides)}
    when = ["before", "after"] if len(sides) == 2 else [""]
    columns = ["task"] + [f"{label} {name}".strip() for label in losses for name in when]
    columns += [f"{metric.replace('_', ' ')} {name}".strip() for metric in metrics for name in when]
    columns += ["questions"] if metrics else []
    rows: list[list[object]] = []
    for task in tasks:
        row: list[object] = [task]
        row += [decimal(side.get(key, {}).get(task)) for key in losses.values() for side in sides]
        row += [score_cell(side, task, metric, interval=len(sides) == 1) for metric in metrics for side in sides]
        rows.append(row + ([whole(result.get("task_score", {}).get(task, {}).get("n"))] if metrics else []))
    total: list[object] = [Text("mean of tasks", style="bold")]
    total += [decimal(mean(side.get(key, {}).values())) for key in losses.values() for side in sides]
    total += [
        score(metric, mean(s.get(metric) for s in side.get("task_score", {}).values()))
        for metric in metrics
        for side in sides
    ]
    return table("", columns, [*rows, total + ([""] if metrics else [])])


def score_cell(side: Mapping[str, Any], task: str, metric: str, *, interval: bool) -> str:
    """A score of a task, and its interval where asked for and known."""
    text = score(metric, side.get("task_score", {}).get(task, {}).get(metric))
    low, high = side.get("task_interval", {}).get(task, {}).get(metric, (math.nan, math.nan))
    known = interval and math.isfinite(low)
    return f"{text} ({score(metric, low)} to {score(metric, high)})" if known else text


def mean(values: Any) -> float:
    """Mean of what was measured."""
    kept = [one for value in values if math.isfinite(one := number(value))]
    return math.fsum(kept) / len(kept) if kept else math.nan


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print losses and scores by task, and what lm-eval measured."""
    if result.get("task_loss") or result.get("task_score"):
        console().print(scores_table(result))
    print_harness([result])


def print_harness(sides: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of lm-eval's tasks, of one side or before and after; nothing where there are none."""
    found = [side.get("lm_eval", {}) for side in sides]
    names = dict.fromkeys((task, name) for side in found for task, scores in side.items() for name in scores)
    shown = [(task, name) for task, name in names if name != "n" and "_stderr" not in name]
    rows = [[task, name, *(harness_cell(side.get(task, {}), name) for side in found)] for task, name in shown]
    if rows:
        when = ["before", "after"] if len(found) == 2 else ["value"]
        console().print(table("", ["lm-eval task", "metric", *when], rows, text_columns=2))


def harness_cell(scores: Mapping[str, Any], metric: str) -> str:
    """A metric of a task with its standard error; the reason where the task failed."""
    if metric == "error":
        return str(scores.get("error", ""))
    name, space, filtered = metric.partition(" ")
    error = scores.get(f"{name}_stderr{space}{filtered}")
    return decimal(scores.get(metric)) + ("" if error is None else f" ± {decimal(error)}")


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print how a run ended and what it reached (the contents of `summary.json`)."""
    out = console()
    if summary.get("after"):
        out.print(scores_table(summary["after"], summary.get("before")))
        print_harness([side for side in (summary.get("before"), summary["after"]) if side])
    best = summary.get("best", {})
    parts = [f"{str(summary['status']).replace('_', ' ')} after {summary['steps']:,} steps"]
    if best.get("step", -1) >= 0:
        parts.append(
            f"best validation at step {best['step']:,} ({best['metric'].replace('_', ' ')} {decimal(best['value'])})"
        )
    parts.append(f"{quantity(summary.get('tokens', math.nan))} tokens in {duration(float(summary['seconds']))}")
    if best.get("step", -1) < 0 and summary.get("exported_step") is not None:
        validated = any("loss" in summary.get(when, {}) for when in ("before", "after"))
        why = "no validation had a finite loss" if validated else "there was no validation"
        parts.append(f"exported step {summary['exported_step']:,}, the last: {why}")
    if summary.get("skipped_steps"):
        parts.append(f"{summary['skipped_steps']:,} updates skipped")
    out.print(", ".join(parts), markup=False)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values in two columns; nested values are indented below their name."""
    out = console()
    rows = list(_fact_rows(facts, ""))
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        out.print(Text.assemble((f"{name:<{width}}  ", "dim"), value), soft_wrap=True)


def _fact_rows(facts: Mapping[str, Any], indent: str):
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}", ""
            yield from _fact_rows(value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{indent}{name}", f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text
