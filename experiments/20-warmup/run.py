"""Warmup x learning rate x optimizer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

SHARES = ("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--grid", "optim.warmup_frac=0,0.05")
COMMANDS = (
    (*SHARES, "optim.peak_lr=1e-3,1e-2", "optim.optimizer=adamw", *SEEDS),
    (*SHARES, "optim.peak_lr=1e-3", "optim.optimizer=muon", *SEEDS),
)
KEEP = {"results.csv": "results.csv", "heatmap.png": "heatmap.png"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
