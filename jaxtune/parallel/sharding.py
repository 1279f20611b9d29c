"""Shardings: the mesh, one table from parameter path to sharding, batches, and constraints on activations.

Mesh axes, slowest first: `trial` (independent runs of a sweep), `data` (rows), `expert` (rows, and the experts of
mixtures), `fsdp` (rows, and parameters), `tensor` (heads, feed-forward and vocabulary), `sequence` (tokens of a row).
Any of them may be 1.
"""

import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from jaxtune.errors import UserError
from jaxtune.parallel.mesh import ROWS, Indivisible, on_one_device

Axis = str | tuple[str, ...] | None

RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"embed\.embedding", ("tensor", "fsdp")),
    (r"head\.kernel", ("fsdp", "tensor")),
    (r"(layers\.)?\w*norm\.scale", (None,)),
    (r"layers\.attn\.[qk]_norm\.scale", (None,)),
    (r"layers\.attn\.[qkv]\.kernel", ("fsdp", "tensor", None)),
    (r"layers\.attn\.[qkv]\.bias", ("tensor", None)),
    (r"layers\.attn\.o\.kernel", ("tensor", None, "fsdp")),
    (r"layers\.attn\.sink_bias", ("tensor",)),
    (r"layers\.delta\.(qkv|beta|decay)\.kernel", ("fsdp", "tensor")),
    (r"layers\.delta\.gate\.kernel", ("fsdp", "tensor", None)),
    (r"layers\.delta\.o\.kernel", ("tensor", None, "fsdp")),
    (r"layers\.delta\.conv\.taps", ("tensor", None)),
    (r"layers\.delta\.(log_scale|step_bias)", ("tensor",)),
    (r"layers\.delta\.norm\.scale", (None,)),
    (r"layers\.(mlp|moe\.shared)\.(gate|up)\.kernel", ("fsdp", "tensor")),
    (r"layers\.mlp\.(gate|up)\.bias", ("tensor",)),
    (r"layers\.(mlp|moe\.shared)\.down\.kernel", ("tensor", "fsdp")),
    (r"layers\.moe\.(router|shared_gate)\.kernel", ("fsdp", None)),
    (r"layers\.moe\.(gate|up)\.kernel", ("expert", "fsdp", "tensor")),
    (r"layers\.moe\.down\.kernel", ("expert", "tensor", "fsdp")),
    (r"layers\.moe\.(gate|up)\.bias", ("expert", "tensor")),
    (r"layers\.moe\.down\.bias", (None, None)),
    (r"layers\.(attn\.o|mlp\.down|moe\.router)\.bias", (None,)),
    (r"layers\..*\.kernel\.(a|b|magnitude|scales|value\.scales)", ()),
)
"""Regular expression over the whole dotted path -> mesh axes of the last dimensions; dimensions before them (layers)
are not split. The first match counts."""


class Layout(enum.Enum):
    """Split of activations over devices. The value names the mesh axes of every dimension."""

    HIDDEN = (ROWS, "sequence", None)  # [rows, seq, model]
    HEADS = (ROWS, "sequence", "tensor", None)  # [rows, seq, heads, head_dim]: queries and attention results
    KEYS_VALUES = (ROWS, None, "tensor", None)  # [rows, seq, heads, head_dim]: every device sees all keys of its rows
    CHANNELS = (ROWS, None, "tensor")  # [rows, seq, channels] of linear attention: whole rows, as KEYS_VALUES
    FEED_FORWARD = (ROWS, "sequence", "tensor")  # [rows, seq, ff]


def partition_specs(params: PyTree, *, trials: bool = False) -> PyTree[PartitionSpec]:
    """The spec of every parameter, by `RULES`; `trials`: parameters have a leading axis over trials.

    Raises ValueError listing every path without a rule, and every one with fewer dimensions than its rule names.
    """
    problems = []
    lead = ("trial",) if trials else ()

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        name = path_name(path)
        axes = _rule(name, leaf.ndim - len(lead))
        if axes is None:
            problems.append(f"{name} {list(leaf.shape)}")
            return PartitionSpec()
        return PartitionSpec(*lead, *axes)

    specs = jax.tree_util.tree_map_with_path(spec, params)
    if problems:
        raise ValueError(
            "no sharding rule fits these parameters; add them to jaxtune.parallel.sharding.RULES:\n  "
            + "\n  ".join(problems)
        )
    return specs


def shardings(
    mesh: Mesh | AbstractMesh, params: PyTree, *, indivisible: Indivisible = Indivisible.ERROR, trials: bool = False
) -> PyTree[NamedSharding]:
    """The sharding of every parameter (array or shape). Raises UserError listing the dimensions that do not divide."""
    problems = []

    def place(path: tuple[Any, ...], leaf: Any, spec: PartitionSpec) -> NamedSharding:
        uneven = [i for i, axis in enumerate(spec) if leaf.shape[i] % _size(mesh, axis)]
        if indivisible is Indivisible.ERROR:
            problems.extend(
                f"{path_name(path)} {list(leaf.shape)}: {leaf.shape[i]} over {_axis_text(mesh, spec[i])}"
                for i in uneven
            )
        return NamedSharding(mesh, PartitionSpec(*(None if i in uneven else axis for i, axis in enumerate(spec))))

    tree = jax.tree_util.tree_map_with_path(place, params, partition_specs(params, trials=trials))
    if problems:
        raise UserError(
            "the mesh does not divide these parameters:\n  " + "\n  ".join(problems) + "\n"
            "choose axis sizes that divide them, or keep such dimensions whole on every device with "
            "mesh.indivisible = replicate"
        )
    return tree


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: PyTree, param_shardings: PyTree[NamedSharding]
) -> PyTree[NamedSharding]:
    """Moments are split like their parameters; counters, and statistics of another shape, are on every device."""
    mesh = jax.tree.leaves(param_shardings)[0].mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree_util.tree_leaves_with_path(params)
    by_path = {_keys(p): (x.shape, s) for (p, x), s in zip(shapes, jax.tree.leaves(param_shardings), strict=True)}

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = _keys(path)  # a moment's path ends in its parameter's, whatever the optimizer wraps around it
        found = next((by_path[keys[i:]] for i in range(len(keys)) if keys[i:] in by_path), None)
        return found[1] if found is not None and found[0] == leaf.shape else everywhere

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts into which the rows of a batch are split."""
    return _size(mesh, ROWS)


def batch_sharding(mesh: Mesh | AbstractMesh, *, lead: int = 0, trials: bool = False) -> NamedSharding:
    """Of arrays [*lead, rows, seq]; `trials`: the first axis is over trials, before `lead` others."""
    return NamedSharding(mesh, PartitionSpec(*(("trial",) if trials else ()), *(None,) * lead, ROWS, "sequence"))


def local_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " local"]:
    """Rows of a batch that the devices of this process hold, ascending; with one process, all of them."""
    if rows % row_shards(mesh):
        raise UserError(
            f"{rows} rows do not divide over {_axis_text(mesh, ROWS)}; choose rows per micro-batch as a multiple of "
            f"{row_shards(mesh)}"
        )
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    held = [np.arange(rows)[index] for index in sharding.addressable_devices_indices_map((rows,)).values()]
    return np.unique(np.concatenate(held))


def put_batch(
    mesh: Mesh, batch: PyTree[Shaped[np.ndarray, "..."]], rows: int, *, trials: bool = False
) -> PyTree[Shaped[Array, "..."]]:
    """Global device arrays [*lead, rows, seq] from [*lead, local, seq], the rows of this process (see `local_rows`)."""
    mine = local_rows(mesh, rows)
    place_of = np.full(rows, -1)
    place_of[mine] = np.arange(len(mine))

    def put(local: np.ndarray) -> Array:
        sharding = batch_sharding(mesh, lead=local.ndim - 2 - trials, trials=trials)
        shape = (*local.shape[:-2], rows, local.shape[-1])
        if local.shape[-2] != len(mine):
            raise ValueError(f"this process holds {len(mine)} of {rows} rows, got {local.shape[-2]}")
        if local.shape[-1] % mesh.shape["sequence"]:
            raise UserError(f"rows of {local.shape[-1]} tokens do not divide over sequence={mesh.shape['sequence']}")

        def part(index: Any) -> np.ndarray:
            return local[(*index[:-2], place_of[index[-2]], index[-1])]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, batch)


def constrain(x: Shaped[Array, "..."], layout: Layout) -> Shaped[Array, "..."]:
    """Fix how an activation is split, inside `jax.set_mesh(mesh)`; without a mesh it does nothing.

    Axes that do not divide their dimension are left out: with 2 key/value heads over tensor=4 every device has both.
    """
    if on_one_device():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*_divisible(mesh, x.shape, layout.value)))


def gathered(weights: PyTree, prefix: str) -> PyTree:
    """Weights as a layer computes with them: whole along `fsdp`, still split along `tensor`; `prefix` is their path.

    Inside `jax.set_mesh(mesh)` this is an all-gather, and a reduce-scatter of the gradients: neither whole weights nor
    whole gradients outlive the layer. Without a mesh it does nothing.
    """
    if on_one_device():
        return weights
    mesh = jax.sharding.get_abstract_mesh()

    def gather(path: tuple[Any, ...], weight: Array) -> Array:
        rule = _rule(f"{prefix}.{path_name(path)}".rstrip("."), weight.ndim)
        axes = () if rule is None else _divisible(mesh, weight.shape, rule)
        if "fsdp" not in axes:
            return weight  # nothing to gather; adapters have no rule, and are whole on every device
        whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
        split = jax.lax.with_sharding_constraint(weight, PartitionSpec(*axes))  # for the gradient, on its way back
        return jax.lax.with_sharding_constraint(split, whole)

    return jax.tree_util.tree_map_with_path(gather, weights)


def weights_are_split() -> bool:
    """Whether the mesh in use splits weights along `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy for `jax.checkpoint`: keep every intermediate but gathered weights, which the backward pass gathers again.

    Without it a scan over layers would keep the whole weights of all layers on every device.
    """
    return primitive.name != "sharding_constraint"


def table(mesh: Mesh, params: PyTree, tree: PyTree[NamedSharding]) -> list[tuple[str, tuple[int, ...], str, int]]:
    """For each parameter: path, shape, spec, and bytes on one device."""
    rows = []
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(tree), strict=True):
        held = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        rows.append((path_name(path), tuple(leaf.shape), str(sharding.spec), held))
    return rows


def path_name(path: tuple[Any, ...]) -> str:
    """`layers.attn.q.kernel` from a tree path; Flax variables, adapted and quantised kernels add `.value` to theirs."""
    return re.sub(r"(\.value)+$", "", jax.tree_util.keystr(path, simple=True, separator="."))


def _rule(name: str, ndim: int) -> tuple[Axis, ...] | None:
    """Mesh axes of every dimension of a parameter; None without a rule."""
    for rule, axes in RULES:
        if re.fullmatch(rule, name) and len(axes) <= ndim:
            return (*(None,) * (ndim - len(axes)), *axes)
    return None


def _divisible(mesh: Any, shape: Sequence[int], axes: Sequence[Axis]) -> tuple[Axis, ...]:
    return tuple(axis if n % _size(mesh, axis) == 0 else None for n, axis in zip(shape, axes, strict=True))


def _size(mesh: Any, axis: Axis) -> int:
    return math.prod(mesh.shape[name] for name in _names(axis))


def _names(axis: Axis) -> Iterator[str]:
    yield from () if axis is None else (axis,) if isinstance(axis, str) else axis


def _axis_text(mesh: Any, axis: Axis) -> str:
    sizes: Mapping[str, int] = mesh.shape
    return ", ".join(f"{name}={sizes[name]}" for name in _names(axis))
