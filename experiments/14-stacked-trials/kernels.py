"""Count kernels and bytes of a step of K adapter trials over one base, compiled in order and batched.

    python experiments/14-stacked-trials/kernels.py --trials 16 --topology v5e:2x2

Without `--topology` XLA's CPU compiler is used. XLA's TPU compiler needs no TPU (`pip install libtpu`, the version that
`jax[tpu]` names); the program is that of one chip of the topology. Prints one JSON object for each way: what a step of
all trials launches and moves, and the products among it; and XLA's own account of memory.
"""

import argparse
import dataclasses
import json
import math
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from jaxtune.batch import Batch
from jaxtune.model import lora
from jaxtune.model import transformer as model
from jaxtune.model.attention.core import Backend
from jaxtune.model.lora import LoraConfig
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.step import programs, trials
from jaxtune.step.room import Room
from jaxtune.step.update import Hparams, LossConfig, hparams
from jaxtune.train.hlo import Instruction, Program, called_by, sizes_of

FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "iota")
"""Instructions that launch nothing."""
CONTROL = ("while", "conditional", "call")
PRODUCTS = ("dot", "convolution")


def shape_of(layers: int) -> ModelConfig:
    """Sizes in the published config.json of Llama-3.2-1B, with every layer computed again in the backward pass."""
    return ModelConfig(
        vocab_size=128256, d_model=2048, num_layers=layers, num_heads=32, num_kv_heads=8, head_dim=64, d_ff=8192,
        max_seq_len=131072, tie_embeddings=True, remat=Remat.FULL, attention=Backend.REFERENCE,
        rope=RopeConfig(theta=500000.0),
    )  # fmt: skip


class Account(Program):
    """Kernels, products and bytes of one run of a compiled program; bodies of loops count as often as they run."""

    def __init__(self, text: str):
        super().__init__(text, 1)
        self.kernels = self.products = self.loops_of_unknown_length = 0
        self.moved = self.of_products = 0
        self._visit(self.entry, 1)

    def _visit(self, name: str, times: int) -> None:
        for instruction in self.computations[name].values():
            if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
                continue
            if instruction.opcode in CONTROL:
                trips = self.trips(instruction) if instruction.opcode == "while" else 1
                self.loops_of_unknown_length += trips is None
                for role, inside in called_by(instruction):
                    if role != "condition" and inside in self.computations:
                        self._visit(inside, times * (trips or 1))
                continue
            moved = self._moved(name, instruction)
            self.kernels += times
            self.moved += times * moved
            if self._holds_product(instruction):
                self.products += times
                self.of_products += times * moved

    def _holds_product(self, instruction: Instruction) -> bool:
        inside = [name for role, name in called_by(instruction) if role == "calls" and name in self.computations]
        return instruction.opcode in PRODUCTS or any(
            self._holds_product(x) for name in inside for x in self.computations[name].values()
        )

    def _moved(self, computation: str, instruction: Instruction) -> int:
        """Bytes read and written: of an operand that a fusion only slices, the slices."""
        known = self.computations[computation]
        inside = next((name for role, name in called_by(instruction) if role == "calls"), None)
        total = 0
        for place, operand in enumerate(instruction.operands):
            if operand in known:
                whole = sum(sizes_of(known[operand].type))
                total += min(whole, self._read(inside, place, whole))
        written = sum(sizes_of(instruction.type))
        root = None if inside is None else self._root(inside)
        if root is not None and root.opcode == "dynamic-update-slice":  # in place: the rest is not touched
            written = sum(sizes_of(self.computations[inside or ""][root.operands[1]].type))
        return total + written

    def _read(self, inside: str | None, place: int, whole: int) -> int:
        if inside is None or inside not in self.computations:
            return whole
        body = self.computations[inside]
        parameter = next(
            (x for x in body.values() if x.opcode == "parameter" and f"parameter({place})" in x.line), None
        )
        if parameter is None:
            return whole
        users = [x for x in body.values() if parameter.name in x.operands]
        return min(whole, sum(self._used(user, parameter.name, whole) for user in users))

    def _used(self, user: Instruction, name: str, whole: int) -> int:
        """Bytes of an array that one instruction inside a fusion reads."""
        if user.opcode == "dynamic-slice" and user.operands[0] == name:
            return sum(sizes_of(user.type))
        if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            return 0
        if user.opcode == "fusion":
            inner = next(called for role, called in called_by(user) if role == "calls")
            return sum(
                self._read(inner, place, whole) for place, operand in enumerate(user.operands) if operand == name
            )
        return whole

    def _root(self, computation: str) -> Instruction | None:
        return next((x for x in self.computations[computation].values() if x.line.lstrip().startswith("ROOT")), None)


def compile_step(options: argparse.Namespace, mode: trials.StackMode) -> dict:
    """Compile a step of all trials, and count."""
    if options.topology is None:
        devices = jax.devices()[:1]
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices[:1]
    mesh = make_mesh(MeshConfig(data=1, devices=1), devices)
    adapters, positions = LoraConfig(), options.rows * options.seq_len
    shape = shape_of(options.layers)
    frozen = jax.eval_shape(
        lambda p: lora.freeze_base(p, adapters), model.abstract_params(shape, jnp.dtype(options.param_dtype))[1]
    )
    trained = jax.eval_shape(lambda p: lora.init_lora(p, adapters, 0), frozen)
    spec = programs.ProgramSpec(
        model=shape, optim=OptimConfig(), loss=LossConfig(chunk=positions), lora=adapters,
        compute_dtype=options.compute_dtype, num_tasks=2, room=Room(capacity=positions), mesh=mesh,
    )  # fmt: skip
    program, count = programs.build(spec, trained), options.trials
    stacked = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype)
    state = jax.tree.map(stacked, jax.eval_shape(program.init, trained))
    rows = jax.ShapeDtypeStruct((count, 1, options.rows, options.seq_len), jnp.int32)
    fields = {field.name: rows for field in dataclasses.fields(Batch)}
    fields["loss_weights"] = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    numbers = {name: stacked(jnp.asarray(value)) for name, value in vars(hparams(1.0)).items()}

    def step(state, frozen, batch, numbers):
        one = lambda mine, given: program.plain_train_step(mine, frozen, Batch(**given[0]), Hparams(**given[1]))
        return trials.COMPUTE[mode](one, state, (batch, numbers), jnp.ones(count, bool), np.asarray(count, np.int32))

    began = time.process_time()
    with jax.set_mesh(mesh):
        compiled = program.jit(step, donate_argnums=0).lower(state, frozen, fields, numbers).compile()
    account, xla = Account(compiled.as_text() or ""), compiled.memory_analysis()
    return {
        "way": mode.value,
        "compiler": options.topology or "cpu",
        "jax": jax.__version__,
        "trials": count,
        "layers": options.layers,
        "rows of a trial": options.rows,
        "seq_len": options.seq_len,
        "base and compute": [options.param_dtype, options.compute_dtype],
        "kernels": account.kernels,
        "of these with products": account.products,
        "gigabytes moved": round(account.moved / 1e9, 2),
        "by kernels with products": round(account.of_products / 1e9, 2),
        "base in gigabytes": round(
            sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(frozen)) / 1e9, 2
        ),
        "loops of unknown length, counted once": account.loops_of_unknown_length,
        "xla_gib": {
            "arguments": round(xla.argument_size_in_bytes / 2**30, 2),
            "temporaries": round(xla.temp_size_in_bytes / 2**30, 2),
        },
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rows", type=int, default=1, help="rows of a trial's batch")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--param-dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the frozen base")
    parser.add_argument("--compute-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--topology", help="TPU slice for XLA's TPU compiler, e.g. v5e:2x2")
    parser.add_argument("--way", choices=[mode.value for mode in trials.StackMode], help="only one of the two")
    options = parser.parse_args()
    for mode in trials.StackMode if options.way is None else [trials.StackMode(options.way)]:
        print(json.dumps(compile_step(options, mode)), flush=True)


if __name__ == "__main__":
    main()
