"""The rungs of a sweep with halving: what went on from each, and how far they rank settings as the end does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.reports import page
from jaxtune.reports.page import Column, Section, tag
from jaxtune.runs.documents import HalvingFile, read_as
from jaxtune.runs.sweeps import HALVING, Sweep
from jaxtune.storage.documents import number
from jaxtune.terminal.numbers import decimal

WEAK = 0.5
"""Kendall's tau below which the page warns."""


def agreement_lines(agreements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rank agreement of every rung with the end, in words."""
    lines = []
    for row in agreements:
        tau, over = number(row["tau"]), row["compared"]
        what = "settings" if row["settings"] == over else "runs, less the means of their seeds"
        text = f"rung {row['share']:g}: Kendall's tau with the end is {tau:.2f}, over {over} {what}"
        if math.isnan(tau):
            text = f"rung {row['share']:g}: too few settings finished to tell whether it ranks them as the end does"
        elif tau < WEAK:
            text += (
                f"; below {WEAK:g}: the rung may have dropped the best setting (choose a later one), or those that "
                "finished are too close to rank"
            )
        lines.append(text)
    return lines


def rungs_section(sweep: Sweep) -> Section | None:
    """A table of settings by rung; None where the sweep has no rungs."""
    path = sweep.path / HALVING
    if not path.is_file():
        return None
    document = read_as(path, HalvingFile)
    rungs = document["rungs"]
    settings = list(dict.fromkeys(row["setting"] for rung in rungs for row in rung["settings"]))
    losses = [{row["setting"]: row for row in rung["settings"]} for rung in rungs]
    columns = [Column("setting", number=False), *(Column(f"loss at {rung['share']:g}") for rung in rungs)]
    columns.append(Column("goes on", number=False))
    table = []
    for setting in settings:
        rows = [by_name.get(setting) for by_name in losses]
        dropped = next((rung["share"] for rung, row in zip(rungs, rows, strict=True) if row and not row["kept"]), None)
        cells = ["–" if row is None else decimal(number(row["loss"])) for row in rows]
        table.append([setting, *cells, "to the end" if dropped is None else f"no further than {dropped:g}"])
    lead = (
        f"At each rung one setting in {document['factor']:g} went on, by its mean over seeds, with all that were "
        "within a standard error of the best. "
    )
    decay = document.get("decay")
    lead += (
        "Losses at a rung are of a rate that has not decayed."
        if decay is None
        else f"Losses are of branches {100 * decay:g}% longer, on which the rate goes to zero."
    )
    notes = [tag("p", f"{line}.", class_="note") for line in agreement_lines(document["rank_agreement"])]
    return Section("rungs", "Rungs", lead, [page.table(columns, table), *notes])
