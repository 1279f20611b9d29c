"""The gated delta rule (arXiv 2412.06464): linear attention with a memory that decays and is corrected.

A head keeps a matrix M of keys by values. At each token, with key k, value v, query q (k and q of length one), decay
g <= 0 and strength 0 < beta < 1:

    M = exp(g) M;   M = M + beta k (v - k M);   result = q M / sqrt(D)

`recurrent` computes this token by token. `chunked` computes the same by matrix products: inside a chunk the corrections
solve a triangular system, and only chunks follow one another (arXiv 2406.06484). Sums and memory are float32.

Dimensions: B batch, S tokens, K key heads, H value heads (a multiple of K: R consecutive ones share a key head), D and
V dimensions of a key and of a value, N chunks of C tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

CHUNK, LEAST_CHUNK = 64, 16
"""Tokens of a chunk, and of the only chunk of a short row at least; powers of two."""
EPS = 1e-6
"""Added to the squared length of keys and queries."""

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def chunked(
    query: Float[Array, "b s k d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s h v"],
    decay: Float[Array, "b s h"],
    beta: Float[Array, "b s h"],
    starts: Bool[Array, "b s"],
    memory: Float32[Array, "b h d v"],
) -> tuple[Float32[Array, "b s h v"], Float32[Array, "b h d v"]]:
    """Results of all tokens and the memory after the last one; the memory is emptied before a token that `starts`.

    Any number of tokens; one with decay 0 and beta 0 leaves the memory as it is.
    """
    (batch, length, heads, _), shared = query.shape, value.shape[2] // query.shape[2]
    size = min(CHUNK, max(LEAST_CHUNK, 1 << (length - 1).bit_length()))
    query, key = (_in_chunks(x, size, heads=1) for x in _directions(query, key))
    grouped = lambda x: x.astype(jnp.float32).reshape(batch, length, heads, shared, *x.shape[3:])
    value, decay, beta = (_in_chunks(grouped(x), size, heads=2) for x in (value, decay, beta))
    begun = jnp.cumsum(_in_chunks(starts.astype(jnp.int32), size, heads=0), axis=-1)
    by_group = memory.reshape(batch, heads, shared, *memory.shape[2:])
    by_group, out = jax.lax.scan(_next_chunk, by_group, _prepare(query, key, value, decay, beta, begun))
    out = jnp.moveaxis(out, (0, 4), (1, 2))  # [n b k r c v] -> [b n c k r v]
    return out.reshape(batch, -1, heads * shared, out.shape[-1])[:, :length], by_group.reshape(memory.shape)


def recurrent(
    query: Float[Array, "b s k d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s h v"],
    decay: Float[Array, "b s h"],
    beta: Float[Array, "b s h"],
    starts: Bool[Array, "b s"],
    memory: Float32[Array, "b h d v"],
) -> tuple[Float32[Array, "b s h v"], Float32[Array, "b h d v"]]:
    """The same results as those of `chunked`, token by token: for decoding, and to check the other with."""
    shared = value.shape[2] // query.shape[2]
    query, key = (jnp.repeat(x, shared, axis=2) for x in _directions(query, key))
    value, decay, beta = (x.astype(jnp.float32) for x in (value, decay, beta))

    def step(memory, token):
        query, key, value, decay, beta, start = token
        memory = memory * jnp.where(start[:, None], 0.0, jnp.exp(decay))[:, :, None, None]
        change = beta[:, :, None] * (value - _einsum("bhd,bhdv->bhv", key, memory))
        memory = memory + key[..., None] * change[:, :, None, :]
        return memory, _einsum("bhd,bhdv->bhv", query, memory)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (query, key, value, decay, beta, starts))
    memory, out = jax.lax.scan(step, memory, tokens)
    return jnp.moveaxis(out, 0, 1), memory


def _directions(query, key):
    """Queries and keys of length one in float32, queries over sqrt(D)."""
    query, key = (x.astype(jnp.float32) for x in (query, key))
    query, key = (x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPS) for x in (query, key))
    return query * query.shape[-1] ** -0.5, key


def _in_chunks(x: Array, size: int, *, heads: int) -> Array:
    """Chunks of [b, s, *heads, ...] as [n, b, *heads, size, ...]; zeros follow the last token."""
    batch, length, *rest = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0) for _ in rest)))
    cut = jnp.moveaxis(padded.reshape(batch, -1, size, *rest), 1, 0)
    return jnp.moveaxis(cut, 2, 2 + heads)


def _prepare(query, key, value, decay, beta, begun):
    """What a chunk computes from its own tokens, for all chunks together: the parts that `_next_chunk` takes.

    query, key [n b k c d], value [n b k r c v], decay, beta [n b k r c]; begun [n b c]: segments that began in the
    chunk up to a token. A token sees those before it with the same number, and what came before the chunk where that
    is 0.
    """
    begun, size = begun[:, :, None, None, :], begun.shape[-1]
    behind = jnp.tril(begun[..., :, None] == begun[..., None, :])
    # Decays from token j to token i are sums of what lies between: differences of sums from the chunk's beginning would
    # lose their digits, and to what came before the segment.
    later = jnp.broadcast_to(jnp.tri(size, k=-1, dtype=bool), (*decay.shape, size))
    between = _einsum("il,nbkrlj->nbkrij", jnp.tri(size), jnp.where(later, decay[..., None], 0.0))
    faded = jnp.exp(jnp.where(behind, between, -jnp.inf))
    reads = jnp.where(begun == 0, jnp.exp(jnp.cumsum(decay, axis=-1)), 0.0)
    keeps = faded[..., -1, :]
    inner = lambda left: _einsum("nbkid,nbkjd->nbkij", left, key)[:, :, :, None] * faded
    inverse = unit_inverse(inner(key) * beta[..., :, None])
    corrected = _einsum("nbkrij,nbkrjv->nbkriv", inverse, beta[..., None] * value)
    foreseen = _einsum("nbkrij,nbkjd->nbkrid", inverse * (beta * reads)[..., None, :], key)
    return query, key, inner(query), corrected, foreseen, reads, keeps, reads[..., -1]


def _next_chunk(memory, parts):
    """Memory [b k r d v] after a chunk, and its results [b k r c v]."""
    query, key, scores, corrected, foreseen, reads, keeps, kept = parts
    change = corrected - _einsum("bkrid,bkrdv->bkriv", foreseen, memory)
    out = reads[..., None] * _einsum("bkid,bkrdv->bkriv", query, memory) + _einsum("bkrij,bkrjv->bkriv", scores, change)
    added = _einsum("bkjd,bkrjv->bkrdv", key, keeps[..., None] * change)
    return memory * kept[..., None, None] + added, out


@jax.custom_vjp
def unit_inverse(lower: Float32[Array, "*b c c"]) -> Float32[Array, "*b c c"]:
    """Inverse of the identity plus the strictly lower part of a matrix, whose size is a power of two.

    Blocks are joined pairwise: of a matrix [[A, 0], [L, B]] the inverse is [[A', 0], [-B' L A', B']]. It is as exact as
    substitution row by row, and made of matrix products alone.
    """
    size = lower.shape[-1]
    over_all = lambda matrix: jnp.broadcast_to(matrix, lower.shape)
    rows = jnp.arange(size)
    inverse = over_all(jnp.eye(size, dtype=lower.dtype))
    width = 1
    while width < size:
        joined, second = rows // (2 * width), rows // width % 2 == 1
        between = (joined[:, None] == joined[None, :]) & second[:, None] & ~second[None, :]
        part = jnp.where(over_all(between), lower, 0.0)
        inverse = inverse - (part if width == 1 else _multiply(inverse, part, inverse))
        width *= 2
    return inverse


def _multiply(*matrices):
    return functools.reduce(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST), matrices)


def _inverse_forward(lower):
    inverse = unit_inverse(lower)
    return inverse, inverse


def _inverse_backward(inverse, gradient):
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(_multiply(transposed, gradient, transposed), -1),)


unit_inverse.defvjp(_inverse_forward, _inverse_backward)


def operations(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> float:
    """Floating-point operations of `chunked` for each token of a long row, forward."""
    scores = 2 * 2.0 * CHUNK * key_dim * key_heads
    squares = 1 + 2 * (CHUNK.bit_length() - 2)  # products of [CHUNK, CHUNK]: sums of decays, and in `unit_inverse`
    inside = 2.0 * CHUNK * (squares * CHUNK + 2 * value_dim + key_dim)
    return scores + value_heads * (inside + 3 * 2.0 * key_dim * value_dim)


def transient_floats(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> int:
    """Float32 numbers for each token that the backward pass of `chunked` holds together: inputs, parts, gradients."""
    square = 6 * CHUNK  # scores, decays, system, inverse, and gradients of two of them
    vectors = 2 * 3 * (key_dim + value_dim)
    return 4 * key_heads * key_dim + value_heads * (square + vectors + 2 * key_dim * value_dim // CHUNK)
