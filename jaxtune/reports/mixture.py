"""Natural against sampled shares: the mixture section of a page, and several mixtures side by side."""

import math
from collections.abc import Sequence

from jaxtune.mixture.allocation import Allocation
from jaxtune.mixture.variants import Alternative
from jaxtune.reports import page
from jaxtune.reports.bars import PairedBar, paired_bars
from jaxtune.reports.charts import Series, Style, line_chart
from jaxtune.reports.drawing import XAxis, YAxis, shorten
from jaxtune.reports.page import TASKS_DRAWN, Column, Html, Section, join, tag
from jaxtune.runs.history import TaskShare
from jaxtune.storage.documents import Json, number
from jaxtune.terminal.numbers import axis_percent, percent

# One mixture


def mixture_section(tasks: Sequence[TaskShare], mixed: Json, config: Json) -> Section:
    """Bars and table of `mixture.json`; `config` is the mixture part of the run's config."""
    entries = [
        ("fill", "--c:var(--natural)", "natural share: the task's part of all usable examples"),
        ("fill", page.colour(0), "sampled share: its part of the examples trained on"),
    ]
    bars = page.wide_figure(lambda width: paired_bars(share_bars(tasks), width=width))
    parts: list[object] = [page.legend(entries), bars]
    if len(tasks) > TASKS_DRAWN:
        parts.append(tag("p", f"{len(tasks) - TASKS_DRAWN:,} more tasks are in the table.", class_="note"))
    parts.append(tag("div", mixture_table(tasks), style="margin-top:22px"))
    if mixed.get("stages"):
        parts += [tag("h3", "Stages"), stage_table([one.task for one in tasks], mixed["stages"])]
    notes = [". ".join(text[0].upper() + text[1:] for text in about(mixed)), left_out(tasks)]
    parts += [tag("p", note + ".", class_="note") for note in notes if note]
    return Section("mixture", "Mixture", mixture_lead(tasks, mixed, config), parts)


def mixture_lead(tasks: Sequence[TaskShare], mixed: Json, config: Json) -> str:
    """Sentence about a mixture: how many examples were drawn, by which rule."""
    drawn = mixed.get("budget") or sum(one.count for one in tasks)
    text = f"{sum(usable(one) for one in tasks):,} usable examples; the plan draws {drawn:,}"
    if mixed.get("strategy") == "temperature":
        text += f" with shares proportional to size^(1/{number(mixed.get('temperature')):g})"
    if config.get("policy") not in (None, "constant"):
        text += f", in stages whose shares follow the policy {page.words(config['policy'])}"
    if mixed.get("unit") not in (None, "examples"):
        text += f", measured in {page.words(mixed['unit'])}"
    repeats = config.get("max_repeats")
    if isinstance(repeats, int | float):
        text += f", each at most {repeats:g} times"
    return text + "."


def about(mixed: Json) -> list[str]:
    """Notes on the totals of a mixture."""
    notes = []
    if mixed.get("effective_tasks") is not None:
        effective = number(mixed["effective_tasks"])
        notes.append(f"{effective:.2f} effective tasks (exponential of the entropy of the shares)")
    if mixed.get("total_variation") is not None:
        shares = [one["shares"] for one in mixed.get("stages", ())]
        what = "stages, caps and rounding" if shares[1:] and shares[-1] != shares[0] else "caps and rounding"
        notes.append(f"{what} moved {percent(number(mixed['total_variation']))} of the run between tasks")
    if mixed.get("fill") is not None:
        notes.append(f"rows of {mixed.get('seq_len', '?')} tokens are {percent(number(mixed['fill']))} full")
    return notes


def left_out(tasks: Sequence[TaskShare]) -> str:
    """Table of examples that were cut or left out, task by task."""
    parts = []
    for one in tasks:
        counts = {reason: n for reason, n in one.extra.get("outcomes", {}).items() if reason != "kept" and n}
        parts += [f"{one.task} {n:,} {reason}" for reason, n in counts.items()]
    more = f", and {len(parts) - 20:,} more" if len(parts) > 20 else ""
    return "Not used as written: " + "; ".join(parts[:20]) + more if parts else ""


def usable(one: TaskShare) -> int:
    """Examples that take part."""
    return one.usable or one.size


def share_bars(tasks: Sequence[TaskShare]) -> list[PairedBar]:
    """The natural and the sampled share of examples, task by task."""
    total, drawn = sum(usable(one) for one in tasks), sum(one.count for one in tasks)
    bars = []
    for index, one in enumerate(tasks[:TASKS_DRAWN]):
        sampled = one.count / drawn if drawn else one.probability
        note = f"{one.epochs:.2f} epochs{', capped' if one.capped else ''}" if math.isfinite(one.epochs) else ""
        title = f"{one.task}: {usable(one):,} usable, {one.count:,} drawn, nominal share {percent(one.probability)}"
        natural = usable(one) / total if total else 0.0
        colour = page.colour(index)
        bars.append(PairedBar(name=one.task, first=natural, second=sampled, colour=colour, note=note, title=title))
    return bars


def mixture_table(tasks: Sequence[TaskShare]) -> Html:
    """Every task's sizes, shares and tokens."""
    columns = [
        Column("Task", number=False),
        Column("size", title="Examples after the length policy and the filter for those without a trained token"),
        Column("usable", title="Those that take part, after max_examples"),
        Column("nominal", title="Share that the mixture asks for, in its unit"),
        Column("sampled", title="Share that the plan holds, in the same unit"),
        Column("drawn", title="Examples trained on, repeats included"),
        Column("epochs", title="Drawn / usable"),
        Column("prompt tokens"),
        Column("response tokens"),
        Column("trained tokens"),
        Column("of all trained", title="The task's share of all trained tokens"),
    ]
    rows = [table_row(index, one) for index, one in enumerate(tasks)]
    sums = {
        name: sum(getattr(one, name) for one in tasks)
        for name in ("size", "usable", "count", "prompt_tokens", "response_tokens", "loss_tokens")
    }
    epochs = f"{sums['count'] / sums['usable']:.2f}" if sums["usable"] else "–"
    total = ["All", f"{sums['size']:,}", f"{sums['usable']:,}", "", "", f"{sums['count']:,}", epochs]
    total += [*(f"{sums[name]:,}" for name in ("prompt_tokens", "response_tokens", "loss_tokens")), ""]
    return page.table(columns, rows, total=total)


def stage_table(tasks: Sequence[str], stages: Sequence[Json]) -> Html:
    """Share of each task and its examples drawn, stage by stage; of a run that goes on, as far as it is planned."""
    shown = tasks[:TASKS_DRAWN]
    columns = [Column("Stage", number=False), Column("steps"), *(Column(task) for task in shown)]
    rows = []
    for index, one in enumerate(stages, start=1):
        drawn = [f"{percent(one['shares'][task])} · {one['drawn'][task]['examples']:,}" for task in shown]
        rows.append([f"{index}", f"{one['first_step']:,} to {one['last_step']:,}", *drawn])
    note = tag("p", "The share that a stage asks for, in the mixture's unit, and the examples it draws.", class_="note")
    return join([page.table(columns, rows), note])


def table_row(index: int, one: TaskShare) -> list[object]:
    """A task's line of the table."""
    capped = [" ", tag("span", "cap", class_="tag", title="At its repetition cap")] if one.capped else []
    return [
        page.swatch(index, one.task),
        f"{one.size:,}",
        f"{one.usable:,}",
        percent(one.probability),
        percent(one.realised),
        f"{one.count:,}",
        join([f"{one.epochs:.2f}", *capped]),
        f"{one.prompt_tokens:,}",
        f"{one.response_tokens:,}",
        f"{one.loss_tokens:,}",
        percent(one.loss_token_share),
    ]


# Several mixtures


def alternatives_section(option: str, found: Sequence[Alternative]) -> Section:
    """Shares and epochs of every task over the values, drawn and as a table."""
    kept = [(one, one.allocation) for one in found if one.allocation is not None]
    parts: list[object] = []
    if kept:
        tasks = list(kept[0][1].sizes)
        ticks = [(float(index), one.value) for index, (one, _) in enumerate(kept)]
        charts = [
            ("Sampled share", lambda a, t: a.realised[t], axis_percent),
            ("Epochs", lambda a, t: a.epochs[t], None),
        ]
        drawn = []
        for caption, pick, form in charts:
            series = [
                Series(
                    name=shorten(task, 14),
                    x=[place for place, _ in ticks],
                    y=[pick(allocation, task) for _, allocation in kept],
                    colour=page.colour(index),
                    style=Style.POINTS,
                )
                for index, task in enumerate(tasks[:TASKS_DRAWN])
            ]
            chart = line_chart(
                series,
                width=450,
                height=260,
                x=XAxis(label=option, ticks=ticks),
                y=YAxis(form=form, from_zero=True),
                end_labels=True,
            )
            note = f"by {page.words(option)}"
            drawn.append(tag("div", page.figure(Html(chart), caption=caption, note=note)))
        parts = [
            tag("div", *drawn, class_="grid2"),
            tag("div", alternatives_table(option, kept), style="margin-top:22px"),
        ]
    parts += [tag("p", f"{option} {one.value}: {one.problem}", class_="note") for one in found if one.problem]
    lead = f"The same tasks and the same number of examples under other values of {page.words(option)}."
    return Section("compare", f"Other values of {page.words(option)}", lead, parts)


def alternatives_table(option: str, kept: Sequence[tuple[Alternative, Allocation]]) -> Html:
    """Share and epochs of each task under each value."""
    columns = [Column("Task", number=False)]
    for _ in kept:
        columns += [Column("share"), Column("epochs")]
    groups = [("", 1), *((f"{page.words(option)} {one.value}", 2) for one, _ in kept)]
    rows = []
    for index, task in enumerate(kept[0][1].sizes):
        row: list[object] = [page.swatch(index, task)]
        for _, allocation in kept:
            epochs = f"{allocation.epochs[task]:.2f}"
            capped = tag("span", " cap", class_="dim", title="At its repetition cap") if allocation.capped[task] else ""
            row += [percent(allocation.realised[task]), join([epochs, capped])]
        rows.append(row)
    total: list[object] = ["Effective tasks"]
    for _, allocation in kept:
        total += [f"{allocation.effective_tasks:.2f}", ""]
    return page.table(columns, rows, total=total, groups=groups)
