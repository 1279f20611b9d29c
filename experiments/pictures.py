"""Pictures of those experiments of the chapter that are no grid: dots of seeds, and means with intervals.

Run:    python experiments/pictures.py            draws all whose results are there
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import answers
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

HERE = Path(__file__).parent
COLOURS = ("#1f6fc4", "#c4571f")
INK = "#1b1e23"
Rows = Sequence[dict[str, str]]


def read(path: Path) -> Rows:
    """Rows of a results.csv."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def forgetting(rows: Rows, axes: Axes) -> None:
    """A dot a run: forgetting against task loss, adapters in a colour of their own, arms joined by their means."""
    for colour, kind, label in zip(COLOURS, ("full", "lora"), ("all parameters", "adapters"), strict=True):
        arms = sorted({row["tag"] for row in rows if row["tag"].startswith(kind)}, key=lambda tag: float(tag[5:]))
        means = []
        for tag in arms:
            points = np.array(
                [(float(row["forgotten/builtin"]), float(row["macro_loss"])) for row in rows if row["tag"] == tag]
            )
            axes.scatter(*points.T, color=colour, s=14, label=label if tag == arms[0] else None)
            means.append(points.mean(0))
            axes.annotate(tag[5:], means[-1], xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
        axes.plot(*np.array(means).T, color=colour, lw=1, alpha=0.6)
    axes.set(xlabel="forgotten, nats a token of the base's documents", ylabel="mean loss of the tasks, nats a token")
    axes.set_title("Forgetting against task loss, by rate", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="upper left")


def contrasts(folder: str, title: str) -> Callable[[Rows, Axes], None]:
    """Contrasts of an experiment, each with its seeds and its interval."""

    def draw(_: Rows, axes: Axes) -> None:
        [experiment] = [one for one in answers.EXPERIMENTS if one.folder == folder and one.results == "results.csv"]
        found = answers.answers(experiment)
        for place, one in enumerate(reversed(found)):
            axes.plot([one.found.low, one.found.high], [place, place], color=COLOURS[0], lw=2)
            axes.scatter(one.found.by_seed, [place] * len(one.found.by_seed), color=COLOURS[1], s=14, zorder=3)
            axes.scatter([one.found.mean], [place], color=COLOURS[0], s=40, zorder=2)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(found)), [one.what.replace(", ", ",\n", 1) for one in reversed(found)], fontsize=8)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_xlabel("nats a token; line: 95 % over seeds, small dots: seeds")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")

    return draw


def proxy(small: Rows, axes: Axes) -> None:
    """Mean loss of each temperature on the small model and on the large one."""
    large = read(HERE / "24-proxy" / "results.csv")
    for temperature in sorted({row["mixture.temperature"] for row in small}, key=float):
        at = [
            np.array([float(row["macro_loss"]) for row in rows if row["mixture.temperature"] == temperature])
            for rows in (small, large)
        ]
        x, y = (part.mean() for part in at)
        spread = [part.std(ddof=1) for part in at]
        axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], fmt="o", color=COLOURS[0], lw=1)
        axes.annotate(f"T = {temperature}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xlabel="mean loss, built-in model", ylabel="mean loss, SmolLM2-135M with adapters")
    axes.set_title("Temperatures on two models", loc="left", fontsize=11, fontweight="bold")


PICTURES: dict[str, tuple[str, Callable[[Rows, Axes], None]]] = {
    "18-prompt-loss": ("results.csv", contrasts("18-prompt-loss", "Half a weight on the prompt, against none")),
    "19-forgetting": ("results.csv", forgetting),
    "24-proxy": ("small.csv", proxy),
    "28-real-tasks": ("results.csv", contrasts("28-real-tasks", "SmolLM2-135M on real tasks")),
}
"""By folder: the file that must be there, and what is drawn of it into `picture.png`."""


def main() -> None:
    for folder, (name, draw) in PICTURES.items():
        if not (HERE / folder / name).exists():
            continue
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        draw(read(HERE / folder / name), axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(HERE / folder / "picture.png", dpi=120)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
