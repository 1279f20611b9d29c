"""Next-token losses as sums and counts per task, paid for only at the positions that carry weight.

The vocabulary is the widest axis of a language model, and in instruction tuning most positions (prompts, padding) train
nothing. So the positions with weight are gathered first, and the head, the softmax and both of their gradients are then
computed for a chunk of them at a time: `[positions, vocab]` never exists whole, forwards or backwards.

Derivatives are taken in the forward pass (as in Liger, arXiv:2410.10989): three matrix products per chunk, where
recomputing the logits in the backward pass takes four.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Scalar = float | int | Float[Array, ""]
"""A number that an ablation may trace. A Python 0 switches the term off, and nothing is computed for it."""

CHUNK_POSITIONS = 1024
CHUNK_BYTES = {"cpu": 256 * 2**20}
"""Most positions of a chunk when no size is given, and the most bytes of its float32 logits by platform.

Every chunk adds a gradient as large as the head to a sum, so few positions in a chunk make that the larger part of the
work. Elsewhere there is memory to spare, and few positions would leave the matrix units waiting for the head.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the trained positions of some rows. Add the sums of all rows, micro-batches and devices; divide once.

    Only `objective` has a derivative; the rest are measurements, and their derivative is zero.
    The leaves are arrays, or shapes under `jax.eval_shape`; stacked trials give each a leading axis.
    """

    objective: Float[Any, "*trial"]
    """Sum of weight * (cross-entropy with label smoothing + z-loss): the number to differentiate."""
    nll: Float[Any, "*trial tasks"]
    """Sum of weight * -log p(target), in nats, without smoothing or z-loss."""
    weight: Float[Any, "*trial tasks"]
    """Sum of the weights: the denominator of a mean."""
    tokens: Int[Any, "*trial tasks"]
    """How many positions carry weight."""
    correct: Int[Any, "*trial tasks"]
    """Positions whose target has the highest logit (ties count as right)."""
    over_capacity: Int[Any, "*trial"]
    """How many positions with weight did not fit `capacity` and are in no sum: the caller must raise unless 0."""
    responses: Float[Any, "*trial"] | None = None
    """Sum of the weights of responses, where that is what the objective is divided by."""


def shift(
    tokens: Int[Array | np.ndarray, "*rows seq"],
    loss_weights: Float[Array | np.ndarray, "*rows seq"],
    segment_ids: Int[Array | np.ndarray, "*rows seq"],
) -> tuple[Int[Array, "*rows seq"], Float[Array, "*rows seq"]]:
    """Next-token view of packed rows: what each position has to predict, and the weight of that prediction.

        tokens       [5, 6, 7,   8, 9, 0]     targets  [6, 7, 8, 9, 0, 0]
        loss_weights [0, 1, 1,   0, 1, 0]     weights  [1, 1, 0, 1, 0, 0]
        segment_ids  [1, 1, 1,   2, 2, 0]

    The first token of a segment is nobody's target, and the last column has none.
    """
    tokens, loss_weights, segment_ids = jnp.asarray(tokens), jnp.asarray(loss_weights), jnp.asarray(segment_ids)
    inside = (segment_ids[..., 1:] == segment_ids[..., :-1]) & (segment_ids[..., 1:] != 0)
    weights = jnp.where(inside, loss_weights[..., 1:], 0)
    last = [(0, 0)] * (tokens.ndim - 1) + [(0, 1)]
    return jnp.pad(tokens[..., 1:], last), jnp.pad(weights, last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The vocabulary head: facts of the model and its devices that make hidden states logits."""

    vocab_axis: int = 0
    """Axis of the head that is the vocabulary: 0 for a tied embedding [V, D], 1 for [D, V]."""
    soft_cap: float | None = None
    """Logits `l` become `soft_cap * tanh(l / soft_cap)`."""
    shards: int = 1
    """Devices over which the rows of a micro-batch are split; each contiguous group of rows gathers its own positions,
    so that no hidden state crosses devices, and the derivative of the head is summed over devices once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Terms beside the cross-entropy, and the number of positions computed at a time."""

    head: HeadSpec = HeadSpec()
    z_loss: Scalar = 0.0
    label_smoothing: Scalar = 0.0
    capacity: int | None = None
    """Most positions with weight in the rows of one shard; arrays of so many are held. None: all positions."""
    chunk: int | None = None
    """Positions whose logits are computed together on a device; None: at most 1,024, on a CPU 256 MiB of logits."""


def per_task_sums(
    hidden: Float[Array, "rows seq model"],
    head: Float[Array, "vocab_or_model model_or_vocab"],
    targets: Int[Array, "rows seq"],
    weights: Float[Array, "rows seq"],
    task_ids: Int[Array, "rows seq"],
    *,
    num_tasks: int,
    spec: LossSpec = LossSpec(),
) -> LossSums:
    """Loss sums of the positions whose weight is not 0; `targets` and `weights` are those of `shift`.

    With logits `l = hidden @ head`, soft-capped where `spec.head` says so, `Z = logsumexp(l)`, smoothing `e`:

        objective = sum w * ((1 - e) * (Z - l[target]) + e * (Z - mean(l)) + z_loss * Z ** 2)

    Work grows with the positions that do carry weight, whatever the capacity. Products are taken in the dtype of
    `hidden`, accumulated in float32; everything after them is float32.
    """
    vocab_axis = spec.head.vocab_axis
    trained = _gather(
        hidden, targets, weights, task_ids, spec.capacity, spec.head.shards,
        spec.chunk or _default_chunk(head, vocab_axis),
    )  # fmt: skip
    options = _Options(num_chunks=trained.num_chunks, vocab_axis=vocab_axis, soft_cap=spec.head.soft_cap)
    results: Any = _position_losses(
        options, trained.hidden, head, trained.targets, trained.weights, trained.chunks_used,
        spec.z_loss, spec.label_smoothing,
    )  # fmt: skip
    objective, (nll, hit) = results[0], jax.lax.stop_gradient(results[1:])
    by_task = functools.partial(_sum_by_task, task_ids=trained.task_ids, num_tasks=num_tasks)
    counted = trained.weights != 0
    return LossSums(
        objective=objective,
        nll=by_task(trained.weights * nll),
        weight=by_task(trained.weights),
        tokens=by_task(counted.astype(jnp.int32)),
        correct=by_task((hit & counted).astype(jnp.int32)),
        over_capacity=trained.over_capacity,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """The positions with weight, [shards, held, ...], first those that exist, then some of weight 0."""

    hidden: Array
    targets: Array
    weights: Array
    task_ids: Array
    num_chunks: int
    chunks_used: Array
    """Chunks that hold a position with weight in any shard."""
    over_capacity: Array


def _gather(
    hidden: Array, targets: Array, weights: Array, task_ids: Array, capacity: int | None, shards: int, chunk: int
) -> _Trained:
    rows, seq, _ = hidden.shape
    if rows % shards:
        raise ValueError(f"{rows} rows cannot be split over {shards} shards")
    flat = lambda x: x.reshape(shards, rows // shards * seq, *x.shape[2:])
    weights = flat(weights)
    slots = weights.shape[1]
    held = slots if capacity is None else min(capacity, slots)
    num_chunks = math.ceil(held / chunk)
    chunk = math.ceil(held / num_chunks)
    index = jax.vmap(lambda row: jnp.nonzero(row != 0, size=num_chunks * chunk, fill_value=slots)[0])(weights)
    index = jnp.where(jnp.arange(num_chunks * chunk) < held, index, slots)
    take = lambda x: jax.vmap(lambda row, places: row.at[places].get(mode="fill", fill_value=0))(x, index)
    counts = jnp.sum(weights != 0, axis=1)
    return _Trained(
        hidden=take(flat(hidden)),
        targets=take(flat(targets)),
        weights=take(weights).astype(jnp.float32),
        task_ids=take(flat(task_ids)),
        num_chunks=num_chunks,
        chunks_used=-(-jnp.minimum(jnp.max(counts), held) // chunk),
        over_capacity=jnp.sum(jnp.maximum(counts - held, 0)).astype(jnp.int32),
    )


def _default_chunk(head: Array, vocab_axis: int) -> int:
    limit = CHUNK_BYTES.get(jax.default_backend())
    most = CHUNK_POSITIONS if limit is None else limit // (4 * head.shape[vocab_axis])
    return max(1, min(CHUNK_POSITIONS, most))


def _sum_by_task(values: Array, *, task_ids: Array, num_tasks: int) -> Array:
    # A masked sum, not a scatter-add: scatters add in no fixed order on a GPU, and runs must repeat bit for bit.
    mine = task_ids.reshape(1, -1) == jnp.arange(num_tasks)[:, None]
    return jnp.sum(jnp.where(mine, values.reshape(1, -1), 0), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    num_chunks: int
    vocab_axis: int
    soft_cap: float | None


def _logits(options: _Options, hidden: Array, head: Array) -> tuple[Array, Array | float]:
    """Float32 logits of a chunk, and the derivative of the soft cap (1.0 without one)."""
    axes = ((2,), (1 - options.vocab_axis,))
    logits = jax.lax.dot_general(hidden, head, (axes, ((), ())), preferred_element_type=jnp.float32)
    if options.soft_cap is None:
        return logits, 1.0
    squashed = jnp.tanh(logits / options.soft_cap)
    return options.soft_cap * squashed, 1.0 - squashed**2


def _chunk_losses(
    logits: Array, targets: Array, z_loss: Scalar, smoothing: Scalar
) -> tuple[Array, Array, Array, Array]:
    """Objective, negative log-likelihood, hit and log-normaliser of each position of a chunk."""
    top = jnp.max(logits, axis=-1)
    log_z = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = log_z - at_target
    loss = nll
    if not _is_off(smoothing):
        loss = (1 - smoothing) * nll + smoothing * (log_z - jnp.mean(logits, axis=-1))
    if not _is_off(z_loss):
        loss = loss + z_loss * log_z**2
    return loss, nll, at_target >= top, log_z


def _logit_gradient(
    logits: Array, targets: Array, weights: Array, log_z: Array, z_loss: Scalar, smoothing: Scalar
) -> Array:
    """Derivative of the weighted objective by the logits: w * (p * (1 + 2 * z * Z) - (1 - e) * onehot - e / V)."""
    vocab = logits.shape[-1]
    scale = weights if _is_off(z_loss) else weights * (1 + 2 * z_loss * log_z)
    is_target = jax.lax.broadcasted_iota(jnp.int32, (1, 1, vocab), 2) == targets[..., None]
    gradient = jnp.exp(logits - log_z[..., None]) * scale[..., None]
    gradient -= jnp.where(is_target, ((1 - smoothing) * weights)[..., None], 0.0)
    return gradient if _is_off(smoothing) else gradient - (smoothing / vocab * weights)[..., None]


def _is_off(number: Scalar) -> bool:
    return isinstance(number, int | float) and number == 0


def _take_chunk(array: Array, i: Array, num_chunks: int) -> Array:
    size = array.shape[1] // num_chunks
    return jax.lax.dynamic_slice_in_dim(array, i * size, size, axis=1)


def _put_chunk(array: Array, chunk: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, chunk.astype(array.dtype), i * chunk.shape[1], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _position_losses(
    options: _Options, hidden: Array, head: Array, targets: Array, weights: Array, chunks_used: Array,
    z_loss: Scalar, smoothing: Scalar,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Objective (a scalar), and per gathered position the negative log-likelihood and whether the target is on top."""
    losses, nll, hit, _, _ = _run_chunks(
        options, hidden, head, targets, weights, chunks_used, z_loss, smoothing, want_gradients=False
    )
    return jnp.sum(weights * losses), nll, hit


def _run_chunks(
    options: _Options, hidden: Array, head: Array, targets: Array, weights: Array, chunks_used: Array,
    z_loss: Scalar, smoothing: Scalar, *, want_gradients: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None]:  # fmt: skip
    shards = hidden.shape[0]
    product = head.astype(hidden.dtype)
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)

    def one_chunk(i: Array, carry: tuple) -> tuple:
        losses, nlls, hits, d_hidden, d_head = carry
        take = lambda x: _take_chunk(x, i, options.num_chunks)
        chunk, target, weight = take(hidden), take(targets), take(weights)
        logits, d_cap = _logits(options, chunk, product)
        loss, nll, hit, log_z = _chunk_losses(logits, target, z_loss, smoothing)
        d_logits = (_logit_gradient(logits, target, weight, log_z, z_loss, smoothing) * d_cap).astype(hidden.dtype)
        if want_gradients:
            d_hidden = _put_chunk(d_hidden, dot(d_logits, product, (((2,), (options.vocab_axis,)), ((), ()))), i)
            left, right = (d_logits, chunk) if options.vocab_axis == 0 else (chunk, d_logits)
            d_head = d_head + dot(left, right, (((1,), (1,)), ((0,), (0,))))
        return _put_chunk(losses, loss, i), _put_chunk(nlls, nll, i), _put_chunk(hits, hit, i), d_hidden, d_head

    zeros = jnp.zeros(weights.shape, jnp.float32)
    start = (
        zeros,
        zeros,
        jnp.zeros(weights.shape, bool),
        jnp.zeros(hidden.shape, hidden.dtype) if want_gradients else None,
        jnp.zeros((shards, *head.shape), jnp.float32) if want_gradients else None,
    )
    losses, nlls, hits, d_hidden, d_head = jax.lax.fori_loop(0, chunks_used, one_chunk, start)
    return losses, nlls, hits, d_hidden, None if d_head is None else jnp.sum(d_head, axis=0).astype(head.dtype)


def _forward(options: _Options, *arguments: Any) -> tuple[tuple[Array, Array, Array], tuple]:
    # Where the head (or the hidden states) needs no gradient, the compiler drops the product that only serves it.
    weights = arguments[3]
    losses, nll, hit, d_hidden, d_head = _run_chunks(options, *arguments, want_gradients=True)
    return (jnp.sum(weights * losses), nll, hit), (d_hidden, d_head, losses)


def _backward(options: _Options, residuals: tuple, cotangents: tuple) -> tuple:
    d_hidden, d_head, losses = (x * cotangents[0].astype(x.dtype) for x in residuals)
    return d_hidden, d_head, None, losses, None, None, None


_position_losses.defvjp(_forward, _backward)
