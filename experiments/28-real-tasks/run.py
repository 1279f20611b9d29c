"""Temperature 3 against 1, and prompts with half a weight against masked ones, on real tasks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from chapter import run

COMMANDS = (("sweep", "HERE/config.py", "--sweep-dir", "RUNS", "--arms", "HERE/arms.jsonl", "--seeds", "0", "1", "2"),)
KEEP = {"results.csv": "results.csv"}

if __name__ == "__main__":
    run(__file__, COMMANDS, KEEP)
