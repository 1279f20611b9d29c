"""Low-rank adapters over a frozen base: LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353).

Adapters are a parameter tree of their own, the only one that trains. For a kernel W with inputs I and outputs O:

    LoRA    y = x W + s (x A) B               A [I, rank], B [rank, O]
    DoRA    y = (x W + s (x A) B) * m / ||W + s A B||      norm over inputs, held constant in the gradient

`apply_lora` keeps the two factors apart inside the model: no weight-sized array and no weight-sized gradient exists,
and a third of the arithmetic of full training is saved. `merge` adds them up, for export and generation.
"""

import dataclasses
import enum
import math
import re
import zlib
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.model.linear import Kernel, product
from jaxtune.model.quantize import Bits, quantize_params

ADAPTABLE: dict[str, tuple[int, int]] = {
    r"layers\.attn\.[qkv]\.kernel": (1, 1),
    r"layers\.(attn|delta)\.o\.kernel": (1, 2),
    r"layers\.delta\.(qkv|gate|beta|decay)\.kernel": (1, 1),
    r"layers\.(mlp|moe\.shared)\.(gate|up|down)\.kernel": (1, 1),
    r"layers\.moe\.(gate|up|down)\.kernel": (2, 1),
    r"head\.kernel": (0, 1),
}
"""Kernels that may have an adapter -> how many axes stack kernels (layers, experts), and how many are inputs."""


class Variant(enum.Enum):
    """Form of an adapter's update."""

    LORA = "lora"
    DORA = "dora"  # the direction by LoRA, and the length of each output's weights by itself


class Scaling(enum.Enum):
    """The factor s of an adapter."""

    CLASSIC = "classic"  # alpha / rank
    RANK_STABILIZED = "rank_stabilized"  # alpha / sqrt(rank)


ATTENTION = r"layers\.attn\.[qkvo]\.kernel"
"""Target: the kernels of attention, and with them those of linear layers."""
LINEAR = r"layers\.delta\.(qkv|gate|o)\.kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of adapters: the kernels that get one, its rank, scale and form."""

    targets: tuple[str, ...] = (
        ATTENTION,
        r"layers\.(mlp|moe|moe\.shared)\.(gate|up|down)\.kernel",
    )
    """Regular expressions for whole paths of kernels; by default all of attention (linear layers with it) and
    feed-forward."""
    rank: Annotated[int, Range(1, 65536)] = 16
    """Width of the adapters; at least 1."""
    alpha: Annotated[float | int, Range(0, 1e6, above=True)] = 32.0
    """Strength; divided by rank (or its root) it is the factor on the adapter's product. Above 0."""
    scaling: Scaling = Scaling.CLASSIC
    """How rank divides alpha."""
    variant: Variant = Variant.LORA
    """LoRA or DoRA."""
    base: Bits | None = None
    """Keep the base's kernels as integers of this width (compare QLoRA, arXiv:2305.14314); None: as they are."""
    start: str | None = None
    """PEFT folder, here or at a URL, of the adapters to start from, with this rank, alpha, scaling, variant and these
    targets; None: fresh ones."""

    def __post_init__(self):
        check_fields(self, "lora")
        if not self.targets:
            raise UserError("lora targets is empty; name the kernels to adapt")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora targets: {pattern!r} is not a regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """The factor on the adapters' product."""
        return self.alpha / (self.rank if self.scaling is Scaling.CLASSIC else math.sqrt(self.rank))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted(Kernel):
    """A frozen kernel with its adapter, in the place of the kernel."""

    value: Any
    """The frozen kernel: an array, or a Quantized one."""
    a: Any
    b: Any
    magnitude: Any
    """Length of each output's weights; None for plain LoRA."""
    scale: Any
    """Factor on the adapter's product, a number that may be traced; where layers are stacked, one for each."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of input axes."""

    def product(self, spec: str, left: Float[Array, "..."], out_dtype: Any) -> Float[Array, "..."]:
        """The base's product and the adapter's, which never meet as weights."""
        into, out_of = _low_rank_specs(spec)
        base = product(spec, left, self.value, out_dtype=out_dtype)
        update = product(out_of, product(into, left, self.a), self.b, out_dtype=out_dtype)
        y = base + jnp.asarray(self.scale, update.dtype) * update
        if self.magnitude is None:
            return y
        factor = self.magnitude / jax.lax.stop_gradient(self._lengths(self._sum()))
        return y * factor.astype(y.dtype).reshape((1,) * (y.ndim - factor.ndim) + factor.shape)

    def dense(self) -> Float[Array, "..."]:
        """Base and adapter as one kernel, in float32."""
        whole = self._sum()
        if self.magnitude is None:
            return whole
        factor = self.magnitude / jax.lax.stop_gradient(self._lengths(whole))
        return whole * jnp.expand_dims(factor, self._input_axes(whole))

    def _sum(self) -> Float[Array, "..."]:
        lead = self.a.shape[: self.a.ndim - 1 - self.inputs]
        a, b = self.a.reshape(*lead, -1, self.a.shape[-1]), self.b.reshape(*lead, self.a.shape[-1], -1)
        update = (a @ b).reshape(*self.a.shape[:-1], *self.b.shape[len(lead) + 1 :])
        scale = jnp.asarray(self.scale, jnp.float32)
        return dense(self.value) + scale.reshape(scale.shape + (1,) * (update.ndim - scale.ndim)) * update

    def _lengths(self, whole: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.sqrt(jnp.sum(whole**2, axis=self._input_axes(whole)))

    def _input_axes(self, whole: Float[Array, "..."]) -> tuple[int, ...]:
        lead = self.a.ndim - 1 - self.inputs
        return tuple(range(lead, lead + self.inputs))


def _low_rank_specs(spec: str) -> tuple[str, str]:
    """The two products of an adapter: "bsd,dhe->bshe" becomes "bsd,dz->bsz" and "bsz,zhe->bshe"."""
    operands, result = spec.split("->")
    left, kernel = operands.split(",")
    summed = "".join(letter for letter in kernel if letter not in result)
    kept = "".join(letter for letter in left if letter in result)
    outputs = "".join(letter for letter in kernel if letter in result)
    return f"{left},{summed}z->{kept}z", f"{kept}z,z{outputs}->{result}"


def dense(kernel: Float[Array, "..."] | Kernel) -> Float[Array, "..."]:
    """A kernel as one float32 array."""
    return kernel.dense() if isinstance(kernel, Kernel) else kernel.astype(jnp.float32)


def freeze_base(params: PyTree, config: LoraConfig) -> PyTree:
    """The base as it is kept during training: quantised if the configuration says so."""
    return params if config.base is None else quantize_params(params, config.base)


def init_lora(params: dict, config: LoraConfig, seed: int) -> dict:
    """Fresh adapters, float32, for a base: A uniform in +-1/sqrt(inputs), B zero, so that they change nothing yet.

    The tree is that of the base with `a`, `b` (and `magnitude`, the present lengths, for DoRA) in the place of each
    adapted `kernel`. Each adapter is drawn from the seed and its own path.
    Raises UserError if a pattern of `config.targets` matches no kernel that can be adapted.
    """
    kernels = {path: kernel for path, kernel in _kernels(params) if _is_target(path, config)}
    known = [path for path, _ in _kernels(params)]
    idle = [pattern for pattern in config.targets if not any(re.fullmatch(pattern, path) for path in known)]
    if idle:
        raise UserError(f"lora targets {idle} match no kernel; those that can be adapted are: {', '.join(known)}")
    tree: dict = {}
    for path, kernel in kernels.items():
        *parents, _ = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node |= _init_adapter(path, kernel, config, seed)
    return tree


def _kernels(params: dict) -> Iterator[tuple[str, Any]]:
    """Path and kernel of everything that can be adapted."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, Kernel))
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if any(re.fullmatch(pattern, path) for pattern in ADAPTABLE):
            yield path, leaf


def _is_target(path: str, config: LoraConfig) -> bool:
    # Linear layers go with attention under its name of before there were any: recorded settings stay those of a run.
    patterns = (*config.targets, LINEAR) if ATTENTION in config.targets else config.targets
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _axes(path: str) -> tuple[int, int]:
    return next(axes for pattern, axes in ADAPTABLE.items() if re.fullmatch(pattern, path))


def adapter_shapes(path: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parts of an adapter for a kernel of this path and shape; `magnitude` is DoRA's."""
    lead, inputs = _axes(path)
    stacked, into, out = shape[:lead], shape[lead : lead + inputs], shape[lead + inputs :]
    return {"a": (*stacked, *into, rank), "b": (*stacked, rank, *out), "magnitude": (*stacked, *out)}


def _init_adapter(path: str, kernel: Any, config: LoraConfig, seed: int) -> dict[str, Array]:
    lead, inputs = _axes(path)
    shape = jax.eval_shape(dense, kernel).shape
    shapes = adapter_shapes(path, shape, config.rank)
    bound = 1 / math.sqrt(math.prod(shape[lead : lead + inputs]))
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    parts = {
        "a": jax.random.uniform(key, shapes["a"], jnp.float32, -bound, bound),
        "b": jnp.zeros(shapes["b"], jnp.float32),
    }
    if config.variant is Variant.DORA:
        axes = tuple(range(lead, lead + inputs))
        parts["magnitude"] = jax.jit(lambda kernel: jnp.sqrt(jnp.sum(dense(kernel) ** 2, axis=axes)))(kernel)
    return parts


def with_rank(adapters: dict, rank: int) -> dict:
    """Adapters with so many columns: more are zero, those cut off must be.

    Columns that are zero in both factors have gradients of exactly zero, so updates by Adam, Lion or Muon leave them.
    """

    def fit(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys[-1:], simple=True)
        if name == "magnitude":
            return leaf
        axis = leaf.ndim - 1 if name == "a" else _rank_axis(jax.tree_util.keystr(keys[:-1], simple=True, separator="."))
        if leaf.shape[axis] == rank:
            return leaf
        if leaf.shape[axis] > rank:
            return jax.lax.slice_in_dim(leaf, 0, rank, axis=axis)
        return jnp.pad(leaf, [(0, rank - leaf.shape[axis] if i == axis else 0) for i in range(leaf.ndim)])

    return jax.tree_util.tree_map_with_path(fit, adapters)


def _rank_axis(path: str) -> int:
    """Axis of `b` that is the rank: the one after layers and experts."""
    return _axes(f"{path}.kernel")[0]


def apply_lora(base: dict, adapters: dict, config: LoraConfig, scale: Any = None) -> dict:
    """Parameters for the model's forward pass: the base, with an Adapted kernel wherever there is an adapter.

    The head is merged, since the loss wants it as an array. `scale` replaces that of the config; it may be traced.
    """
    finish = lambda path, kernel: kernel.dense() if path == "head.kernel" else kernel
    return _join(base, adapters, config, "", finish, config.scale if scale is None else scale)


def merge(base: dict, adapters: dict, config: LoraConfig) -> dict:
    """Parameters with the adapters added in, in the dtype of the base (float32 where it is quantised)."""

    def whole(path: str, kernel: Adapted) -> Array:
        return kernel.dense().astype(jnp.float32 if isinstance(kernel.value, Kernel) else kernel.value.dtype)

    merged = _join(base, adapters, config, "", whole, config.scale)
    return jax.tree.map(lambda leaf: dense(leaf) if isinstance(leaf, Kernel) else leaf, merged, is_leaf=_is_kernel)


def _is_kernel(node: Any) -> bool:
    return isinstance(node, Kernel)


def _by_layer(scale: Any, a: Any, path: str) -> Array:
    """The scale as the leaf of an adapter of this path: a scan over stacked layers hands each its own."""
    return jnp.broadcast_to(jnp.asarray(scale, jnp.float32), a.shape[: min(_axes(path)[0], 1)])


def _join(base: dict, adapters: dict, config: LoraConfig, path: str, finish: Any, scale: Any) -> dict:
    joined = dict(base)
    for name, part in adapters.items():
        here = f"{path}{name}"
        if "a" not in part:
            joined[name] = _join(base[name], part, config, f"{here}.", finish, scale)
            continue
        kernel = Adapted(
            value=base[name]["kernel"], a=part["a"], b=part["b"],
            magnitude=part["magnitude"] if config.variant is Variant.DORA else None,
            scale=_by_layer(scale, part["a"], f"{here}.kernel"), inputs=_axes(f"{here}.kernel")[1],
        )  # fmt: skip
        joined[name] = base[name] | {"kernel": finish(f"{here}.kernel", kernel)}
    return joined
