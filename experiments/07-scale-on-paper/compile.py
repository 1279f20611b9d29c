"""Compile the training step of the Llama-3.1-8B and 70B shapes for devices that are not here, and account for it.

    python experiments/07-scale-on-paper/compile.py --model 8b --fsdp 64 --rows 64

With `--topology v5p:4x4x4` XLA's TPU compiler is used; it needs no TPU (`pip install libtpu`, the version that
`jax[tpu]` names). Without, as many CPU devices are simulated: the partitioner, and so the collective operations, are
the same; memory and instruction choice are those of XLA's CPU compiler.

One JSON object is printed, and added to the file `--out`: memory of a device by XLA's account and by
`jaxtune.train.memory`, seconds, and the collective operations of a step with the bytes that a device receives in them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")

import jax
from jax.experimental import topologies

from jaxtune.model.attention.core import Backend
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxtune.step import losses
from jaxtune.train import hlo, memory

LLAMA = {
    "8b": {"d_model": 4096, "num_layers": 32, "num_heads": 32, "d_ff": 14336},
    "70b": {"d_model": 8192, "num_layers": 80, "num_heads": 64, "d_ff": 28672},
}
"""Sizes in the published config.json of Llama-3.1; both have 8 key/value heads of 128 and 128,256 tokens."""


def work_of(options: argparse.Namespace) -> memory.Work:
    """The step to compile: float32 parameters and moments, layers computed again in the backward pass."""
    sizes = LLAMA[options.model] | ({} if options.layers is None else {"num_layers": options.layers})
    shape = ModelConfig(
        vocab_size=128256, num_kv_heads=8, head_dim=128, max_seq_len=131072, tie_embeddings=False, remat=Remat.FULL,
        attention=Backend(options.attention), rope=RopeConfig(theta=500000.0), **sizes,
    )  # fmt: skip
    axes = dict.fromkeys(AXES, 1) | {"data": options.data, "fsdp": options.fsdp, "tensor": options.tensor}
    return memory.Work(
        model=shape, optim=OptimConfig(), axes=axes, micro_rows=options.rows, micro_batches=1,
        seq_len=options.seq_len, compute_dtype=options.compute_dtype, chunk=losses.CHUNK_POSITIONS, platform="tpu",
    )  # fmt: skip


def account(options: argparse.Namespace) -> dict:
    """Compile, and collect the numbers."""
    work = work_of(options)
    num_devices = options.data * options.fsdp * options.tensor
    if options.topology is None:
        jax.config.update("jax_num_cpu_devices", num_devices)
        devices = jax.devices()
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    mesh = make_mesh(MeshConfig(**work.axes, devices=num_devices), devices)
    begun, used = time.monotonic(), time.process_time()
    lowered = memory.lower(work, mesh)
    traced = time.monotonic()
    compiled = lowered.compile()
    seconds = {"lower": traced - begun, "compile": time.monotonic() - traced, "cpu": time.process_time() - used}
    program = hlo.Program(compiled.as_text() or "", num_devices)
    chunks = -(-options.rows // (options.data * options.fsdp) * options.seq_len // losses.CHUNK_POSITIONS)
    xla, planned = compiled.memory_analysis(), memory.estimate(work)
    return {
        "compiler": options.topology or f"cpu x {num_devices}",
        "jax": jax.__version__,
        "model": options.model,
        "layers": work.model.num_layers,
        "mesh": {axis: n for axis, n in work.axes.items() if n > 1},
        "rows": options.rows,
        "seq_len": options.seq_len,
        "attention": options.attention,
        "compute_dtype": options.compute_dtype,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "xla_gib": {
            "arguments": round(xla.argument_size_in_bytes / 2**30, 3),
            "temporaries": round(xla.temp_size_in_bytes / 2**30, 3),
        },
        "planned_gib": {
            **{name: round(value / 2**30, 3) for name, value in dataclasses.asdict(planned).items()},
            "total": round(planned.total / 2**30, 3),
        },
        "collectives": {
            name: {key: round(value, 3) for key, value in numbers.items()}
            for name, numbers in program.collectives(chunks).items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(LLAMA), default="8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--topology", help="TPU slice for XLA's TPU compiler, e.g. v5p:4x4x4 or v6e:8x8")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=64)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--attention", choices=[b.value for b in Backend], default=Backend.BLOCKWISE.value)
    parser.add_argument("--compute-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines file to add the result to")
    options = parser.parse_args()
    result = account(options)
    print(json.dumps(result, indent=1))
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
