"""Learning rates of all parameters and of adapters; then a tenth of the examples from the base model's own text."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

COMMANDS = (
    ("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--arms", "HERE/arms.jsonl", *SEEDS),
    ("sweep", "HERE/replay.py", "--sweep-dir", "RUNS-replay", "--arms", "HERE/replay.jsonl", *SEEDS),
)
KEEP = {"results.csv": "results.csv", "../19-forgetting-replay/results.csv": "replay.csv"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
