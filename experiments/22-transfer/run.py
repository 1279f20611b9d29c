"""Transfer by pairs, gradients before it, clusters left out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

SOURCES = ("sums", "sum_stories", "terse", "verbose")
COMMANDS = (
    (
        *("transfer", "HERE/config.py", "--sweep-dir", "RUNS/pairs", "--tasks", *SOURCES),
        *("--examples", "1200", "--mode", "added", *SEEDS),
    ),
    (
        *("conflict", "HERE/config.py", "--transfer", "RUNS/pairs", "--batches", "8", "--tokens", "512"),
        *("--out", "RUNS/conflict.json"),
    ),
    ("sweep", "HERE/config.py", "--sweep-dir", "RUNS/clusters", "--leave-out", "clusters", *SEEDS),
)
KEEP = {
    "pairs/results.csv": "results.csv",
    "pairs/transfer.json": "transfer.json",
    "pairs/transfer.png": "transfer.png",
    "conflict.json": "conflict.json",
    "clusters/results.csv": "clusters.csv",
}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
