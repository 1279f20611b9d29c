"""Exposure of the right answers by repeats, of every run of the sweep, into exposure.csv.

Run:    python experiments/17-repeats/exposure.py runs/17-repeats      (after run.py)
"""

import csv
import sys
from pathlib import Path

from jaxtune.runs.sweeps import read_sweep
from jaxtune.tasks.builtin.science import NOISY_ANSWERS
from jaxtune.tasks.ladder import ladders
from jaxtune.train.exposure import exposures_of_run


def main(sweep_dir: Path, out: Path) -> None:
    sweep = read_sweep(sweep_dir)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "seed", "repeats", "exposure"])
        for arm in sweep.arms:
            [bins] = ladders(arm.run.task_names).values()
            found = exposures_of_run(arm.run.path, list(bins.values()), NOISY_ANSWERS, limit=50)
            for times, name in bins.items():
                writer.writerow([sweep.name(arm.setting), arm.seed, times, found[name]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "exposure.csv")
