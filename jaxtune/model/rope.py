"""Rotary position embeddings: base frequencies, context-extension rules, and the rotation itself."""

import dataclasses
import enum
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jaxtune.errors import UserError

T = TypeVar("T")


class RopeScaling(enum.Enum):
    """Scaling of the base frequencies for contexts longer than those of pretraining."""

    NONE = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of one kind of layer (arXiv 2104.09864); unused fields stay None."""

    theta: float = 10_000.0
    """Base of the geometric series of frequencies."""
    partial: float = 1.0
    """Share of the head dimension that is rotated, in (0, 1]; the rest passes unchanged."""
    scaling: RopeScaling = RopeScaling.NONE
    factor: float | None = None
    """Context extension: extended length / original length. LINEAR, LLAMA3, YARN."""
    original_max_len: int | None = None
    """Context length of pretraining. LLAMA3, YARN, LONGROPE."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    """LLAMA3: frequencies of under `low` turns in the original context are divided by `factor`, of over `high` kept."""
    beta_fast: float | None = None
    beta_slow: float | None = None
    """YARN (arXiv 2309.00071): rotations over the original context between which the ramp runs; None: 32 and 1."""
    truncate: bool = True
    """YARN: round the ends of the ramp to whole dimensions."""
    attention_factor: float | None = None
    """YARN, LONGROPE: cosines and sines are multiplied by this; None derives it as the papers do."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """YARN: numerator and denominator of the derived attention factor; both or neither."""
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    """LONGROPE (arXiv 2402.13753): divisor of each frequency for sequences up to / beyond the original length."""
    interleaved: bool = False
    """Rotated pairs are neighbours, dimensions 2 i and 2 i + 1 of a head (GLM, Cohere), rather than i and i + half."""
    query_growth: float | None = None
    """Queries at position p are multiplied by 1 + query_growth * log(1 + floor(p / original_max_len)) (Ministral 3)."""

    def __post_init__(self):
        needed = {
            RopeScaling.NONE: (),
            RopeScaling.LINEAR: ("factor",),
            RopeScaling.LLAMA3: ("factor", "original_max_len", "low_freq_factor", "high_freq_factor"),
            RopeScaling.YARN: ("factor", "original_max_len"),
            RopeScaling.LONGROPE: ("original_max_len", "short_factor", "long_factor"),
        }[self.scaling]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise UserError(
                f"rope scaling {self.scaling.value!r} needs {', '.join(missing)}; set them in the rope config."
            )
        if not 0 < self.partial <= 1:
            raise UserError(f"the rotated share of the head dimension is {self.partial}; it must be in (0, 1].")
        if not 1 < self.theta < math.inf:
            raise UserError(f"rope theta is {self.theta}; it must be above 1 and finite.")
        names = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
        numbers = {name: getattr(self, name) for name in (*names, "mscale", "mscale_all_dim", "query_growth")}
        lists = {f"{name}[{i}]": x for name in ("short_factor", "long_factor") for i, x in enumerate(self._list(name))}
        for name, value in (numbers | lists).items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"rope {name} is {value}; it must be above 0 and finite.")
        if self.original_max_len is not None and self.original_max_len < 2:
            raise UserError(f"rope original_max_len is {self.original_max_len}; it must be at least 2.")
        if self.query_growth is not None and self.original_max_len is None:
            raise UserError("rope query_growth counts original contexts; set original_max_len.")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not low < high:
            raise UserError(f"rope low_freq_factor ({low}) must be below high_freq_factor ({high}).")

    def _list(self, name: str) -> tuple[float, ...]:
        return getattr(self, name) or ()


def rotary_dim(rope: RopeConfig, head_dim: int) -> int:
    """Number of leading head dimensions that are rotated; always even."""
    dim = int(head_dim * rope.partial)
    if dim < 2 or dim % 2:
        raise UserError(
            f"rope would rotate {dim} of {head_dim} head dimensions; the number must be even and at least 2."
        )
    return dim


def check_fit(rope: RopeConfig, head_dim: int) -> None:
    """Raises UserError for a rope that cannot rotate heads of `head_dim` dimensions."""
    pairs = rotary_dim(rope, head_dim) // 2
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if factors is not None and len(factors) != pairs:
            raise UserError(f"rope {name} has {len(factors)} numbers; the head dimension needs {pairs}.")


def frequencies(rope: RopeConfig, head_dim: int) -> tuple[Float[np.ndarray, "choice half"], float]:
    """Angular frequency of each rotated pair, and the factor on cosines and sines.

    The first axis has one row, or two for LONGROPE: for sequences up to, and beyond, the original length.
    """
    check_fit(rope, head_dim)
    dim = rotary_dim(rope, head_dim)
    # Rounded where pretrained models rounded: far into a long row, one ulp of a frequency shows in the logits.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    base = (np.float32(1.0) / np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)).astype(np.float64)
    match rope.scaling:
        case RopeScaling.NONE:
            return base[None], 1.0
        case RopeScaling.LINEAR:
            return (base / _given(rope.factor))[None], 1.0
        case RopeScaling.LLAMA3:
            return _llama3(rope, base)[None], 1.0
        case RopeScaling.YARN:
            return _yarn(rope, base, dim)[None], _yarn_attention_factor(rope)
        case RopeScaling.LONGROPE:
            return _longrope(rope, base)


def depends_on_length(rope: RopeConfig) -> bool:
    """Whether the frequencies of an example depend on how long it is."""
    return rope.scaling is RopeScaling.LONGROPE


def example_lengths(positions: Int[Array, "b s"], segment_ids: Int[Array, "b s"]) -> Int[Array, "b s"]:
    """For each token of packed rows, the length of its own example; an example's tokens must be adjacent.

    segment_ids [1, 1, 2, 2, 2, 0]   positions [0, 1, 0, 1, 2, 0]   lengths [2, 2, 3, 3, 3, 1]
    """
    width = positions.shape[1]
    last = jnp.concatenate([segment_ids[:, 1:] != segment_ids[:, :-1], jnp.ones_like(segment_ids[:, :1], bool)], axis=1)
    ends = jax.lax.cummin(jnp.where(last, jnp.arange(width)[None, :], width), axis=1, reverse=True)
    return jnp.take_along_axis(positions, ends, axis=1) + 1


def tables(
    rope: RopeConfig, head_dim: int, positions: Int[Array, "b s"], lengths: Int[Array, "b s"]
) -> tuple[Float32[Array, "b s half"], Float32[Array, "b s half"]]:
    """Cosines and sines of position times frequency, in float32 whatever the compute dtype.

    `lengths` are those of the examples that the tokens belong to. An example's own length decides between the two
    frequencies of LONGROPE: neither its neighbours in a row or batch nor the padding can change it.
    """
    choices, factor = frequencies(rope, head_dim)
    inverse = jnp.asarray(choices[0], jnp.float32)[None, None, :]
    if len(choices) == 2:
        beyond = (lengths > _given(rope.original_max_len))[:, :, None]
        inverse = jnp.where(beyond, jnp.asarray(choices[1], jnp.float32)[None, None, :], inverse)
    angles = positions.astype(jnp.float32)[:, :, None] * inverse
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def query_factor(rope: RopeConfig, positions: Int[Array, "b s"]) -> Float32[Array, "b s"] | None:
    """Factor on the query of each position (`query_growth`); None where there is none."""
    if rope.query_growth is None:
        return None
    contexts = positions // _given(rope.original_max_len)
    return 1 + rope.query_growth * jnp.log1p(contexts.astype(jnp.float32))


def rotate(
    heads: Float[Array, "b s h d"],
    cos: Float32[Array, "b s half"],
    sin: Float32[Array, "b s half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "b s h d"]:
    """Rotate pair (i, i + half) of each head by its angle; dimensions beyond 2 * half pass unchanged.

    `interleaved` rotates pair (2 i, 2 i + 1) in its place.
    """
    half = cos.shape[-1]
    if interleaved:
        pairs = heads[..., : 2 * half].reshape(*heads.shape[:-1], half, 2)
        apart = jnp.concatenate([pairs[..., 0], pairs[..., 1], heads[..., 2 * half :]], axis=-1)
        turned = rotate(apart, cos, sin)
        together = jnp.stack([turned[..., :half], turned[..., half : 2 * half]], axis=-1)
        return jnp.concatenate([together.reshape(*heads.shape[:-1], 2 * half), heads[..., 2 * half :]], axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first = heads[..., :half].astype(jnp.float32)
    second = heads[..., half : 2 * half].astype(jnp.float32)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate([*(part.astype(heads.dtype) for part in turned), heads[..., 2 * half :]], axis=-1)


def _llama3(rope: RopeConfig, base: np.ndarray) -> np.ndarray:
    low, high, original = _given(rope.low_freq_factor), _given(rope.high_freq_factor), _given(rope.original_max_len)
    turns = original * base / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return blend * base + (1 - blend) * base / _given(rope.factor)


def _yarn(rope: RopeConfig, base: np.ndarray, dim: int) -> np.ndarray:
    original = _given(rope.original_max_len)

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast or 32.0), dimension(rope.beta_slow or 1.0)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if high == low else 0.0
    extrapolate = 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return base / _given(rope.factor) * (1 - extrapolate) + base * extrapolate


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def mscale(weight: float) -> float:
        factor = _given(rope.factor)
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope(rope: RopeConfig, base: np.ndarray) -> tuple[np.ndarray, float]:
    short, long = np.asarray(rope.short_factor), np.asarray(rope.long_factor)
    original = _given(rope.original_max_len)
    factor = rope.factor or 1.0
    derived = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scale = derived if rope.attention_factor is None else rope.attention_factor
    return np.stack([base / short, base / long]), scale


def _given(value: T | None) -> T:
    assert value is not None  # __post_init__ has checked the fields of the chosen scaling
    return value
