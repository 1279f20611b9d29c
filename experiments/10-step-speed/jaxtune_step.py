"""jaxtune's own train step on the peers' token set: the same command line and the same JSON line as their scripts.

BENCH=<folder of the peers' scripts> PEERS=<folder of their venvs and data> \\
    python experiments/10-step-speed/jaxtune_step.py --config A|B --mode padded|packed [--steps N] [--threads 1|2]
"""

import dataclasses
import importlib
import os
import sys

import jax
import numpy as np

from jaxtune.batch import Batch
from jaxtune.model import transformer as model
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.optim import OptimConfig, rate_table
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.step import programs
from jaxtune.step.room import Room
from jaxtune.step.update import LossConfig, hparams

sys.path.insert(0, os.environ["BENCH"])
common = importlib.import_module("common")
ARGUMENTS = common.args(
    lambda parser: (
        parser.add_argument("--batch1", action="store_true", help="16 micro-batches of one row"),
        parser.add_argument("--dtype", default="float32", help="of activations and products"),
    )
)
MICRO = 1 if ARGUMENTS.batch1 else common.BATCH
"""Rows of a micro-batch."""
if ARGUMENTS.mode == "padded" and ARGUMENTS.pad == "longest":
    ARGUMENTS.pad = "bucket"
if ARGUMENTS.threads == 1:  # read when JAX's first device starts
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
jax.config.update("jax_platforms", "cpu")


def model_config(name: str) -> ModelConfig:
    """The peers' Llama."""
    sizes = common.CONFIGS[name]
    return ModelConfig(
        vocab_size=sizes["vocab"], d_model=sizes["d"], num_layers=sizes["layers"], num_heads=sizes["heads"],
        num_kv_heads=sizes["kv"], head_dim=sizes["d"] // sizes["heads"], d_ff=sizes["ffn"], max_seq_len=common.SEQ,
        norm_eps=1e-6, tie_embeddings=False, rope=RopeConfig(theta=10_000.0),
    )  # fmt: skip


def to_batch(made: dict) -> Batch:
    """The peers' arrays as micro-batches."""
    lift = lambda x, dtype: np.asarray(x, dtype).reshape(-1, MICRO, np.shape(x)[1])
    return Batch(
        tokens=lift(made["ids"], np.int32), loss_weights=lift(made["loss"], np.float32),
        segment_ids=lift(made["seg"], np.int32), positions=lift(made["pos"], np.int32),
        task_ids=lift(np.zeros_like(made["ids"]), np.int32),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Static sizes, over all batches of the token set: what a plan knows before training, rounded as training does."""

    capacity: int
    tokens: int


def bounds(config: str, mode: str) -> Bounds:
    examples, prompts = common.load(config)
    real = np.array([len(example) for example in examples])
    rows = common.bfd(real) if mode == "packed" else [[i] for i in range(len(real))]
    if mode == "packed":
        np.random.default_rng(common.SEED).shuffle(rows)
    rows = rows[: len(rows) // MICRO * MICRO]
    most = lambda counts: int(np.array([counts[row].sum() for row in rows]).reshape(-1, MICRO).sum(axis=1).max())
    slots = MICRO * common.SEQ
    up = lambda number, unit: -(-number // unit) * unit
    return Bounds(capacity=up(most(real - prompts), slots // 8), tokens=up(most(real), slots // 32))


def drawn(shapes: dict) -> dict:
    """Random weights, as from a file: a run imports its base model and compiles no initialiser."""
    draws = np.random.default_rng(common.SEED)
    draw = lambda path, leaf: (
        np.ones(leaf.shape, np.float32)
        if "scale" in jax.tree_util.keystr(path)
        else (0.02 * draws.standard_normal(leaf.shape)).astype(np.float32)
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def main() -> None:
    batches = common.batches(ARGUMENTS)
    config = model_config(ARGUMENTS.config)
    mesh = make_mesh(MeshConfig(devices=1))
    optim = OptimConfig(peak_lr=common.LR, weight_decay=common.WD, clip_norm=common.CLIP, warmup_frac=0.1)
    sizes = bounds(ARGUMENTS.config, ARGUMENTS.mode)
    spec = programs.ProgramSpec(
        model=config, optim=optim, loss=LossConfig(), lora=None, compute_dtype=ARGUMENTS.dtype, num_tasks=1,
        room=Room(capacity=sizes.capacity, tokens=sizes.tokens), mesh=mesh,
    )  # fmt: skip
    program = programs.build(spec, model.abstract_params(config)[1])
    with jax.set_mesh(mesh):
        params = jax.device_put(drawn(model.abstract_params(config)[1]), program.state_shardings.params)
        state = program.init(params)
        del params
        rates, numbers = rate_table(optim, ARGUMENTS.steps), hparams(0.0, common.WD, clip_norm=common.CLIP)
        meter = common.Meter(
            "jaxtune",
            ARGUMENTS,
            jax=jax.__version__,
            params=sum(x.size for x in jax.tree.leaves(state.params)),
            **dataclasses.asdict(sizes),
        )
        meter.begin()
        for rate, made in zip(rates, batches, strict=False):
            batch = sharding.put_batch(mesh, to_batch(made), MICRO)
            state, metrics = program.train_step(state, None, batch, dataclasses.replace(numbers, learning_rate=rate))
            loss = float(metrics.loss)
            meter.step(made["lens"], made["loss"].sum(), sizes.tokens * common.BATCH // MICRO, loss)
    meter.done()


if __name__ == "__main__":
    main()
