"""Loss and gradients of full training, adapters with factors apart, merged adapters, and adapters over integer bases.

python experiments/11-adapter-cost/measure.py > experiments/11-adapter-cost/results.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.model import lora
from jaxtune.model.lora import LoraConfig, Variant
from jaxtune.model.quantize import Bits
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params, apply
from jaxtune.step import losses

CONFIG = ModelConfig(
    vocab_size=4096, d_model=384, num_layers=8, num_heads=6, num_kv_heads=6, head_dim=64, d_ff=1024, max_seq_len=256
)
GRAPHDEF, SHAPES = abstract_params(CONFIG)
APART, MERGED = lora.apply_lora, lora.merge
WAYS: dict[str, tuple[LoraConfig | None, Callable]] = {
    "full training": (None, APART),
    "lora, factors apart": (LoraConfig(), APART),
    "lora, merged each step": (LoraConfig(), MERGED),
    "dora, factors apart": (LoraConfig(variant=Variant.DORA), APART),
    "lora over int8": (LoraConfig(base=Bits.INT8), APART),
    "lora over int4": (LoraConfig(base=Bits.INT4), APART),
}


def random_tree(shapes, seed: int) -> Any:
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.02 * draws.standard_normal(leaf.shape), leaf.dtype), shapes)


def total_loss(full, rows: int, length: int):
    """Summed next-token loss of rows of which the last 40 % train."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (rows, length)), jnp.int32)
    ones, positions = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(length), tokens.shape)
    weights = (positions >= 0.6 * length).astype(jnp.float32)
    targets, weights = losses.shift(tokens, weights, ones)
    hidden = apply(GRAPHDEF, full, tokens, positions, ones)
    return losses.per_task_sums(
        hidden, full["embed"]["embedding"], targets, weights, ones - 1, num_tasks=1
    ).objective  # fmt: skip


def make_way(name: str, rows: int, length: int):
    """Compiled gradient by the trained parameters, and its arguments."""
    settings, combine = WAYS[name]
    params = random_tree(SHAPES, 0)
    if settings is None:
        gradient = jax.jit(jax.value_and_grad(lambda trained: total_loss(trained, rows, length)))
        return gradient.lower(params).compile(), (params,)
    base = lora.freeze_base(params, settings)
    adapters = lora.init_lora(base, settings, 0)
    step = lambda trained, frozen: total_loss(combine(frozen, trained, settings), rows, length)
    return jax.jit(jax.value_and_grad(step)).lower(adapters, base).compile(), (adapters, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps({"device": str(jax.devices()[0]), "jax": jax.__version__, **vars(arguments)}))
    ways = {name: make_way(name, arguments.rows, arguments.length) for name in WAYS}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, (program, inputs) in ways.items():
            start = time.process_time()
            jax.block_until_ready(program(*inputs))
            times[name].append(time.process_time() - start)
    tokens = arguments.rows * arguments.length
    for name, (program, inputs) in ways.items():
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(inputs))
        print(json.dumps({
            "way": name, "cpu_seconds": round(statistics.median(times[name]), 3),
            "tokens_per_cpu_second": round(tokens / statistics.median(times[name])),
            "parameters_mb": round(held / 2**20, 1),
            "trained": sum(leaf.size for leaf in jax.tree.leaves(inputs[0])),
            "scratch_mb": round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
