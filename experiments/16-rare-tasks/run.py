"""Temperatures 1 to inf on sizes 100 : 1."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

COMMANDS = (("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--grid", "mixture.temperature=1,2,3,5,inf", *SEEDS),)
KEEP = {"results.csv": "results.csv", "heatmap.png": "heatmap.png"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
