"""Time and memory of a mixture of experts, forward and backward: rows in blocks, or JAX's own ragged product.

python experiments/15-experts/measure.py > experiments/15-experts/results.jsonl
"""

import argparse
import json
import platform
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.model import moe
from jaxtune.model.grouped import grouped_product
from jaxtune.model.moe import MoeConfig
from jaxtune.parallel import compilation as compiling

CASES = {
    "8 experts, 2 a token": (MoeConfig(num_experts=8, experts_per_token=2, d_ff=1024), 2048, 512),
    "32 experts, 4 a token": (MoeConfig(num_experts=32, experts_per_token=4, d_ff=256), 2048, 512),
    "64 experts, 8 a token": (MoeConfig(num_experts=64, experts_per_token=8, d_ff=192), 2048, 512),
}
"""Experts, tokens, width of the hidden states."""
WAYS = {"blocks": grouped_product, "ragged_dot": jax.lax.ragged_dot}


def make_inputs(config: MoeConfig, tokens: int, width: int) -> dict:
    """Tokens, kernels, and a router that prefers some experts as trained ones do."""
    draw = np.random.default_rng(0).standard_normal
    e, f = config.num_experts, config.d_ff
    shapes = {"x": (tokens, width), "gate": (e, width, f), "up": (e, width, f), "down": (e, f, width)}
    inputs = {name: jnp.asarray(draw(shape) / np.sqrt(width), jnp.float32) for name, shape in shapes.items()}
    return inputs | {"scores": jnp.asarray(draw((tokens, e)) + draw((1, e)), jnp.float32)}


def compile_gradient(product, config: MoeConfig, inputs: dict):
    """Value and gradients of the sum of squares of the layer's output."""

    def total(x, gate, up, down, scores):
        weights, experts = moe.route(scores, config)
        return jnp.sum(moe.mix_experts(x, weights, experts, gate, up, down, gated=moe.gated_by(jax.nn.silu)) ** 2)

    with mock.patch.object(moe, "grouped_product", product):
        program = compiling.jit(jax.value_and_grad(total, argnums=range(5)), platform="cpu", dtype="float32")
        return program.lower(*inputs.values()).compile()


def seconds(program, inputs: dict) -> float:
    """CPU time of one call."""
    start = time.process_time()
    jax.block_until_ready(program(*inputs.values()))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "device": str(jax.devices()[0]),
                      "jax": jax.__version__, **vars(arguments)}))  # fmt: skip
    for case, (config, tokens, width) in CASES.items():
        inputs = make_inputs(config, tokens, width)
        programs = {name: compile_gradient(product, config, inputs) for name, product in WAYS.items()}
        values = {name: float(program(*inputs.values())[0]) for name, program in programs.items()}
        assert np.isclose(*values.values(), rtol=1e-5), values
        times: dict[str, list] = {name: [] for name in programs}
        for _ in range(arguments.repeats):
            for name, program in programs.items():
                times[name].append(seconds(program, inputs))
        needed = 3 * 2 * 3 * tokens * config.experts_per_token * width * config.d_ff
        for name, program in programs.items():
            spent = statistics.median(times[name])
            row = {"case": case, "way": name, "cpu_s": round(spent, 4), "gflops_per_s": round(needed / spent / 1e9, 1),
                   "scratch_mb": round(program.memory_analysis().temp_size_in_bytes / 1e6)}  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
