"""Attention kernels of other libraries behind the signature of the reference: cuDNN through JAX, and splash for TPU."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Float, Int

from jaxtune.model.attention.blockwise import RESIDUAL, Scoring

LANES = 128
"""Splash works on multiples of this: row length, and head dimension (padded with zeros)."""
SPLASH_BLOCK = 512
FUSED_BLOCKS = 8
"""Most blocks of keys a row for one backward kernel, which computes the scores once where two kernels do it twice.

It writes the gradient of the queries once for every block of keys, so its memory grows with their number: at eight
blocks of 512 tokens, 268 MB a row of 32 heads of 128 in bfloat16.
"""


def dot_product(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    *,
    implementation: str,
    scoring: Scoring,
) -> Float[Array, "b s h d"]:
    """jax.nn.dot_product_attention with the segments as a mask; it has no soft cap, and no sinks."""
    window = scoring.window
    assert scoring.soft_cap is None and implementation in ("xla", "cudnn")
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=same,
        is_causal=True,
        scale=scoring.scale,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="xla" if implementation == "xla" else "cudnn",
    )


def splash(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    segment_ids: Int[Array, "b s"],
    sinks: Float[Array, " h"] | None = None,
    *,
    scoring: Scoring,
    interpret: bool = False,
) -> Float[Array, "b s h d"]:
    """JAX's splash attention; blocks hidden by causal order or window are skipped. `interpret` needs no TPU."""
    length, heads, dim = query.shape[1:]
    assert length % LANES == 0
    shape = (length, length)
    mask = (
        splash_attention_mask.CausalMask(shape)
        if scoring.window is None
        else splash_attention_mask.LocalMask(shape, (scoring.window - 1, 0), 0)
    )
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(length),
        attn_logits_soft_cap=scoring.soft_cap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUAL,
        interpret=interpret,
    )
    # The kernel wants [heads, seq, dim] and applies no scale.
    arguments = [_heads_first(x, dim) for x in ((query * scoring.scale).astype(query.dtype), key, value)]
    segments = splash_attention_kernel.SegmentIds(q=segment_ids, kv=segment_ids)
    in_axes = (0, 0, 0, 0, None)
    mixed = jnp.asarray(jax.vmap(kernel, in_axes=in_axes)(*arguments, segments, sinks))
    return jnp.moveaxis(mixed, 1, 2)[..., :dim].astype(query.dtype)


def _heads_first(x: Float[Array, "b s h d"], dim: int) -> Float[Array, "b h s e"]:
    return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -dim % LANES))), 1, 2)


def _block_sizes(length: int) -> splash_attention_kernel.BlockSizes:
    """The largest block up to SPLASH_BLOCK that divides the row, for all passes; one backward kernel, or two."""
    block = max(b for b in range(LANES, min(SPLASH_BLOCK, length) + 1, LANES) if length % b == 0)
    fused = length // block <= FUSED_BLOCKS
    return splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
