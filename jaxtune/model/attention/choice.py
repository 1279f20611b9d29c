"""Choice of the attention backend: one that can run here, proven against the reference before the first step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from jaxtune.errors import UserError, first_line
from jaxtune.model.attention.blockwise import Scoring
from jaxtune.model.attention.core import WITHOUT_SINKS, Backend, attention, plain
from jaxtune.model.attention.layer import obstacle_of_parts, plain_in_parts
from jaxtune.model.settings import LayerKind, ModelConfig

PREFERRED = {"gpu": (Backend.CUDNN,), "tpu": (Backend.SPLASH,), "cpu": ()}
"""Kernels that AUTO tries before the plain paths, by platform."""
PROOF_LENGTH = 256
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest deviation from the float32 reference, as a share of its largest value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution:
    """The backend that will run, and why others that AUTO would have preferred will not."""

    backend: Backend
    rejected: dict[str, str]
    """Name of a backend -> reason."""


def resolve(
    config: ModelConfig,
    seq_len: int,
    dtype,
    *,
    platform: str | None = None,
    sequence_shards: int = 1,
    tensor_shards: int = 1,
    proven: bool = True,
) -> tuple[ModelConfig, Resolution]:
    """The config with a definite attention backend for rows of `seq_len` tokens, and how it was chosen.

    AUTO takes the first kernel of the platform that can run and is proven, else the faster plain path. A backend asked
    for by name raises UserError if it cannot run here or fails its proof. `platform` is that of the default device.
    Kernels of a platform that is not here cannot be `proven`. Rows whose tokens are split over `sequence_shards` get a
    backend of whole rows where their heads, of which each device of `tensor_shards` has its part, can be split in place
    of the tokens (see `exchange`), else the ring.
    """
    platform = jax.default_backend() if platform is None else platform
    wide = plain(seq_len, platform=platform, soft_cap=config.attn_soft_cap, sinks=config.attn_sinks)
    parts = sequence_shards, tensor_shards
    plainly = plain_in_parts(config, *parts, platform) if sequence_shards > 1 else wide
    automatic = config.attention is Backend.AUTO
    candidates = (*PREFERRED.get(platform, ()), plainly) if automatic else (config.attention,)
    rejected = {}
    for backend in candidates:
        reason = _obstacle(backend, config, seq_len, dtype, platform) or obstacle_of_parts(backend, config, *parts)
        reason = reason or (_disproof(backend, config, dtype) if proven else None)
        if reason is None:
            return dataclasses.replace(config, attention=backend), Resolution(backend=backend, rejected=rejected)
        rejected[backend.value] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise UserError(f"attention backend cannot run here: {reasons}. Choose auto, {plainly.value} or reference.")


def _obstacle(backend: Backend, config: ModelConfig, seq_len: int, dtype, platform: str) -> str | None:
    """Why a backend cannot run, known without trying."""
    on = {Backend.CUDNN: "gpu", Backend.SPLASH: "tpu"}.get(backend, platform)
    if on != platform:
        return f"it needs a {on.upper()}, and this is a {platform.upper()}"
    if backend in (Backend.DOT_PRODUCT, Backend.CUDNN) and config.attn_soft_cap is not None:
        return "it has no soft cap on attention scores, which this model needs"
    if backend in WITHOUT_SINKS and config.attn_sinks:
        return "it has no attention sinks, which this model needs"
    if backend is Backend.CUDNN and jnp.dtype(dtype) == jnp.float32:
        return "it computes in bfloat16 or float16 only, and the compute dtype is float32"
    if backend is Backend.SPLASH and seq_len % 128:
        return f"it needs rows of a multiple of 128 tokens, and seq_len is {seq_len}"
    if backend is Backend.BLOCKWISE and platform != "cpu":
        return f"its loops are for CPUs, and this is a {platform.upper()}"
    return None


def _disproof(backend: Backend, config: ModelConfig, dtype) -> str | None:
    """What is wrong with a kernel's results on a small packed batch; plain paths are proven by the tests."""
    if backend in (Backend.REFERENCE, Backend.BLOCKWISE, Backend.DOT_PRODUCT, Backend.RING):
        return None
    for window in sorted({_window(kind, config) for kind in config.kinds}, key=str):
        try:
            off = deviation(backend, config, dtype, window)
        except (ValueError, TypeError, RuntimeError) as error:
            return f"{type(error).__name__}: {first_line(error)}"
        if not off <= TOLERANCE[jnp.dtype(dtype).name]:
            return f"its result or gradient is off by {off:.1e} of the largest value (window {window})"
    return None


def deviation(backend: Backend, config: ModelConfig, dtype, window: int | None) -> float:
    """Largest difference from the reference, over outputs and gradients, as a share of the largest value of each."""
    query, key, value, segment_ids = _packed_sample(config)
    sinks = [jnp.linspace(-1.0, 2.0, config.num_heads)] if config.attn_sinks else []
    rounded = [x.astype(dtype) for x in (query, key, value, *sinks)]
    real = (segment_ids > 0)[:, :, None, None]
    scale = config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale

    def outputs(backend: Backend, inputs: list[jax.Array]) -> list[jax.Array]:
        def attend(query, key, value, *sinks):
            scoring = Scoring(scale, window, config.attn_soft_cap)
            mixed = attention(query, key, value, segment_ids, *sinks, scoring=scoring, backend=backend)
            return jnp.where(real, mixed.astype(jnp.float32), 0.0)

        mixed, pull = jax.vjp(attend, *inputs)
        return [mixed, *pull(jnp.cos(mixed))]

    ours = jax.jit(lambda *inputs: outputs(backend, list(inputs)))(*rounded)
    expected = jax.jit(lambda *inputs: outputs(Backend.REFERENCE, list(inputs)))(
        *(x.astype(jnp.float32) for x in rounded)
    )
    return max(
        float(jnp.abs(mine.astype(jnp.float32) - theirs).max() / jnp.abs(theirs).max())
        for mine, theirs in zip(ours, expected, strict=True)
    )


def _packed_sample(config: ModelConfig) -> tuple[Shaped[Array, "..."], ...]:
    """Random queries, keys and values of two rows with several segments and padding."""
    rng = np.random.default_rng(0)
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    sample = [rng.standard_normal((2, PROOF_LENGTH, n, config.head_dim), dtype=np.float32) for n in heads]
    segments = np.zeros((2, PROOF_LENGTH), np.int32)
    for row, ends in enumerate(((70, 200, 230), (5, 130, 256))):
        for i, (start, stop) in enumerate(zip((0, *ends), ends, strict=False)):
            segments[row, start:stop] = i + 1
    return (*map(jnp.asarray, sample), jnp.asarray(segments))


def _window(kind: LayerKind, config: ModelConfig) -> int | None:
    """The layer's window, short enough to matter in the sample."""
    if kind is LayerKind.GLOBAL or config.sliding_window is None:
        return None
    return min(config.sliding_window, PROOF_LENGTH // 4)
