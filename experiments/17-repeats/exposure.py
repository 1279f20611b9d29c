"""Exposure of the right answers by repeats, of every run of the sweep, into exposure.csv.

Run:    python experiments/17-repeats/exposure.py runs/17-repeats      (after run.py)

A run's rows are written when it has been measured; what is in the file already is not measured again.
"""

import csv
import sys
from pathlib import Path

from jaxtune.runs.sweeps import read_sweep
from jaxtune.tasks.builtin.science import NOISY_ANSWERS
from jaxtune.tasks.ladder import ladders
from jaxtune.terminal.display import Phase
from jaxtune.train.exposure import exposures_of_run

EXAMPLES = 20
"""Of the 100 of a bin: with five seeds the mean of 100 ranks, whose standard error without any memory is 0.14 bits."""


def main(sweep_dir: Path, out: Path) -> None:
    sweep = read_sweep(sweep_dir)
    if not out.exists():
        out.write_text("setting,seed,repeats,exposure\n")
    with out.open(newline="") as file:
        done = {(row["setting"], row["seed"]) for row in csv.DictReader(file)}
    left = [arm for arm in sweep.arms if (sweep.name(arm.setting), str(arm.seed)) not in done]
    with Phase("exposure", len(left), unit="runs") as phase:
        for arm in left:
            [bins] = ladders(arm.run.task_names).values()
            found = exposures_of_run(arm.run.path, list(bins.values()), NOISY_ANSWERS, limit=EXAMPLES)
            with out.open("a", newline="") as file:
                name = sweep.name(arm.setting)
                csv.writer(file).writerows([name, arm.seed, times, found[bin]] for times, bin in bins.items())
            phase.advance()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "exposure.csv")
