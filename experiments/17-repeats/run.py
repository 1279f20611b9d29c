"""The ladder without a cap, and under caps of 4 and 1 passes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

COMMANDS = (("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--grid", "mixture.max_repeats=inf,4,1", *SEEDS),)
KEEP = {"results.csv": "results.csv", "heatmap.png": "heatmap.png"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
