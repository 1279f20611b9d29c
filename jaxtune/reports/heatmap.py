"""Two-way grids of means, as a table on a page and as a picture for documents."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxtune.reports.page import Html, join, tag
from jaxtune.terminal.numbers import Format

INK_TURNS = 0.68
"""Shade above which a cell's text takes the light ink."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Means over a two-way grid with their spread (NaN: none) and the number of runs behind each."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    row_label: str
    column_label: str
    mean: Float[np.ndarray, "rows columns"]
    spread: Float[np.ndarray, "rows columns"]
    higher_is_better: bool
    form: Format
    framed: bool = True
    """Whether the best cell is framed."""
    links: Mapping[tuple[int, int], Sequence[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    """(seed, address) of the pages of each cell's runs."""

    def shade(self, value: float) -> float:
        """Place of the value between the worst (0) and the best (1) of the grid."""
        low, high = np.nanmin(self.mean), np.nanmax(self.mean)
        share = (value - low) / (high - low) if high > low else 0.5
        return float(share if self.higher_is_better else 1 - share)

    @property
    def best(self) -> tuple[int, int]:
        """Row and column of the best mean; the first of those that differ in rounding alone."""
        signed = self.mean if self.higher_is_better else -self.mean
        row, column = np.unravel_index(int(np.nanargmax(np.round(signed, 12))), signed.shape)
        return int(row), int(column)


def heatmap_png(grids: Sequence[Grid], path: Path) -> None:
    """Heatmaps side by side as one PNG (160 dpi, white ground): mean, spread below it, the best cell framed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("heat", ["#f4f6f9", "#9cc0ea", "#1f6fc4", "#123f73"])
    rows, columns = len(grids[0].rows), len(grids[0].columns)
    title = max(len(grid.title) for grid in grids)
    size = (max(1.6 + 1.05 * columns, 1.2 + 0.105 * title) * len(grids), 1.3 + 0.66 * rows)  # inches a letter
    drawing, panels = pyplot.subplots(1, len(grids), figsize=size, squeeze=False, layout="constrained")
    for axes, grid in zip(panels[0], grids, strict=True):
        shades = np.vectorize(grid.shade)(grid.mean)
        axes.imshow(shades, cmap=colours, vmin=0, vmax=1, aspect="auto")
        for row in range(len(grid.rows)):
            for column in range(len(grid.columns)):
                ink = "white" if sum(colours(shades[row, column])[:3]) < 1.7 else "#1b1e23"
                value, spread = grid.mean[row, column], grid.spread[row, column]
                below = f"\n± {grid.form(spread)}" if math.isfinite(spread) else ""
                text = grid.form(value) + below if math.isfinite(value) else "–"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
        row, column = grid.best
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#1b1e23", lw=1.8, clip_on=False, zorder=3)
        )
        for line in range(1, len(grid.rows)):
            axes.axhline(line - 0.5, color="white", lw=2)
        for line in range(1, len(grid.columns)):
            axes.axvline(line - 0.5, color="white", lw=2)
        axes.set_xticks(range(len(grid.columns)), grid.columns)
        axes.set_yticks(range(len(grid.rows)), grid.rows)
        axes.set_xlabel(grid.column_label)
        axes.set_ylabel(grid.row_label)
        axes.set_title(grid.title, fontsize=11, fontweight="bold", loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    drawing.savefig(path, dpi=160)
    pyplot.close(drawing)


def heat_table(grid: Grid) -> Html:
    """A heatmap as a table, so that its numbers can be read and copied."""
    head = [
        tag("th", f"{grid.row_label} ↓  {grid.column_label} →" if grid.column_label else grid.row_label, class_="row")
    ]
    head += [tag("th", column) for column in grid.columns]
    rows = [tag("tr", *head)]
    for r, name in enumerate(grid.rows):
        cells = [heat_cell(grid, r, c) for c in range(len(grid.columns))]
        rows.append(tag("tr", tag("th", name, class_="row"), *cells))
    return tag("div", tag("table", *rows, class_="heat"), class_="scroll")


def heat_cell(grid: Grid, row: int, column: int) -> Html:
    mean, spread = float(grid.mean[row, column]), float(grid.spread[row, column])
    if not math.isfinite(mean):
        return tag("td", "–", title="no finished run")
    shade = 0.06 + 0.86 * grid.shade(mean)
    kinds = (["dark"] if shade > INK_TURNS else []) + (["best"] if grid.framed and (row, column) == grid.best else [])
    below = tag("span", f"± {grid.form(spread)}", class_="dim") if math.isfinite(spread) else ""
    pages = [tag("a", text, href=address) for text, address in grid.links.get((row, column), ())]
    runs = tag("span", f"seed{'s' if len(pages) > 1 else ''} ", join(pages, " "), class_="dim") if pages else ""
    return tag("td", grid.form(mean), below, runs, class_=" ".join(kinds) or None, style=f"--x:{shade:.2f}")
