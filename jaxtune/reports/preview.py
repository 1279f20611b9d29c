"""The preview of a run's training data as one self-contained page."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.mixture import Alternative
from jaxtune.reports import page
from jaxtune.reports.bars import histogram
from jaxtune.reports.drawing import XAxis
from jaxtune.reports.mixture import alternatives_section, mixture_section
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, Stat, tag
from jaxtune.runs.history import task_shares
from jaxtune.storage.documents import Json
from jaxtune.terminal.numbers import percent, quantity


def render(data: Json, compared: tuple[str, Sequence[Alternative]] | None = None) -> str:
    """The page of `jaxtune.preview.gather`'s data; `compared` adds other values of a mixture option."""
    tasks = task_shares(data["mixture"]["tasks"])
    order = {task: index for index, task in enumerate(data["lengths"]["tasks"])}
    sections = [mixture_section(tasks, data["mixture"], data["config"].get("mixture", {}))]
    if compared is not None:
        sections.append(alternatives_section(*compared))
    sections += [
        lengths_section(data["lengths"], order),
        page.examples_section(data["samples"], order),
        sources_section(data),
    ]
    mixed = data["mixture"]
    lead = f"{len(tasks)} task{'s' if len(tasks) != 1 else ''} for {data['facts']['Model']}, before any training."
    return page.page(
        str(data["config"].get("name", "preview")),
        kicker="jaxtune preview",
        lead=lead,
        top=page.stats(headline(mixed)),
        sections=sections,
        foot="Written by jaxtune from the resolved config, the tokenised data and the plan",
    )


def headline(mixed: Json) -> list[Stat]:
    """Examples, steps, tokens, fill."""
    tokens = sum(row["tokens"] for row in mixed["tasks"])
    trained = sum(row["loss_tokens"] for row in mixed["tasks"])
    return [
        Stat("Examples", f"{mixed['examples']:,}", "drawn, repeats included"),
        Stat("Steps", f"{mixed['steps']:,}", f"of {mixed['rows_per_step']:,} rows of {mixed['seq_len']:,} tokens"),
        Stat("Tokens", quantity(tokens), f"{percent(trained / tokens if tokens else 0.0)} carry loss"),
        Stat("Fill", percent(mixed["fill"]), "of the slots hold tokens"),
    ]


def lengths_section(lengths: Json, order: Mapping[str, int]) -> Section:
    """Histograms of tokens and trained tokens per example, on one axis for all tasks."""
    parts: list[object] = [quantile_table(lengths, order)]
    for key, title in (("tokens", "Tokens per example"), ("loss_tokens", "Trained tokens per example")):
        panels = []
        for task, spread in list(lengths["tasks"].items())[:TASKS_DRAWN]:
            marks = [(float(lengths["seq_len"]), "row")] if key == "tokens" else []
            drawing = histogram(
                spread[key]["counts"],
                lengths["edges"][key],
                width=250,
                height=130,
                colour=page.colour(order[task]),
                x=XAxis(label="tokens", named=False),
                marks=[mark for mark in marks if mark[0] <= lengths["edges"][key][-1]],
            )
            panels.append(page.figure(Html(drawing), caption=page.swatch(order[task], task)))
        parts += [tag("h3", title), tag("div", *panels, class_="grid4")]
    if len(lengths["tasks"]) > TASKS_DRAWN:
        parts.append(tag("p", f"{len(lengths['tasks']) - TASKS_DRAWN:,} more tasks are in the table.", class_="note"))
    lead = "Usable examples in every wording, each counted once, whatever the mixture draws."
    return Section("lengths", "Lengths", lead, parts)


def quantile_table(lengths: Json, order: Mapping[str, int]) -> Html:
    """Median, 95th percentile and maximum of both counts."""
    columns = [Column("Task", number=False)]
    columns += [Column(name) for name in ("mean", "median", "95%", "longest")] * 2
    rows = [
        [page.swatch(order[task], task)]
        + [f"{spread[key][name]:,.0f}" for key in ("tokens", "loss_tokens") for name in ("mean", "p50", "p95", "max")]
        for task, spread in lengths["tasks"].items()
    ]
    return page.table(columns, rows, groups=[("", 1), ("tokens", 4), ("trained tokens", 4)])


def sources_section(data: Json) -> Section:
    """Section of the data: their sources, how they are read and rendered."""
    columns = [Column(name, number=False) for name in ("Task", "Source", "Record shape")]
    columns += [Column("records"), Column("wordings")]
    rows: list[Sequence[Any]] = [
        [one["task"], one["source"], one["shape"], f"{one['records']:,}", f"{one['wordings']:,}"]
        for one in data["sources"]
    ]
    parts = [page.facts(data["facts"].items()), page.table(columns, rows)]
    parts.append(page.details("Configuration", tag("pre", page.pretty(data["config"]))))
    return Section("sources", "Sources and rendering", "", parts)
