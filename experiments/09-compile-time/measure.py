"""Seconds to trace and to compile the train step of models of 2 to 32 layers.

python experiments/09-compile-time/measure.py > experiments/09-compile-time/results.jsonl
"""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp

from jaxtune.batch import Batch
from jaxtune.model import transformer as model
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import LayerKind, ModelConfig
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.step import programs
from jaxtune.step.room import Room
from jaxtune.step.update import LossConfig, hparams

LLAMA = ModelConfig(
    vocab_size=8192, d_model=256, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=32, d_ff=688, max_seq_len=512,
    tie_embeddings=False,
)  # fmt: skip
GEMMA3 = dataclasses.replace(
    LLAMA, family="gemma3_text", norm_offset=True, post_norms=True, qk_norm=True, tie_embeddings=True, embed_scale=16.0,
    sliding_window=128, local_rope=RopeConfig(theta=10_000.0),
)  # fmt: skip


def with_depth(config: ModelConfig, layers: int) -> ModelConfig:
    """The model with that many layers; every sixth of those with a window is global."""
    if config.sliding_window is None:
        return dataclasses.replace(config, num_layers=layers)
    kinds = tuple(LayerKind.GLOBAL if i % 6 == 5 else LayerKind.LOCAL for i in range(layers))
    return dataclasses.replace(config, num_layers=layers, layer_kinds=kinds)


def seconds(config: ModelConfig, rows: int, length: int) -> dict[str, float]:
    """CPU seconds of tracing and of compiling, and the size of the compiled program's text."""
    mesh = make_mesh(MeshConfig(devices=1))
    spec = programs.ProgramSpec(
        model=config, optim=OptimConfig(), loss=LossConfig(), lora=None, compute_dtype="float32", num_tasks=4,
        room=Room(capacity=rows * length // 2, tokens=rows * length), mesh=mesh,
    )  # fmt: skip
    shapes = model.abstract_params(config)[1]
    program = programs.build(spec, shapes)
    ints, floats = (jax.ShapeDtypeStruct((1, rows, length), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(tokens=ints, loss_weights=floats, segment_ids=ints, positions=ints, task_ids=ints)  # pyright: ignore[reportArgumentType]
    with jax.set_mesh(mesh):
        state = jax.eval_shape(program.init, shapes)
        start = time.process_time()
        lowered = program.train_step.lower(state, None, batch, hparams(1e-4, 0.0))  # pyright: ignore[reportFunctionMemberAccess]
        traced = time.process_time()
        compiled = lowered.compile()
        done = time.process_time()
    return {
        "trace_s": round(traced - start, 2),
        "compile_s": round(done - traced, 2),
        "program_lines": compiled.as_text().count("\n"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    seconds(with_depth(LLAMA, 1), arguments.rows, arguments.length)  # what the first compilation pays once
    for name, config in {"llama": LLAMA, "gemma3": GEMMA3}.items():
        for layers in arguments.layers:
            measured = seconds(with_depth(config, layers), arguments.rows, arguments.length)
            print(json.dumps({"model": name, "layers": layers, "jax": jax.__version__, **measured}), flush=True)


if __name__ == "__main__":
    main()
