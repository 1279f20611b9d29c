"""Memory of a training step on one device, from shapes alone: what takes it, and how many rows fit.

    total = parameters + base + optimizer + gradients + batch + max(activations + max(layer, logits), update)

Parameters, optimizer state and gradients are split as `jaxtune.parallel.sharding` splits them. What the layers keep
for the backward pass is read off the program itself: the residuals of one device's share of rows, heads and
feed-forward, traced but not compiled. No device is needed, so that meshes of any size can be planned on a laptop.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import PyTree

from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, say
from jaxtune.hf import folder as hf
from jaxtune.model.attention.core import Backend, plain
from jaxtune.model.delta_rule import transient_floats
from jaxtune.model.lora import LoraConfig
from jaxtune.model.moe import check_expert_axis
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel import compilation, sharding
from jaxtune.parallel.mesh import AXES, ROWS, Indivisible, MeshConfig, all_devices, mesh_shape
from jaxtune.step import losses, programs
from jaxtune.step.programs import ProgramSpec
from jaxtune.step.room import Room
from jaxtune.step.update import Hparams, LossConfig, hparams, init_state
from jaxtune.train import resolution
from jaxtune.train.residuals import residual_bytes, shapes_by

LIVE_LOGITS = 3
"""Arrays as large as a chunk's logits that exist together: the logits, their exponentials, their gradient."""
WIDE_GRADIENTS = 3
"""Float32 arrays as wide as the feed-forward in a layer's backward pass: the gradients of its two halves and of their
product."""
WIDE_AGAIN = 2
"""Arrays [positions, d_ff] in the compute dtype that the backward pass recomputes: act(gate), and act(gate) * up."""
GATHERED = 5
"""With experts over devices, float32 arrays of a group's tokens in the backward pass: tokens, results, both gradients,
and one on its way."""
TURN = 2.1
"""Arrays of an expert's turn there, over those of a device that has all experts: longer, and masked copies."""
WIDE_ADAPTED = 4
"""With LoRA, four more [positions, d_ff] arrays: the adapter's output and its gradient, for gate and for up."""


EXPERTS = re.compile(r"moe\.(gate|up|down)\.kernel")
"""Kernels of a layer that the axis `expert` splits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A step whose memory is asked for."""

    model: ModelConfig
    optim: OptimConfig
    axes: Mapping[str, int]
    """Devices along each mesh axis of `AXES`."""
    micro_rows: int
    """Rows of a forward pass, over all devices."""
    micro_batches: int
    seq_len: int
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    reduce_dtype: str = "float32"
    capacity: int | None = None
    """Most positions with weight among one device's rows of a micro-batch; None: all."""
    chunk: int | None = None
    """Positions whose logits are computed together; None: the platform's (see `losses`)."""
    lora: LoraConfig | None = None
    platform: str = "cpu"
    """Kind of the devices: cpu, gpu or tpu."""
    indivisible: Indivisible = Indivisible.ERROR

    def __post_init__(self):
        check_expert_axis(self.model.moe, self.axes["expert"])

    @property
    def row_ways(self) -> int:
        """Parts into which the rows of a forward pass are split."""
        return math.prod(self.axes[axis] for axis in ROWS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    """Trained parameters."""
    base: int
    """The frozen model under adapters."""
    optimizer: int
    """Moments, and the average of the parameters if one is kept."""
    gradients: int
    """Those of the parameters; with several micro-batches the sum, and the summand."""
    batch: int
    activations: int
    """What all layers keep for the backward pass."""
    layer: int
    """Peak of one layer's backward pass: gathered and cast weights, recomputed activations, unsharded gradients, and
    the unsharded gradient of the head."""
    logits: int
    """The loss: hidden states of the trained positions, logits of a chunk, the head, the gradient of the head before it
    is split, and a chunk's part of that. It ends before the backward pass of the layers begins."""
    update: int
    """Moments that are computed while the old ones still exist, and the gradient of the head before it is split. The
    activations are gone by then."""

    @property
    def total(self) -> int:
        """The most bytes that exist together."""
        state = self.parameters + self.base + self.optimizer + self.gradients + self.batch
        return state + max(self.activations + max(self.layer, self.logits), self.update)


def estimate(work: Work) -> Memory:
    """Memory of one training step on one device; CPUs without bfloat16 units take more in it (1.27 times was seen)."""
    params, trained, frozen = shapes_by(work.model, work.param_dtype, work.lora)
    mesh = _abstract_mesh(work.axes)
    placed = lambda tree: sharding.shardings(mesh, tree, indivisible=work.indivisible)
    split = placed(trained) if work.lora is None else jax.tree.map(lambda _: sharding.replicated(mesh), trained)
    optimizer = optim.make_optimizer(work.optim, trained)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), trained)
    moments = _bytes(state.opt_state, sharding.optimizer_shardings(optimizer, trained, split))
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trained)
    average = 0 if work.optim.ema_decay is None else _bytes(wide, split)
    gradients = _bytes(wide, split)
    head = _head_gradient(work)
    rows = _rows(work)
    kept, again = _activations(work, rows)
    return Memory(
        parameters=_bytes(trained, split),
        base=0 if frozen is None else _bytes(frozen, placed(frozen)),
        optimizer=moments + average,
        gradients=gradients * min(2, work.micro_batches),
        batch=work.micro_batches * _positions(work, rows) * 5 * 4,
        activations=kept,
        layer=again + _layer_bytes(work, params, rows) + head,
        logits=_loss_bytes(work, rows),
        update=moments + head,
    )


def most_rows(work: Work, device_bytes: int) -> int:
    """The most rows of a forward pass (over all devices) that fit; 0 if not even one row a device does."""
    unit = work.row_ways
    fits = lambda per_device: (
        estimate(dataclasses.replace(work, micro_rows=unit * per_device, capacity=None)).total <= device_bytes
    )
    low, high = 0, 1
    while high <= 4096 and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * unit


def lower(work: Work, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The training step of `work` on a mesh; once compiled, its `memory_analysis()` is XLA's own account."""
    _, trained, frozen = shapes_by(work.model, work.param_dtype, work.lora)
    spec = ProgramSpec(
        model=work.model, optim=work.optim, loss=LossConfig(chunk=work.chunk), lora=work.lora,
        compute_dtype=work.compute_dtype, reduce_dtype=work.reduce_dtype, num_tasks=2,
        room=Room(capacity=work.capacity), mesh=mesh, indivisible=work.indivisible,
    )  # fmt: skip
    program = programs.build(spec, trained)
    whole = sharding.replicated(mesh)
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    state = jax.eval_shape(lambda p: init_state(p, program.optimizer, ema=work.optim.ema_decay is not None), trained)
    if frozen is not None:
        frozen = jax.tree.map(place, frozen, sharding.shardings(mesh, frozen, indivisible=work.indivisible))
    shape, rows = (work.micro_batches, work.micro_rows, work.seq_len), sharding.batch_sharding(mesh, lead=1)
    ids = {field.name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows) for field in dataclasses.fields(Batch)}
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    numbers = {
        name: jax.ShapeDtypeStruct((), value.dtype, sharding=whole) for name, value in vars(hparams(1.0)).items()
    }

    def step(state, frozen, batch, numbers):
        return program.plain_train_step(state, frozen, Batch(**batch), Hparams(**numbers))

    jitted = program.jit(step, donate_argnums=0, out_shardings=(program.state_shardings, whole))
    with jax.set_mesh(mesh):
        return jitted.lower(
            jax.tree.map(place, state, program.state_shardings), frozen, ids | {"loss_weights": weights}, numbers,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes of the parameters of a step."""

    params: PyTree
    """All of the model."""
    trained: PyTree


def shapes_of(work: Work) -> Shapes:
    """Shapes of the parameters of `work`."""
    params, trained, _ = shapes_by(work.model, work.param_dtype, work.lora)
    return Shapes(params=params, trained=trained)


def mesh_config(work: Work) -> MeshConfig:
    """The mesh of `work`, as a config names it."""
    sizes: dict[str, Any] = dict(work.axes)
    return MeshConfig(**sizes, devices=math.prod(sizes.values()), indivisible=work.indivisible)


def _activations(work: Work, rows: int) -> tuple[int, int]:
    """(bytes that all layers keep, bytes that one layer without rematerialisation would keep) of one device's rows."""
    share = _local_model(work)
    plainly = dataclasses.replace(share, remat=Remat.NONE)
    dtypes = work.compute_dtype, work.param_dtype
    kept, *whole = (
        residual_bytes(shape, rows, work.seq_len, *dtypes, work.lora, work.axes["expert"])
        for shape in (share, *(plainly.shallow(n) for n in (1, 2)))
    )
    return kept // work.axes["sequence"], (whole[1] - whole[0]) // work.axes["sequence"]


def _local_model(work: Work) -> ModelConfig:
    """The share of one device of the tensor axis; dimensions that it does not divide are whole.

    Kernels keep what blockwise attention keeps, and so does attention of rows whose tokens are split. Whole rows on
    GPUs run the reference if scores have what no kernel there has. What is offloaded to the host takes no room.
    """
    ways, shape = work.axes["tensor"], work.model
    part = lambda n: n // ways if n % ways == 0 else n
    heads, kv_heads = part(shape.num_heads), part(shape.num_kv_heads)
    auto, whole = shape.attention is Backend.AUTO, work.axes["sequence"] == 1
    backend = plain(work.seq_len, platform="cpu") if auto and whole else shape.attention
    if backend in (Backend.AUTO, Backend.CUDNN, Backend.SPLASH, Backend.RING):
        backend = Backend.BLOCKWISE
    if auto and whole and work.platform == "gpu" and (shape.attn_sinks or shape.attn_soft_cap is not None):
        backend = Backend.REFERENCE
    moe = shape.moe
    if moe is not None:
        shared = None if moe.shared_d_ff is None else part(moe.shared_d_ff)
        moe = dataclasses.replace(moe, d_ff=part(moe.d_ff), shared_d_ff=shared)
    delta = None if shape.delta is None else shape.delta.share(ways)
    remat = Remat.FULL if shape.remat is Remat.OFFLOAD else shape.remat
    return dataclasses.replace(
        shape, remat=remat, num_heads=heads, num_kv_heads=math.gcd(heads, kv_heads), d_ff=part(shape.d_ff), moe=moe,
        vocab_size=part(shape.vocab_size), attention=backend, delta=delta,
    )  # fmt: skip


def _layer_bytes(work: Work, params: PyTree, rows: int) -> int:
    """Copies of one layer's weights, their gradients before they are split, and the wider of feed-forward and rule."""
    ways = lambda path: work.axes["expert"] if EXPERTS.search(sharding.path_name(path)) else 1
    leaves = jax.tree_util.tree_leaves_with_path(params["layers"])
    layer = sum(leaf.size // leaf.shape[0] // ways(path) for path, leaf in leaves) // work.axes["tensor"]
    gradients = 0 if work.lora is not None else 4 * layer
    shape = _local_model(work)
    dense = shape.d_ff if shape.moe is None or shape.dense_layers else 0
    experts = 0 if shape.moe is None else shape.moe.d_ff * shape.moe.experts_per_token + (shape.moe.shared_d_ff or 0)
    split = work.axes["expert"] > 1
    group = GATHERED * 4 * work.axes["expert"] * _positions(work, rows) * shape.d_model if split else 0
    wide = max(dense, experts * (TURN if split else 1))
    again = WIDE_AGAIN + (0 if work.lora is None else WIDE_ADAPTED)
    width = 4 * WIDE_GRADIENTS + jnp.dtype(work.compute_dtype).itemsize * again
    rule = 0 if shape.delta is None else 4 * transient_floats(*shape.delta.sizes) * rows * work.seq_len  # whole rows
    return layer * _copy_width(work) + gradients + max(int(width * _positions(work, rows) * wide) + group, rule)


def _copy_width(work: Work) -> int:
    """Bytes that computing with a weight takes besides the weight itself: gathered along `fsdp`, cast."""
    whole, cast = jnp.dtype(work.param_dtype).itemsize, jnp.dtype(work.compute_dtype).itemsize
    return (whole if work.axes["fsdp"] > 1 else 0) + (cast if work.compute_dtype != work.param_dtype else 0)


def _head_gradient(work: Work) -> int:
    """The head's gradient on its way to its parts: compilers split it when the update needs it, not before."""
    if work.lora is not None or work.axes["fsdp"] == 1:
        return 0
    return 4 * _local_model(work).vocab_size * work.model.d_model


def _loss_bytes(work: Work, rows: int) -> int:
    positions = _positions(work, rows)
    positions = positions if work.capacity is None else min(work.capacity, positions)
    vocab, d_model = _local_model(work).vocab_size, work.model.d_model
    limit = losses.CHUNK_BYTES.get(work.platform)
    most = losses.CHUNK_POSITIONS if limit is None else max(1, limit // (4 * work.model.vocab_size))
    chunk = min(positions, work.chunk or min(losses.CHUNK_POSITIONS, most))
    hidden = 2 * positions * d_model * jnp.dtype(work.compute_dtype).itemsize  # and their gradient
    head = vocab * d_model * (_copy_width(work) + (0 if work.lora is not None else 2 * 4))  # sum and summand
    return hidden + LIVE_LOGITS * chunk * vocab * 4 + head


def _rows(work: Work) -> int:
    ways = work.row_ways
    if work.micro_rows % ways:
        raise UserError(
            f"{work.micro_rows} rows of a forward pass do not divide over {ways} devices ({' x '.join(ROWS)}); "
            f"choose rows per micro-batch as a multiple of {ways}"
        )
    return work.micro_rows // ways


def _positions(work: Work, rows: int) -> int:
    return rows * work.seq_len // work.axes["sequence"]


def _abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    kinds = (AxisType.Auto,) * len(AXES)
    return AbstractMesh(tuple(axes[axis] for axis in AXES), AXES, axis_types=kinds)


def _bytes(tree: PyTree, placed: PyTree) -> int:
    """Bytes of one device's share."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)
    return sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in pairs)


def plan_memory(
    config: ExperimentConfig, *, device_bytes: int, devices: int | None = None, platform: str | None = None
) -> dict[str, Any]:
    """The memory of a config's step by part, and the largest forward pass that fits into `device_bytes`.

    `devices`: size of the job to plan for (default: the product of the mesh axes; the devices here if one is -1).
    `platform`: cpu, gpu or tpu (default: that of the devices here). Every position is taken to carry loss; with short
    answers a step needs less.
    """
    work = work_of(config, devices=devices, platform=platform)
    memory = estimate(work)
    return {
        "mesh": dict(work.axes),
        "micro_rows": work.micro_rows,
        "micro_batches": work.micro_batches,
        "seq_len": work.seq_len,
        "platform": work.platform,
        "bytes": {**dataclasses.asdict(memory), "total": memory.total},
        "device_bytes": device_bytes,
        "fits": memory.total <= device_bytes,
        "most_micro_rows": most_rows(work, device_bytes),
    }


def work_of(config: ExperimentConfig, *, devices: int | None = None, platform: str | None = None) -> Work:
    """The step of a config; see `plan_memory`. No data are read."""
    platform = platform or str(all_devices()[0].platform)
    shape = hf.load_config(resolution.model_folder(config.model))
    sizes = mesh_shape(config.mesh, planned_devices(config.mesh) if devices is None else devices)
    return Work(
        model=dataclasses.replace(shape, remat=config.model.remat, attention=config.model.attention),
        optim=config.optim, axes=dict(zip(AXES, sizes, strict=True)), reduce_dtype=config.model.reduce_dtype.value,
        micro_rows=config.batch.rows // config.batch.micro_batches, micro_batches=config.batch.micro_batches,
        seq_len=config.data.seq_len, param_dtype=config.model.param_dtype.value,
        compute_dtype=compilation.compute_dtype(config.model.compute_dtype.value, platform), chunk=config.loss.chunk,
        lora=config.lora, platform=platform, indivisible=config.mesh.indivisible,
    )  # fmt: skip


def planned_devices(mesh: MeshConfig) -> int:
    """Number of devices that a mesh is meant for: its own product, or for an axis of -1 the devices here."""
    sizes = [getattr(mesh, axis) for axis in AXES]
    if -1 not in sizes:
        return math.prod(sizes)
    return mesh.devices if mesh.devices != -1 else jax.device_count()


def print_table(table: Mapping[str, Any]) -> None:
    """One line for each part, in MiB."""
    axes = ", ".join(f"{axis}={n}" for axis, n in table["mesh"].items() if n > 1) or "one device"
    say(f"per device, mesh {axes}; {table['micro_rows']} rows of {table['seq_len']} tokens a forward pass")
    for name, size in table["bytes"].items():
        say(f"  {name:<12} {size / 2**20:12,.1f} MiB")
    verdict = "fits into" if table["fits"] else "does NOT fit into"
    most = table["most_micro_rows"]
    say(f"{verdict} {table['device_bytes'] / 2**30:.1f} GiB; largest forward pass that fits: {most} rows")
