"""The memory plan beside XLA's own account of the compiled step, for small steps of many kinds.

    python experiments/07-scale-on-paper/agreement.py

About three minutes on one core. A line for each: MiB by XLA (arguments, temporaries), MiB planned, their ratio.
"""

import dataclasses
import math
from typing import Any

import jax

from jaxtune.model.attention.core import Backend
from jaxtune.model.lora import LoraConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxtune.train import memory
from jaxtune.train.memory import Work

QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}  # compiles in half the time, allocates the same
SMALL = ModelConfig(
    vocab_size=4096, d_model=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=704, max_seq_len=1024,
    attention=Backend.BLOCKWISE,
)  # fmt: skip
LARGE_LAYERS: dict[str, Any] = {"d_model": 512, "num_heads": 8, "num_kv_heads": 4, "d_ff": 1408}
BF16: dict[str, Any] = {"compute_dtype": "bfloat16"}
LORA: dict[str, Any] = {"lora": LoraConfig(rank=8)}


def work(
    rows: int, seq_len: int, axes: dict[str, int] | None = None, remat: Remat = Remat.FULL, model: Any = None,
    **fields: Any,
) -> Work:  # fmt: skip
    """A step of `SMALL`, changed as `model` says."""
    shape = dataclasses.replace(SMALL, remat=remat, **(model or {}))
    return Work(
        model=shape, optim=OptimConfig(), axes=dict.fromkeys(AXES, 1) | (axes or {}), micro_rows=rows,
        seq_len=seq_len, **({"micro_batches": 1} | fields),
    )  # fmt: skip


UNTIED = {"tie_embeddings": False}
REFERENCE = {"attention": Backend.REFERENCE}
WORKS = {
    "nothing again, scores of whole rows": work(8, 256, remat=Remat.NONE, model=REFERENCE),
    "nothing again": work(8, 256, remat=Remat.NONE),
    "all but matmuls again, data=2": work(16, 256, {"data": 2}, remat=Remat.DOTS),
    "layers again, 8 layers, 2 micro-batches": work(4, 512, model={"num_layers": 8} | REFERENCE, micro_batches=2),
    "many parameters, few tokens": work(2, 128, model=LARGE_LAYERS | REFERENCE | {"vocab_size": 16384}),
    "fsdp=4, tensor=2": work(16, 512, {"fsdp": 4, "tensor": 2}, model=UNTIED | REFERENCE),
    "fsdp=8, nothing again": work(16, 512, {"fsdp": 8}, remat=Remat.NONE),
    "fsdp=8, long rows": work(8, 1024, {"fsdp": 8}, model=LARGE_LAYERS | UNTIED),
    "sequence=4": work(8, 512, {"sequence": 4}, model=REFERENCE),
    "bfloat16": work(8, 512, **BF16),
    "bfloat16, fsdp=8": work(8, 512, {"fsdp": 8}, model=LARGE_LAYERS, **BF16),
    "bfloat16, nothing again": work(8, 512, remat=Remat.NONE, **BF16),
    "adapters": work(8, 256, **LORA),
    "adapters, nothing again": work(8, 256, remat=Remat.NONE, **LORA),
    "adapters, bfloat16": work(8, 512, **LORA, **BF16),
    "adapters, bfloat16 base, fsdp=4": work(16, 512, {"fsdp": 4}, model=UNTIED, param_dtype="bfloat16", **LORA, **BF16),
    "mixture of 4 experts, 2 a token": work(
        8, 512, model={"moe": MoeConfig(num_experts=4, experts_per_token=2, d_ff=352)}
    ),
}


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    print("| step | XLA, MiB | of it arguments | plan, MiB | plan / XLA |\n| --- | ---: | ---: | ---: | ---: |")
    for name, step in WORKS.items():
        sizes: dict[str, Any] = dict(step.axes)
        mesh = make_mesh(MeshConfig(**sizes, devices=math.prod(sizes.values())))
        account = memory.lower(step, mesh).compile(QUICK).memory_analysis()
        given = account.argument_size_in_bytes
        held = given + account.temp_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes
        planned = memory.estimate(step).total
        numbers = f"{held / 2**20:.1f} | {given / 2**20:.1f} | {planned / 2**20:.1f} | {planned / held:.2f}"
        print(f"| {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
