"""Temperatures on the built-in model and on SmolLM2-135M, and how well the first predicts the second."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

BRIEF = ("--eval.every", "0", "--eval.no-generate", "--duration.steps", "40")
COMMANDS = (
    ("sweep", "quickstart", "--sweep-dir", "RUNS/small", "--grid", "mixture.temperature=1,2,4,inf", *SEEDS, *BRIEF),
    (
        *("sweep", "HERE/config.py", "--sweep-dir", "RUNS/large", "--grid", "mixture.temperature=1,2,4,inf"),
        *("--seeds", "0", "1", "2"),
    ),
    ("proxy", "RUNS/small", "RUNS/large"),
)
KEEP = {"small/results.csv": "small.csv", "large/results.csv": "results.csv"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
