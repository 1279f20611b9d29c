"""What a run folder says, for comparisons of runs that must be equal to the bit."""

import json
import pathlib

CLOCK = frozenset({"tokens_per_s", "loss_tokens_per_s", "data_wait", "memory_mb", "mfu"})
"""Fields of a metrics row that a clock or the process decides."""


def timeless(run_dir: pathlib.Path) -> list[dict]:
    """Rows of metrics.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def weights(run_dir: pathlib.Path) -> bytes:
    """The exported model."""
    return (run_dir / "model" / "model.safetensors").read_bytes()
