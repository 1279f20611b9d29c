"""Transfer between tasks on a page: a matrix of effects, hatched where they are not clear, and the tasks' clusters."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtune.reports import page
from jaxtune.reports.heatmap import INK_TURNS
from jaxtune.reports.page import Html, Section, tag
from jaxtune.runs.sweeps import Sweep
from jaxtune.runs.transfer import Form, Matrix, read_transfer
from jaxtune.science.contrasts import Contrast
from jaxtune.science.transfer import linkage
from jaxtune.terminal.numbers import signed

PICTURE = "transfer.png"
HATCH = "background-image:repeating-linear-gradient(45deg,transparent 0 5px,rgba(128,128,128,.28) 5px 6px)"
TITLES = {
    Form.ADDED: "Co-training, added: the source's examples on top of the target's, against the target alone",
    Form.REPLACED: "Co-training, replaced: half of the target's examples replaced by the source's, against it alone",
    Form.SINGLE: "Direct: the source alone, against the neutral task alone",
    Form.SUBSETS_ADDED: "Random subsets, added: the effect of a task's presence, each with its own examples",
    Form.SUBSETS_REPLACED: "Random subsets, replaced: the effect of a task's presence at one total budget",
}


def transfer_section(sweep: Sweep) -> Section | None:
    """Every form of transfer of a sweep; None where it has none."""
    matrices = read_transfer(sweep)
    if not matrices:
        return None
    parts: list[object] = []
    for one in matrices:
        parts.append(page.figure(matrix_table(one), caption=TITLES[one.form], note=matrix_note(one)))
        parts += [tag("p", text, class_="note") for text in verdicts(one)]
    lead = (
        "Validation loss at the end of each run, nats per token; a number above 0 says that the source helps the "
        "target, orange below 0 that it harms it. The diagonal is a task's gain by its own examples over a model tuned "
        "on the neutral task. Hatched cells are not clear after Holm's adjustment over the table; seeds are the unit."
    )
    return Section("transfer", "Transfer and interference", lead, parts)


def matrix_note(matrix: Matrix) -> str:
    """Number of cells and seeds behind a matrix."""
    seeds = [one.n for one in matrix.pairs.values()]
    many = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    return f"{len(seeds)} contrasts, {many} seeds"


def matrix_table(matrix: Matrix) -> Html:
    """The matrix as a table, shaded by size; interval and adjusted p are the hover title."""
    shown = [*matrix.pairs.values(), *matrix.own.values()]
    largest = max((abs(one.mean) for one in shown), default=0.0) or 1.0
    head = [tag("th", "trained with ↓  measured on →", class_="row"), *(tag("th", name) for name in matrix.tasks)]
    rows = [tag("tr", *head)]
    for a, source in enumerate(matrix.tasks):
        cells = []
        for b in range(len(matrix.tasks)):
            one = matrix.own.get(a) if a == b else matrix.pairs.get((a, b))
            cells.append(tag("td", "–") if one is None else cell(one, largest))
        rows.append(tag("tr", tag("th", source, class_="row"), *cells))
    return tag("div", tag("table", *rows, class_="heat"), class_="scroll")


def cell(one: Contrast, largest: float) -> Html:
    """One effect."""
    shade = 0.9 * abs(one.mean) / largest
    kinds = (["below"] if one.mean < 0 else []) + (["dark"] if shade > INK_TURNS else [])
    style = f"--x:{shade:.2f}" + ("" if one.clear else f";{HATCH}")
    interval = f"{signed(one.low, 3)} to {signed(one.high, 3)}, adjusted p {one.adjusted:.2g}"
    title = f"{one.n} seeds" + (f", 95% interval {interval}" if math.isfinite(one.low) else "")
    return tag("td", signed(one.mean, 3), class_=" ".join(kinds) or None, style=style, title=title)


def verdicts(matrix: Matrix) -> list[str]:
    """Sentences about a matrix: clear help, clear conflict, clusters, fit of a subset design."""
    name = matrix.tasks
    listed = lambda cells: ", ".join(f"{name[a]} → {name[b]} {signed(one.mean, 3)}" for (a, b), one in cells) or "none"
    clear = [(pair, one) for pair, one in matrix.pairs.items() if one.clear]
    found = [
        f"Clear conflicts: {listed([(pair, one) for pair, one in clear if one.mean < 0])}. "
        f"Clear help: {listed([(pair, one) for pair, one in clear if one.mean > 0])}."
    ]
    if len(name) > 2:
        order = ", ".join(name[index] for index in linkage(matrix.means).order)
        found.append(f"Neighbours by average linkage on the negative effect: {order}.")
    for b, fit in matrix.fits.items():
        first, second = (name[index] for index in fit.pair)
        found.append(
            f"{name[b]}: the sum of effects explains {100 * fit.r2:.0f} % of the variation; furthest from it is "
            f"{first} + {second}, {signed(fit.largest_residual, 3)} nats of loss."
        )
    return found


def transfer_png(matrices: Sequence[Matrix], path: Path) -> None:
    """The matrices below one another as one PNG (160 dpi), each beside the tree of its tasks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from scipy.cluster.hierarchy import dendrogram

    count = len(matrices[0].tasks)
    size = (4.2 + 1.0 * count, (1.5 + 0.62 * count) * len(matrices))
    drawing, panels = pyplot.subplots(
        len(matrices), 2, figsize=size, squeeze=False, width_ratios=(count, 2), layout="constrained"
    )
    for (axes, side), matrix in zip(panels, matrices, strict=True):
        draw_matrix(axes, matrix)
        side.set_axis_off()
        if count > 2:
            tree = linkage(matrix.means)
            with matplotlib.rc_context({"lines.linewidth": 1.2}):
                dendrogram(
                    tree.merges, labels=list(matrix.tasks), orientation="left", ax=side, color_threshold=0,
                    above_threshold_color="#4a5361",
                )  # fmt: skip
            side.set_axis_on()
            side.set_xticks([])
            side.spines[:].set_visible(False)
            side.set_title("clusters", fontsize=10, loc="left")
    drawing.savefig(path, dpi=160)
    pyplot.close(drawing)


def draw_matrix(axes, matrix: Matrix) -> None:
    """One matrix: blue helps, orange harms, hatched is not clear."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("transfer", ["#c2571a", "#f4f6f9", "#1f6fc4"])
    values = matrix.means
    for index, one in matrix.own.items():
        values[index, index] = one.mean
    off = [abs(one.mean) for one in matrix.pairs.values()]
    largest = max(off, default=0.0) or 1.0  # own gains are often far larger and would wash out the rest
    axes.imshow(np.nan_to_num(np.clip(values, -largest, largest)), cmap=colours, vmin=-largest, vmax=largest)
    for a in range(len(matrix.tasks)):
        for b in range(len(matrix.tasks)):
            one = matrix.own.get(a) if a == b else matrix.pairs.get((a, b))
            text = "–" if one is None else f"{one.mean:+.3f}"
            axes.text(b, a, text, ha="center", va="center", fontsize=9, color="#1b1e23")
            if one is not None and not one.clear:
                mark = Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, hatch="///", ec="#9aa3af", lw=0)
                axes.add_patch(mark)
    axes.set_xticks(range(len(matrix.tasks)), matrix.tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(matrix.tasks)), matrix.tasks)
    axes.set_xlabel("measured on")
    axes.set_ylabel("trained with")
    axes.set_title(f"{matrix.form.value} (nats, hatched: not clear)", fontsize=10, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
