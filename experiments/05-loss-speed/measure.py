"""Time and memory of the loss and its gradients: full head, or only the positions that carry weight, in chunks.

python experiments/05-loss-speed/measure.py > experiments/05-loss-speed/results.jsonl
"""

import argparse
import json
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.parallel import compilation as compiling
from jaxtune.step import losses

CASES = {"262k vocabulary": (262_144, 256), "128k vocabulary": (128_256, 256), "49k vocabulary": (49_152, 576)}
"""Vocabulary size, width of the hidden states."""


def make_inputs(vocab: int, width: int, positions: int, prompt_share: float) -> dict:
    """One row of hidden states, a tied head, and weights that are 0 on the prompts of examples of 64 tokens."""
    draws = np.random.default_rng(0)
    trained = np.arange(positions) % 64 >= round(64 * prompt_share)
    return {
        "hidden": jnp.asarray(draws.standard_normal((1, positions, width)), jnp.float32),
        "head": jnp.asarray(0.02 * draws.standard_normal((vocab, width)), jnp.float32),
        "targets": jnp.asarray(draws.integers(0, vocab, (1, positions)), jnp.int32),
        "weights": jnp.asarray(trained[None], jnp.float32),
    }


def full_head(hidden, head, targets, weights):
    """Logits of all positions at once."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, head)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - at_target))


def full_head_chunked(hidden, head, targets, weights, chunk: int = 64):
    """All positions, in chunks that are computed again in the backward pass."""
    split = lambda x: x.reshape(-1, 1, chunk, *x.shape[2:])
    body = jax.checkpoint(lambda total, part: (total + full_head(part[0], head, *part[1:]), None))
    return jax.lax.scan(body, jnp.zeros(()), (split(hidden), split(targets), split(weights)))[0]


def gathered(hidden, head, targets, weights):
    """What training uses."""
    task_ids = jnp.zeros_like(targets)
    return losses.per_task_sums(hidden, head, targets, weights, task_ids, num_tasks=1).objective


def compile_gradient(function, inputs: dict):
    gradient = compiling.jit(jax.value_and_grad(function, argnums=(0, 1)), platform="cpu", dtype="float32")
    return gradient.lower(*inputs.values()).compile()


def seconds(program, inputs: dict) -> tuple[float, float]:
    """CPU time and wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(program(*inputs.values()))
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--prompt-share", type=float, default=0.6)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "device": str(jax.devices()[0]),
                      "jax": jax.__version__, **vars(arguments)}))  # fmt: skip
    for case, (vocab, width) in CASES.items():
        inputs = make_inputs(vocab, width, arguments.positions, arguments.prompt_share)
        ways = {"full head": full_head, "full head, chunks": full_head_chunked, "gathered, chunks": gathered}
        programs = {name: compile_gradient(function, inputs) for name, function in ways.items()}
        values = {name: float(program(*inputs.values())[0]) for name, program in programs.items()}
        times: dict[str, list] = {name: [] for name in programs}
        for _ in range(arguments.repeats):
            for name, program in programs.items():
                times[name].append(seconds(program, inputs))
        for name, program in programs.items():
            memory = program.memory_analysis()
            print(json.dumps({
                "case": case, "vocab": vocab, "width": width, "way": name, "loss": values[name],
                "cpu_seconds": round(statistics.median(cpu for cpu, _ in times[name]), 3),
                "wall_seconds": round(statistics.median(wall for _, wall in times[name]), 3),
                "scratch_mb": round(memory.temp_size_in_bytes / 2**20, 1),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
