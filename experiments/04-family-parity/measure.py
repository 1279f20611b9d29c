"""How far every model family is from transformers, and whether its checkpoints survive the way in and out.

PYTHONPATH=tests:tests/parity python experiments/04-family-parity/measure.py [case ...]
"""

import pathlib
import sys
import tempfile

import family_cases
import family_pairs as pairs
import jax
import numpy as np
import torch
import transformers

from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles

SEEDS = (0, 1)
COLUMNS = ("family", "shape", "padded", "packed", "cached", "loss", "gradient", "round trip", "transformers loads")


def shape_text(config) -> str:
    head = "tied" if config.tie_embeddings else "untied"
    return f"{config.num_heads}/{config.num_kv_heads} heads of {config.head_dim}, width {config.d_model}, {head}"


def gradient_difference(pair: pairs.Pair, folder: pathlib.Path) -> float:
    """Largest difference within a tensor, as a share of its largest value; changes the pair's weights."""
    ours, theirs = (jax.tree.leaves(tree) for tree in pairs.gradients(pair, folder))
    shares = [
        pairs.difference(mine, other) / float(np.abs(other).max())
        for mine, other in zip(ours, theirs, strict=True)
        if np.abs(other).max() > 1e-6
    ]
    return max(shares)


def row(case: str, seed: int, folder: pathlib.Path) -> list[str]:
    pair = pairs.make_pair(case, seed, folder)
    numbers = [pairs.padded_difference(pair), pairs.packed_difference(pair), pairs.cached_difference(pair)]
    numbers.append(pairs.loss_difference(pair))
    hf.export_model(folder / "out", pair.config, pair.params, TextFiles(eos_token_id=2, bos_token_id=1, pad_token_id=0))
    again = hf.import_model(folder / "out")[1]
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(pair.params), jax.tree.leaves(again), strict=True)]
    loaded = pairs.torch_logits(pairs.load(folder / "out"), pair.sequences)
    off = max(pairs.difference(a, b) for a, b in zip(loaded, pair.expected, strict=True))
    numbers.append(gradient_difference(pair, folder / "gradients"))
    trip = f"{sum(same)} of {len(same)} tensors equal"
    return [
        f"{case} {seed}",
        shape_text(pair.config),
        *(f"{n:.0e}" for n in numbers),
        trip,
        f"yes, logits off {off:.0e}",
    ]


def main() -> None:
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("| " + " | ".join("---" for _ in COLUMNS) + " |")
    for case in sys.argv[1:] or family_cases.CASES:
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                print("| " + " | ".join(row(case, seed, pathlib.Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
