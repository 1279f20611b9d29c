"""Learning rates of all parameters and of adapters."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import SEEDS, run

COMMANDS = (("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--arms", "HERE/arms.jsonl", *SEEDS),)
KEEP = {"results.csv": "results.csv"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
