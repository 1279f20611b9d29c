"""Optimizers, learning-rate schedules and parameter groups: from a gradient to the update of the parameters.

The learning rate and the weight decay themselves are left out, so that a compiled step can take them as traced numbers
and serve every arm of an ablation:

    rate = rate_table(config, total_steps)[step]
    direction, state = optimizer.update(gradients, state, params, clip_norm=clip_norm)
    params = apply_update(params, direction, groups, rate=rate, weight_decay=weight_decay)
"""

import dataclasses
import enum
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxtune.errors import Range, UserError, check_fields

Scalar = float | int | Float[Array, ""]
"""A number that an ablation may trace."""


class Optimizer(enum.Enum):
    """Rule that turns gradients into an update direction; all are optax's."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"
    """Second moments kept as row and column sums, no momentum (arXiv:1804.04235): almost no optimizer state."""
    LION = "lion"
    """Sign of a momentum (arXiv:2302.06675): half of Adam's state; wants a rate 3 to 10 times lower, b2 of 0.99."""
    MUON = "muon"
    """Orthogonalised momentum (arXiv:2502.16982) for the matrices of `MUON_AXES`, Adam for the rest."""


class Schedule(enum.Enum):
    """Shape of the learning rate after the warmup."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    INVERSE_SQRT = "inverse_sqrt"
    WSD = "wsd"
    """Warmup, stable, decay: constant until the last `decay_frac` of the steps, then linear."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, schedule, and which parameters they apply to. Patterns are regular expressions for a whole path,
    for instance `layers.attn.*` or `embed.embedding`.
    """

    optimizer: Optimizer = Optimizer.ADAMW
    """Update rule."""
    peak_lr: Annotated[float, Range(0, 1e3, above=True)] = 2e-5
    """Learning rate at the end of the warmup; above 0."""
    schedule: Schedule = Schedule.COSINE
    """Shape of the learning rate after the warmup."""
    warmup_frac: Annotated[float, Range(0, 1, below=True)] = 0.03
    """Share of all steps spent warming up, in [0, 1). If not 0 it is at least two steps, so that a short run starts
    below the peak, too."""
    warmup_steps: Annotated[int, Range(0, 1e9)] | None = None
    """Steps of warmup; if given, it replaces `warmup_frac`."""
    final_fraction: Annotated[float, Range(0, 1)] = 0.0
    """Where cosine, linear and wsd end, as a share of the peak, in [0, 1]."""
    decay_frac: Annotated[float, Range(0, 1, above=True)] = 0.2
    """Share of all steps that wsd spends decaying, in (0, 1]."""
    b1: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Decay of the first moment, in [0, 1). Adafactor has none."""
    b2: Annotated[float, Range(0, 1, below=True)] = 0.999
    """Decay of the second moment (of the momentum, for Lion), in [0, 1). Adafactor has its own schedule."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """Added to Adam's denominator; above 0."""
    weight_decay: Annotated[float, Range(0, 1e6)] = 0.0
    """Decoupled decay: each step subtracts rate * weight_decay * parameter; 0 or more."""
    no_decay: tuple[str, ...] = (r".*norm.*", r".*bias.*", r".*scale.*", r".*magnitude.*")
    """Paths whose parameters do not decay."""
    clip_norm: Annotated[float, Range(0, 1e12, above=True)] | None = 1.0
    """Largest global norm of the gradient of all trained parameters; None does not clip."""
    lr_multipliers: Mapping[str, Annotated[float, Range(0, 1e6)]] = dataclasses.field(default_factory=dict)
    """Pattern -> factor on the learning rate, 0 or more; the first pattern that matches a path counts."""
    freeze: tuple[str, ...] = ()
    """Paths whose parameters do not train: no gradient, no update, no decay, no optimizer state."""
    momentum_dtype: str | None = None
    """dtype of the first moment ("bfloat16" halves it); None is float32. Second moments are float32 always."""
    ema_decay: Annotated[float, Range(0, 1, above=True, below=True)] | None = None
    """Decay per step of an exponential moving average of the parameters, in (0, 1); None keeps no average."""
    neftune_alpha: Annotated[float, Range(0, 1e4)] = 0.0
    """Size of the noise on the embeddings in training (NEFTune, arXiv:2310.05914: 5 to 15); 0 is none."""

    def __post_init__(self):
        check_fields(self, "optim")
        if self.momentum_dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"momentum_dtype is {self.momentum_dtype!r}; it must be float32, bfloat16 or None")
        for pattern in (*self.no_decay, *self.lr_multipliers, *self.freeze):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{pattern!r} is not a regular expression: {error}") from error


MUON_AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    r"layers\.(attn\.[qkv]|delta\.gate)\.kernel": ((-3,), (-2, -1)),
    r"layers\.(attn|delta)\.o\.kernel": ((-3, -2), (-1,)),
    r"layers\.(delta\.(qkv|beta|decay)|(mlp|moe|moe\.shared)\.\w+)\.kernel": ((-2,), (-1,)),
}
"""Parameters that Muon treats as matrices: path -> input axes, output axes. Each layer and expert is a matrix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroups:
    """Settings of each parameter: trees of Python values shaped like the parameters."""

    rate: PyTree
    """Factor on the learning rate."""
    decay: PyTree
    """1.0 where weight decay applies, else 0.0."""
    trained: PyTree
    """False where the parameter is frozen."""


def param_paths(params: PyTree) -> PyTree:
    """Each parameter's path, its keys joined by dots: the strings that patterns are matched with."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), params
    )


def _matches(patterns: Iterable[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def make_groups(config: OptimConfig, params: PyTree) -> ParamGroups:
    """Resolve the patterns of `config` against the paths of `params` (arrays or their shapes).

    Raises UserError for patterns of `freeze` or `lr_multipliers` that match nothing, and if nothing is left to train.
    """
    paths = param_paths(params)
    known = jax.tree.leaves(paths)
    for field, patterns in {"freeze": config.freeze, "lr_multipliers": config.lr_multipliers}.items():
        idle = [pattern for pattern in patterns if not any(re.fullmatch(pattern, path) for path in known)]
        if idle:
            raise UserError(f"{field}: {idle} match no parameter; the parameters are: {', '.join(known)}")
    trained = jax.tree.map(lambda path: not _matches(config.freeze, path), paths)
    if not any(jax.tree.leaves(trained)):
        raise UserError(f"freeze: {list(config.freeze)} leave no parameter to train; freeze fewer")
    factors = config.lr_multipliers.items()
    return ParamGroups(
        rate=jax.tree.map(lambda path: next((f for p, f in factors if re.fullmatch(p, path)), 1.0), paths),
        decay=jax.tree.map(lambda path: 0.0 if _matches(config.no_decay, path) else 1.0, paths),
        trained=trained,
    )


def stop_frozen(params: PyTree, groups: ParamGroups) -> PyTree:
    """The parameters, with no gradient flowing into frozen ones: used inside the loss, it saves computing them."""
    return jax.tree.map(lambda param, on: param if on else jax.lax.stop_gradient(param), params, groups.trained)


def make_optimizer(config: OptimConfig, params: PyTree) -> optax.GradientTransformation:
    """Gradients to an update direction, without learning rate and decay, to be subtracted (see `apply_update`).

    Frozen parameters get a direction of zero, hold no state, and are no part of the norm that is clipped. `params` may
    be arrays or their shapes. `update` takes a `clip_norm` in place of the config's, which may be traced.
    """
    trained = make_groups(config, params).trained
    rule = _wide(optax.chain(_clip(config.clip_norm), RULES[config.optimizer](config)))
    if all(jax.tree.leaves(trained)):
        return rule
    labels = jax.tree.map(lambda on: "train" if on else "freeze", trained)
    return optax.partition({"train": rule, "freeze": optax.set_to_zero()}, labels)


def _clip(usual: float | None) -> optax.GradientTransformationExtraArgs:
    """Clips by the global norm: to `clip_norm` if `update` is given one (infinity clips nothing), else to the usual."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None, *, clip_norm: Any = None, **extra: Any):
        limit = usual if clip_norm is None else clip_norm
        return (updates, state) if limit is None else optax.clip_by_global_norm(limit).update(updates, state)

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _wide(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`rule` on float32 copies: optax gives moments the dtype of the parameters, and in bfloat16 a second moment whose
    change is below half a unit in the last place stands still.
    """
    widen = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float32))

    wider = optax.with_extra_args_support(rule)

    def update(gradients: PyTree, state: Any, params: PyTree | None = None, **extra: Any):
        return wider.update(widen(gradients), state, None if params is None else widen(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: rule.init(widen(params)), update)  # pyright: ignore[reportArgumentType]


def _adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.momentum_dtype)


def _adafactor(config: OptimConfig) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _lion(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=config.b1, b2=config.b2, mu_dtype=config.momentum_dtype)


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1, eps=config.eps, mu_dtype=config.momentum_dtype, weight_dimension_numbers=_muon_axes
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_match_adam, updates, param_paths(updates))),
    )
    label = lambda path: "muon" if _matches(MUON_AXES, path) else "adam"
    return optax.partition(
        {"muon": muon, "adam": _adam(config)}, lambda params: jax.tree.map(label, param_paths(params))
    )


def _muon_axes(params: PyTree) -> PyTree:
    return jax.tree.map(lambda path: optax.contrib.MuonDimensionNumbers(*_axes_of(path)), param_paths(params))


def _axes_of(path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return next(axes for pattern, axes in MUON_AXES.items() if re.fullmatch(pattern, path))


def _match_adam(update: Array, path: str) -> Array:
    """Scale an orthogonal matrix to a root mean square of 0.2, that of Adam's updates (arXiv:2502.16982)."""
    sizes = (math.prod(update.shape[axis] for axis in axes) for axes in _axes_of(path))
    return 0.2 * math.sqrt(max(sizes)) * update


RULES: dict[Optimizer, Callable[[OptimConfig], optax.GradientTransformation]] = {
    Optimizer.ADAMW: _adam,
    Optimizer.ADAFACTOR: _adafactor,
    Optimizer.LION: _lion,
    Optimizer.MUON: _muon,
}
"""How each update rule is built."""


def apply_update(
    params: PyTree, direction: PyTree, groups: ParamGroups, *, rate: Scalar, weight_decay: Scalar
) -> PyTree:
    """One step: p - rate * factor * (direction + weight_decay * p), with factor and decay from `groups`.

    Frozen parameters are returned as they are. The others are returned in float32 whatever dtype they have: rounding
    is left to the caller, because to the nearest it would undo small steps (see `round_stochastically`).
    """

    def move(param: Array, step: Array, factor: float, decay: float, trained: bool) -> Array:
        if not trained:
            return param
        wide = param.astype(jnp.float32)
        step = step.astype(jnp.float32) + (weight_decay * wide if decay else 0.0)
        return wide - rate * factor * step

    return jax.tree.map(move, params, direction, groups.rate, groups.decay, groups.trained)


def round_stochastically(exact: PyTree, key: Array, like: PyTree) -> PyTree:
    """Float32 values in the dtypes of `like`; in bfloat16 up or down with the probability of being nearer.

    The expected value is exact, so updates of less than half a unit in the last place add up (arXiv:2010.06192), where
    rounding to the nearest loses every one of them. Each leaf draws from `key` and its own number.
    """
    leaves, treedef = jax.tree.flatten(exact)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return treedef.unflatten(
        _round_leaf(leaf, jax.random.fold_in(key, number), kind)
        for number, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True))
    )


def _round_leaf(exact: Array, key: Array, dtype: Any) -> Array:
    if exact.dtype == dtype:
        return exact
    if dtype != jnp.bfloat16:
        raise AssertionError(f"no stochastic rounding to {dtype}")
    bits = jax.lax.bitcast_convert_type(exact, jnp.uint32)
    noise = jax.random.bits(key, exact.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(exact), rounded, exact).astype(jnp.bfloat16)


def warmup_steps(config: OptimConfig, total_steps: int) -> int:
    """Number of warmup steps among `total_steps`.

    Raises UserError if that leaves no step after the warmup, or if the decay of `wsd` would begin before its end.
    """
    steps = int(_warmup(config, np.float32(total_steps)))
    if steps >= total_steps:
        raise UserError(f"a warmup of {steps} steps leaves nothing of a run of {total_steps}; warm up for fewer")
    decay = int(_decay_span(config, np.float32(total_steps)))
    if config.schedule is Schedule.WSD and steps + decay > total_steps:
        raise UserError(
            f"schedule wsd: a warmup of {steps} steps and a decay of {decay} overlap in a run of {total_steps}; lower "
            "warmup_steps, warmup_frac or decay_frac"
        )
    return steps


def _warmup(config: OptimConfig, total: Any) -> Any:
    # Float32 throughout, so that a traced number of steps and a known one round alike.
    if config.warmup_steps is not None:
        return np.float32(config.warmup_steps)
    share = (np.float32(config.warmup_frac) * total).round()
    least = 0 if config.warmup_frac == 0 else 2  # the last step of a warmup has the peak: one alone would be none
    where = jnp if isinstance(total, jax.Array) else np
    return where.maximum(where.minimum(where.maximum(share, least), total - 1), 0)


def _decay_span(config: OptimConfig, total: Any) -> Any:
    where = jnp if isinstance(total, jax.Array) else np
    return where.maximum((np.float32(config.decay_frac) * total).round(), 1)


def make_schedule(
    config: OptimConfig, total_steps: int | Int[Array, ""]
) -> Callable[[int | Int[Array, ""]], Float[Array, ""]]:
    """Learning rate of step k (from 0) of n = `total_steps`, as a share of the peak. Both may be traced.

    A warmup of W steps is (k + 1) / W, so that step 0 trains and step W - 1 has the peak. After it, with
    x = (k - W) / (n - W) and f = `final_fraction`:

        cosine        f + (1 - f) * (1 + cos(pi x)) / 2
        linear        1 - (1 - f) * x
        constant      1
        inverse_sqrt  sqrt(max(W, 1) / (k + 1))
        wsd           1, then linear to f over the last `decay_frac` of the n steps

    No step is further from the one before than the slope of its phase, so no schedule jumps. Raises UserError if
    `total_steps` is a number and the phases do not fit into it (see `warmup_steps`).
    """
    if isinstance(total_steps, int):
        warmup_steps(config, total_steps)
    total = jnp.asarray(total_steps, jnp.float32)
    warm = jnp.asarray(_warmup(config, total))

    def schedule(step: int | Int[Array, ""]) -> Float[Array, ""]:
        k = jnp.asarray(step, jnp.float32)
        ramp = jnp.where(k + 1 < warm, (k + 1) / jnp.maximum(warm, 1), 1.0)  # W * (1 / W), as XLA divides, may be < 1
        return jnp.where(k < warm, ramp, _decayed(config, k, total, warm))

    return schedule


def rate_table(config: OptimConfig, total_steps: int) -> Float[np.ndarray, " steps"]:
    """Learning rate of every step of a run, peak and schedule in one; a compiled step is given one at a time."""
    shares = jax.jit(jax.vmap(make_schedule(config, total_steps)))(jnp.arange(total_steps))
    return np.float32(config.peak_lr) * np.asarray(shares, np.float32)


def _decayed(config: OptimConfig, k: Array, total: Array, warm: Array) -> Array:
    final = config.final_fraction
    share = jnp.clip((k - warm) / jnp.maximum(total - warm, 1), 0.0, 1.0)
    match config.schedule:
        case Schedule.COSINE:
            return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        case Schedule.LINEAR:
            return 1 - (1 - final) * share
        case Schedule.CONSTANT:
            return jnp.ones_like(share)
        case Schedule.INVERSE_SQRT:
            return jnp.sqrt(jnp.maximum(warm, 1) / (k + 1))
        case Schedule.WSD:
            span = jnp.minimum(_decay_span(config, total), jnp.maximum(total - warm, 1))
            return 1 - (1 - final) * jnp.clip((k - (total - span)) / span, 0.0, 1.0)


def update_ema(average: PyTree, params: PyTree, decay: Scalar) -> PyTree:
    """Exponential moving average of the parameters, in float32: decay * average + (1 - decay) * params."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new.astype(old.dtype), average, params)


def neftune_noise(
    key: Array, embeddings: Float[Array, "rows seq model"], segment_ids: Int[Array, "rows seq"], alpha: Scalar
) -> Float[Array, "rows seq model"]:
    """Embeddings plus uniform noise in [-1, 1] * alpha / sqrt(L * D), L the length of the token's segment.

    NEFTune, arXiv:2310.05914. L is the example's own length, so packing and padding do not change the noise level.
    """
    row, longest = jnp.arange(segment_ids.shape[0])[:, None], segment_ids.shape[1]
    counts = jnp.zeros((len(segment_ids), longest + 1), jnp.int32).at[row, segment_ids].add(1)
    lengths = counts[row, segment_ids]
    noise = jax.random.uniform(key, embeddings.shape, jnp.float32, -1.0, 1.0)
    size = jnp.where(segment_ids == 0, 0.0, alpha / jnp.sqrt(lengths * embeddings.shape[-1]))
    return embeddings + (noise * size[..., None]).astype(embeddings.dtype)
