"""Loss curve of the base model: `loss.jsonl` of a run to `loss.csv` and `loss.png` here.

Run:    python experiments/00-base-model/plot_loss.py runs/base
"""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLUMNS = ("step", "tokens", "train_loss", "held_out_loss", "grad_norm", "learning_rate", "wall_s", "cpu_s")


def main() -> None:
    rows = [json.loads(line) for line in (Path(sys.argv[1]) / "loss.jsonl").read_text().splitlines()]
    with (HERE / "loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["tokens"] / 1e6 for row in rows], [row["train_loss"] for row in rows], lw=1, label="training batch")
    held_out = [row for row in rows if "held_out_loss" in row]
    axes.plot(
        [row["tokens"] / 1e6 for row in held_out],
        [row["held_out_loss"] for row in held_out],
        "o-",
        ms=3,
        label="held-out rows",
    )
    axes.set(xlabel="tokens, millions", ylabel="loss, nats per token", title="Base model on generated text")
    axes.set_ylim(0, 3)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "loss.png", dpi=120)


if __name__ == "__main__":
    main()
