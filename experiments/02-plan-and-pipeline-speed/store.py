"""The token store against the one before it, in one run: bytes a token, and processor time to write and to read.

    git show 7398348:jaxtune/data/store.py > before.py
    python experiments/02-plan-and-pipeline-speed/store.py before.py

The earlier one kept 4 bytes for each token and 4 for its weight. Both write the same parts, join them, and read every
example in one random order; the two take turns, and the best of some rounds counts.
"""

import argparse
import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from jaxtune.data import store as now

EXAMPLES, RECORDS, ROUNDS = 50_000, 1024, 3
LIMITS = {"smollm2": 49_152, "qwen3": 151_936}
"""Vocabularies, tokens."""


def drawn(kind: str, limit: int) -> list[dict[str, Any]]:
    """The arrays of parts: prompts of a third of an example, or chats whose turns of 40 tokens weigh by turns."""
    random, parts = np.random.default_rng(0), []
    for first in range(0, EXAMPLES, RECORDS):
        count = min(RECORDS, EXAMPLES - first)
        lengths = np.clip(random.lognormal(np.log(110), 0.8, (count, 1)), 4, 2048).astype(np.int32)
        places = np.concatenate([np.arange(n) for n in lengths[:, 0]])
        spans = np.repeat(lengths[:, 0], lengths[:, 0])
        weights = places >= spans // 3 if kind == "answers" else places // 40 % 2 == 1
        loss = np.maximum(lengths // 2, 1)
        parts.append(
            {
                "tokens": random.integers(0, limit, len(places)).astype(np.int32),
                "weights": weights.astype(np.float32), "lengths": lengths, "loss_lengths": loss,
                "response_lengths": loss, "records": np.arange(first, first + count), "outcomes": {"kept": count},
            }
        )  # fmt: skip
    return parts


def written(module: ModuleType, parts: list[dict[str, Any]], folder: pathlib.Path, *limit: int) -> Any:
    """A store of these parts."""
    folder.mkdir()
    files = [folder / f"{number:06d}.npz" for number in range(len(parts))]
    for file, arrays in zip(files, parts, strict=True):
        module.Part(**arrays).write(file, *limit)
    module.merge(files, folder / "store", task="t", split="train", facts={})
    return module.TaskTokens(folder / "store")


def read(store: Any, order: np.ndarray) -> int:
    """Sum over all examples, which reads them all."""
    total = 0
    for number in order.tolist():
        example = store.example(number)
        total += int(example.tokens.sum()) + int(example.loss_weights.sum())
    return total


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and its result."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def compare(before: ModuleType, kind: str, limit: int) -> dict[str, Any]:
    """Both stores of one kind of data."""
    parts, order = drawn(kind, limit), np.random.default_rng(1).permutation(EXAMPLES)
    tokens = sum(len(part["tokens"]) for part in parts)
    best: dict[str, float] = {}
    sums: set[int] = set()
    sizes: dict[str, float] = {}
    for turn in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            for name, module, given in (("before", before, ()), ("now", now, (limit,))):
                at = pathlib.Path(folder) / name
                wrote, store = cpu_seconds(lambda m=module, a=at, g=given: written(m, parts, a, *g))
                took, total = cpu_seconds(lambda s=store: read(s, order))
                sums.add(total)
                for what, seconds in (("write", wrote), ("read", took)):
                    best[f"{what} {name}"] = min(seconds, best.get(f"{what} {name}", seconds))
                sizes[f"parts {name}"] = sum(file.stat().st_size for file in at.glob("*.npz")) / tokens
                sizes[f"store {name}"] = (at / "store" / "data").stat().st_size / tokens
        print(f"round {turn + 1} of {ROUNDS}", flush=True)
    assert len(sums) == 1, "both hold the same"
    return {
        "kind": kind, "vocabulary": limit, "examples": EXAMPLES, "tokens": tokens,
        "bytes a token": {name: round(size, 2) for name, size in sizes.items()},
        "cpu seconds": {name: round(seconds, 2) for name, seconds in best.items()},
        "write, now / before": round(best["write now"] / best["write before"], 2),
        "read, now / before": round(best["read now"] / best["read before"], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path, help="store.py of the earlier version")
    spec = importlib.util.spec_from_file_location("before", parser.parse_args().before)
    assert spec is not None and spec.loader is not None
    before = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(before)
    for kind in ("answers", "chats"):
        for limit in LIMITS.values():
            print(json.dumps(compare(before, kind, limit)), flush=True)


if __name__ == "__main__":
    main()
