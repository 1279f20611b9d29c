"""Compile the training step of the Llama-3.1-8B shape for a TPU slice that is not here, and account for it.

    pip install libtpu        # the version that `jax[tpu]` names
    python experiments/07-scale-on-paper/compile.py --topology v5p:4x4x4 --fsdp 64 --rows 64

XLA's TPU compiler needs no TPU. Printed as JSON: memory on one device by XLA's account and by `jaxtune.memory`, and the
collective operations with the bytes that one device receives in a step (those inside the loop over layers counted once
for each layer).
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxtune import memory, model, programs, sharding
from jaxtune.attention import Backend
from jaxtune.model import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.packing import Batch
from jaxtune.sharding import MeshConfig
from jaxtune.step import LossConfig, hparams, init_state

LLAMA_8B = ModelConfig(
    vocab_size=128256, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14336,
    max_seq_len=131072, tie_embeddings=False, remat=Remat.FULL,
)  # fmt: skip
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
KINDS = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute"


def collectives(text: str, layers: int) -> dict[str, dict[str, float]]:
    """Operations and gigabytes of their results, by kind; a loop body counts once for each layer."""
    found: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"operations": 0, "gigabytes": 0.0})
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({KINDS})(-start)?\(", line)
        if match is None:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        shapes = shapes[-1:] if match[3] else shapes  # a start returns operands and results
        size = 0
        for kind, dims in shapes:
            count = WIDTHS.get(kind, 4)
            for n in filter(None, dims.split(",")):
                count *= int(n)
            size += count
        times = layers if "/while/body" in line else 1
        found[match[2]]["operations"] += times
        found[match[2]]["gigabytes"] += size * times / 1e9
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--layers", type=int, default=32, help="fewer compile as fast, and are a check of the sums")
    parser.add_argument("--fsdp", type=int, default=64)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--attention", choices=[b.value for b in Backend], default=Backend.BLOCKWISE.value)
    options = parser.parse_args()
    shape = dataclasses.replace(LLAMA_8B, num_layers=options.layers, attention=Backend(options.attention))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    mesh = sharding.make_mesh(MeshConfig(fsdp=options.fsdp, tensor=options.tensor), devices)
    work = memory.Work(
        model=shape, optim=OptimConfig(), axes=dict(mesh.shape), micro_rows=options.rows, micro_batches=1,
        seq_len=options.seq_len, compute_dtype="bfloat16", platform="tpu",
    )  # fmt: skip
    shapes = model.abstract_params(shape)[1]
    spec = programs.ProgramSpec(
        model=shape, optim=work.optim, loss=LossConfig(), lora=None, compute_dtype=work.compute_dtype, num_tasks=7,
        total_steps=1000, capacity=None, mesh=mesh,
    )  # fmt: skip
    program = programs.build(spec, shapes)
    placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    state = jax.tree.map(
        placed, jax.eval_shape(lambda p: init_state(p, program.optimizer), shapes), program.state_shardings
    )
    field = lambda dtype: jax.ShapeDtypeStruct(
        (1, options.rows, options.seq_len), dtype, sharding=sharding.batch_sharding(mesh, lead=1)
    )
    names = [f.name for f in dataclasses.fields(Batch)]
    batch = Batch(**{name: field(jnp.float32 if name == "loss_weights" else jnp.int32) for name in names})
    everywhere = sharding.replicated(mesh)
    numbers = jax.tree.map(lambda x: placed(x, everywhere), jax.eval_shape(lambda: hparams(1e-5, 0.1, 0)))
    begun = time.monotonic()
    with jax.set_mesh(mesh):
        compiled = program.train_step.lower(state, None, batch, numbers).compile()
    account = compiled.memory_analysis()
    planned = memory.estimate(work)
    print(
        json.dumps(
            {
                "topology": options.topology,
                "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1},
                "layers": options.layers,
                "rows": options.rows,
                "seq_len": options.seq_len,
                "attention": options.attention,
                "seconds": round(time.monotonic() - begun),
                "xla_gib": (account.argument_size_in_bytes + account.temp_size_in_bytes) / 2**30,
                "planned_gib": planned.total / 2**30,
                "planned_parts_gib": {k: round(v / 2**30, 3) for k, v in dataclasses.asdict(planned).items()},
                "collectives": collectives(compiled.as_text() or "", options.layers),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
