"""One optimizer update as a pure function: no globals, no config object, no logging, no mesh."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.errors import Range, UserError, check_fields
from jaxtune.step import losses, unpad
from jaxtune.step.losses import HeadSpec
from jaxtune.step.room import Room

Params = PyTree
"""A nested dict of arrays, or of their shardings."""


@runtime_checkable
class Forward(Protocol):
    """The forward pass of a model: the last hidden states and the vocabulary head."""

    def __call__(
        self, params: Params, frozen: Params, batch: Batch, numbers: "Hparams", key: Array | None = None
    ) -> tuple[Array, Array]:
        """Hidden states [rows, seq, model] and head from trainable and frozen parameters.

        `key` is given in training only: what a model randomises (noise on embeddings) it draws from it.
        """
        ...


class Normalization(enum.Enum):
    """Normalisation of a step's loss: the number that its sum is divided by."""

    TOKEN = "token"  # sum of weights: every trained token counts the same
    EXAMPLE = "example"  # every example counts the same, however long its answer
    RESPONSE = "response"  # weights of the responses alone: prompts that train add to it and dilute nothing
    FIXED = "fixed"  # a constant: the summed loss of Tulu 3 (arXiv:2411.15124)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: what is summed, and what the sum is divided by."""

    normalization: Normalization = Normalization.TOKEN
    fixed_denominator: Annotated[float, Range(0, 1e15, above=True)] | None = None
    """Divisor of the summed loss of a step when `normalization` is `fixed`."""
    z_loss: Annotated[float, Range(0, 1e3)] = 0.0
    """Weight of the squared log-normaliser (PaLM, arXiv:2204.02311, uses 1e-4)."""
    label_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Share of the target's probability spread over the vocabulary, in [0, 1)."""
    chunk: Annotated[int, Range(1, 2**30)] | None = None
    """Positions whose logits are computed together; None: a size that suits the platform (see `losses`)."""

    def __post_init__(self):
        check_fields(self, "loss")
        if (self.normalization is Normalization.FIXED) != (self.fixed_denominator is not None):
            raise UserError("loss.fixed_denominator goes with loss.normalization `fixed`, and only with it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """Static facts of an update: tasks, objective, head, and what its arrays have room for."""

    num_tasks: int
    loss: LossConfig = LossConfig()
    head: HeadSpec = HeadSpec()
    room: Room = Room()
    """Sizes of arrays, and which terms the loss has; its numbers are those of `Hparams`, not of `loss`."""
    ema: bool = False
    """Whether a moving average of the parameters is kept."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that an update replaces."""

    step: PyTree
    """Updates done, an int32 scalar; in a tree of shardings, where it lives (so no array type can stand here)."""
    params: Params
    opt_state: PyTree
    ema: Params | None = None
    """Exponential moving average of the parameters, if one is kept."""

    @property
    def measured(self) -> Params:
        """The parameters to evaluate and export: the average where there is one."""
        return self.params if self.ema is None else self.ema


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams:
    """Numbers that an ablation varies. They are traced, so one compiled step serves every arm."""

    learning_rate: Float[Any, "*trial"]
    """Of this update: an entry of `optim.rate_table`."""
    weight_decay: Float[Any, "*trial"]
    seed: Int[Any, "*trial"]
    """Root of the noise in training; step and micro-batch are folded in, so any step can be repeated alone."""
    clip_norm: Float[Any, "*trial"]
    """Largest global norm of the gradient; infinity clips nothing."""
    z_loss: Float[Any, "*trial"]
    label_smoothing: Float[Any, "*trial"]
    ema_decay: Float[Any, "*trial"]
    """Without an average it is read by nothing."""
    adapter_scale: Float[Any, "*trial"]
    """Factor on the product of low-rank adapters; without them it is read by nothing."""
    prompt_weight: Float[Any, "*trial"]
    """Loss weight of the prompts: tokens of another weight are responses. Read where these are the divisor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Report of one update. Per-task values are sums; the reader divides.

    The leaves are arrays, or shapes under `jax.eval_shape`; stacked trials give each a leading axis.
    """

    sums: losses.LossSums
    real_tokens: Int[Any, "*trial"]
    """Tokens of the batch that are not padding."""
    loss: Float[Any, "*trial"]
    """The normalised objective."""
    grad_norm: Float[Any, "*trial"]
    """Before clipping."""
    learning_rate: Float[Any, "*trial"]
    applied: Bool[Any, "*trial"]
    """False when the update was withheld: nothing carried weight, or the loss or gradient was not finite."""
    finite: Bool[Any, "*trial"]


ROUNDING = 2**31 - 1
"""Folded into a step's key for the rounding of parameters; micro-batches fold in their numbers, from 0."""


def hparams(
    learning_rate: float, weight_decay: float = 0.0, seed: int = 0, *, clip_norm: float | None = None,
    z_loss: float = 0.0, label_smoothing: float = 0.0, ema_decay: float | None = None, adapter_scale: float = 1.0,
) -> Hparams:  # fmt: skip
    """The traced form of Python numbers; None stands for no clipping, and for no average. Prompts weigh 0."""
    return Hparams(
        learning_rate=np.float32(learning_rate),
        weight_decay=np.float32(weight_decay),
        seed=np.int32(seed),
        clip_norm=np.float32(math.inf if clip_norm is None else clip_norm),
        z_loss=np.float32(z_loss),
        label_smoothing=np.float32(label_smoothing),
        ema_decay=np.float32(0 if ema_decay is None else ema_decay),
        adapter_scale=np.float32(adapter_scale),
        prompt_weight=np.float32(0),
    )


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """A fresh state at step 0."""
    average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if ema else None
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), ema=average)


def example_normalized(
    weights: Float[Array, "rows seq"], segment_ids: Int[Array, "rows seq"]
) -> Float[Array, "rows seq"]:
    """Weights divided by their example's sum, so that every example with a trained token weighs 1."""
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]).astype(weights.dtype)
    total = jnp.einsum("bts,bs->bt", same, weights)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0)


def batch_sums(
    forward: Forward, params: Params, frozen: Params, batch: Batch, numbers: Hparams, spec: StepSpec,
    key: Array | None = None,
) -> losses.LossSums:  # fmt: skip
    """Loss sums of one micro-batch [rows, seq]."""
    loss, room = spec.loss, spec.room
    targets, weights = losses.shift(batch.tokens, batch.loss_weights, batch.segment_ids)
    if loss.normalization is Normalization.EXAMPLE:
        weights = example_normalized(weights, jnp.asarray(batch.segment_ids))
    responses = None
    if loss.normalization is Normalization.RESPONSE:
        responses = jnp.sum(jnp.where(weights == jnp.asarray(numbers.prompt_weight), 0, weights))
    left_out = jnp.zeros((), jnp.int32)
    if room.tokens is not None:
        laid = unpad.lay(jnp.asarray(batch.segment_ids), tokens=room.tokens, shards=spec.head.shards)
        batch, targets, weights = jax.tree.map(laid.take, (batch, targets, weights))
        batch, left_out = dataclasses.replace(batch, segment_ids=laid.segment_ids), laid.left_out
    hidden, head = forward(params, frozen, batch, numbers, key)
    sums = losses.per_task_sums(
        hidden, head, targets, weights, jnp.asarray(batch.task_ids), num_tasks=spec.num_tasks,
        spec=losses.LossSpec(
            head=spec.head, capacity=room.capacity, chunk=loss.chunk,
            z_loss=jnp.asarray(numbers.z_loss) if room.z_loss else 0.0,
            label_smoothing=jnp.asarray(numbers.label_smoothing) if room.label_smoothing else 0.0,
        ),
    )  # fmt: skip
    return dataclasses.replace(sums, over_capacity=sums.over_capacity + left_out, responses=responses)


Gradient = Callable[[Params, Params, Batch, Hparams, Array], tuple[Params, losses.LossSums]]
"""`(params, frozen, batch [micro_batches, rows, seq], numbers, key) -> (gradient of the summed loss, loss sums)`."""


def make_gradient(forward: Forward, groups: optim.ParamGroups, spec: StepSpec) -> Gradient:
    """The gradient of a step's summed objective, added up over its micro-batches, each with noise of its own."""

    def accumulate(
        params: Params, frozen: Params, batch: Batch, numbers: Hparams, key: Array
    ) -> tuple[Params, losses.LossSums]:
        def objective(params: Params, frozen: Params, micro: Batch, key: Array) -> tuple[Array, losses.LossSums]:
            sums = batch_sums(forward, optim.stop_frozen(params, groups), frozen, micro, numbers, spec, key)
            return sums.objective, sums

        gradient = jax.grad(objective, has_aux=True)
        first = jax.tree.map(lambda x: x[0], batch)
        if batch.tokens.shape[0] == 1:
            return gradient(params, frozen, first, key)

        def body(carry, numbered: tuple[Array, Batch]):
            number, micro = numbered
            found = gradient(params, frozen, micro, jax.random.fold_in(key, number))
            return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, found), None

        grads, sums = jax.eval_shape(gradient, params, frozen, first, key)
        wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), grads)
        zeros = wide, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
        return jax.lax.scan(body, zeros, (jnp.arange(batch.tokens.shape[0]), batch))[0]

    return accumulate


def make_train_step(
    forward: Forward,
    optimizer: optax.GradientTransformation,
    groups: optim.ParamGroups,
    spec: StepSpec,
) -> Callable[[TrainState, Params, Batch, Hparams], tuple[TrainState, StepMetrics]]:
    """The update `(state, frozen, batch, hparams) -> (state, metrics)`; jit, donate and shard it where it is called.

    `batch` has leading axes [micro_batches, rows]. Gradients of the summed loss are added over micro-batches in
    float32 and divided once by the summed weight, so 8x1, 4x2 and 1x8 are the same update whatever the token counts.
    Moments and the average of the parameters are float32 whatever dtype these have; parameters in bfloat16 are rounded
    stochastically, from the step's own key, so that a replay gives the same bits.
    `optimizer` leaves the learning rate out: it is one of the numbers, another for each step.
    """
    accumulate, fixed = make_gradient(forward, groups, spec), spec.loss.fixed_denominator
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, frozen: Params, batch: Batch, hparams: Hparams) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(hparams.seed), state.step)
        grads, sums = accumulate(state.params, frozen, batch, hparams, key)
        weight = sums.weight.sum() if sums.responses is None else sums.responses
        denominator = weight if fixed is None else jnp.asarray(fixed, weight.dtype)
        scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, denominator, 1), 0)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads)
        value, norm = sums.objective * scale, optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        applied = finite & (weight > 0)
        rate, decay = jnp.asarray(hparams.learning_rate), jnp.asarray(hparams.weight_decay)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, clip_norm=hparams.clip_norm)
        exact = optim.apply_update(state.params, updates, groups, rate=rate, weight_decay=decay)
        params = optim.round_stochastically(exact, jax.random.fold_in(key, ROUNDING), state.params)
        ema = optim.update_ema(state.ema, params, hparams.ema_decay) if spec.ema else None
        keep = lambda new, old: jnp.where(applied, new, old)
        new_state = TrainState(
            step=state.step + 1,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            ema=None if ema is None else jax.tree.map(keep, ema, state.ema),
        )
        return new_state, StepMetrics(
            sums=sums,
            real_tokens=jnp.sum(batch.segment_ids != 0),
            loss=value,
            grad_norm=norm,
            learning_rate=rate,
            applied=applied,
            finite=finite,
        )

    return train_step


def make_eval_step(forward: Forward, spec: StepSpec) -> Callable[[Params, Params, Batch, Hparams], losses.LossSums]:
    """`(params, frozen, batch [rows, seq], numbers) -> LossSums`: the plain token loss, whatever training adds to it.

    Of the objective only `chunk` is kept, and arrays hold all positions.
    """
    plain = StepSpec(num_tasks=spec.num_tasks, head=spec.head, loss=LossConfig(chunk=spec.loss.chunk))

    def eval_step(params: Params, frozen: Params, batch: Batch, hparams: Hparams) -> losses.LossSums:
        return batch_sums(forward, params, frozen, batch, hparams, plain)

    return eval_step
