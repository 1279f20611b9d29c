"""Epochs over a fixed data set."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

COMMANDS = (("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--grid", "duration.epochs=1,2,3,4,8,16", *SEEDS),)
KEEP = {"results.csv": "results.csv", "heatmap.png": "heatmap.png"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
