"""Whether two run folders are those of one run, bit for bit, clocks aside.

    python experiments/06-kill-and-resume/same_run.py runs/a runs/b

Compared are every row of metrics.jsonl, the answers, the summary and every file of the exported model. Ends with code 1
and the first row that differs where something does.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from typing import Any

CLOCK = {"tokens_per_s", "loss_tokens_per_s", "data_wait", "memory_mb", "mfu"}
"""Fields of a row that a clock or the process decides, and of the summary."""
CLOCK_OF_SUMMARY = {"seconds", "peak_memory_mb", "trained_with"}


def rows(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without clocks."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def summary(run_dir: pathlib.Path) -> dict[str, Any]:
    """summary.json without clocks."""
    read = json.loads((run_dir / "summary.json").read_text())
    return {key: value for key, value in read.items() if key not in CLOCK_OF_SUMMARY}


def digests(run_dir: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the answers and of every file of the exported model."""
    files = [run_dir / "generations.json", *sorted((run_dir / "model").glob("*"))]
    return {
        str(file.relative_to(run_dir)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def differences(left: pathlib.Path, right: pathlib.Path) -> list[str]:
    """What differs, in words."""
    found = []
    ours, theirs = rows(left), rows(right)
    if ours != theirs:
        first = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        found.append(f"metrics.jsonl: {len(ours)} and {len(theirs)} rows; the first that differs is row {first + 1}")
    a, b = summary(left), summary(right)
    found += [f"summary.json: {key}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    a, b = digests(left), digests(right)
    return found + [f"{name}: other content" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=pathlib.Path)
    found = differences(*parser.parse_args().runs)
    print("\n".join(found) or "the same run, bit for bit")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
