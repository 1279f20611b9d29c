"""A grid of temperatures and rates, the recommended setting, the winner on fresh seeds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import run

COMMANDS = (
    (
        *("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--grid", "mixture.temperature=1,2,4,inf"),
        *("optim.peak_lr=3e-4,1e-3,3e-3", "--seeds", "0", "1", "2"),
    ),
    ("recommend", "RUNS"),
    ("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--confirm", "5"),
)
KEEP = {"results.csv": "results.csv", "recommendation.json": "recommendation.json", "heatmap.png": "heatmap.png"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
