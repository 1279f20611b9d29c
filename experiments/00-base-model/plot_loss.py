"""Loss curve of the base model: `loss.jsonl` of its stages, in order, to `loss.csv` and `loss.png` beside this file.

Run:    python experiments/00-base-model/plot_loss.py runs/base-1 runs/base-2 runs/base-3
"""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLUMNS = ("stage", "step", "tokens", "train_loss", "held_out_loss", "grad_norm", "learning_rate", "wall_s", "cpu_s")
"""Steps and tokens count from the start of the first stage, seconds from the start of each process."""


def read(folders: list[str]) -> list[dict]:
    """Rows of all stages; steps and tokens go on from one stage to the next."""
    rows: list[dict] = []
    for stage, folder in enumerate(folders, start=1):
        steps, tokens = (rows[-1]["step"], rows[-1]["tokens"]) if rows else (0, 0)
        for line in (Path(folder) / "loss.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows.append(row | {"stage": stage, "step": row["step"] + steps, "tokens": row["tokens"] + tokens})
    return rows


def main() -> None:
    rows = read(sys.argv[1:])
    with (HERE / "loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["tokens"] / 1e6 for row in rows], [row["train_loss"] for row in rows], lw=1, label="training batch")
    held_out = [row for row in rows if "held_out_loss" in row]
    held_tokens = [row["tokens"] / 1e6 for row in held_out]
    axes.plot(held_tokens, [row["held_out_loss"] for row in held_out], "o-", ms=3, label="held-out rows of part 1")
    for before, after in zip(rows, rows[1:], strict=False):
        if before["stage"] != after["stage"]:
            axes.axvline(before["tokens"] / 1e6, color="grey", lw=0.8, ls=":")
    axes.set(
        xlabel="tokens, millions", ylabel="loss, nats per token", title="Base model on generated text", ylim=(0, 3)
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "loss.png", dpi=120)


if __name__ == "__main__":
    main()
