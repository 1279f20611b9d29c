"""The pure update: accumulation, normalisation, withheld updates."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.errors import UserError
from jaxtune.model import transformer as model
from jaxtune.model.linear import lookup, product
from jaxtune.model.settings import ModelConfig
from jaxtune.step import losses
from jaxtune.step import update as step
from jaxtune.step.losses import HeadSpec
from jaxtune.step.room import Room
from jaxtune.step.update import LossConfig, Normalization

CONFIG = ModelConfig(
    vocab_size=32, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=16, max_seq_len=64
)
GRAPHDEF, PARAMS = model.init_params(CONFIG, 0)
OPTIM = optim.OptimConfig(peak_lr=1e-2, clip_norm=None, warmup_frac=0.0)


def forward(params, frozen, batch, numbers, key=None):
    hidden = model.apply(GRAPHDEF, params, batch.tokens, batch.positions, batch.segment_ids)
    return hidden, params["embed"]["embedding"]


def rows(count: int = 8, seq: int = 12, seed: int = 0) -> Batch:
    """Two segments a row, of unequal length, with unequal numbers of trained tokens."""
    rng = np.random.default_rng(seed)
    cut = rng.integers(3, 8, count)
    place = np.arange(seq)[None]
    first = place < cut[:, None]
    end = rng.integers(9, seq + 1, count)[:, None]
    segments = np.where(place < end, np.where(first, 1, 2), 0).astype(np.int32)
    positions = np.where(first, place, place - cut[:, None]).astype(np.int32) * (segments > 0)
    weights = (rng.random((count, seq)) < rng.random((count, 1))) * (segments > 0)
    return Batch(
        tokens=rng.integers(0, 32, (count, seq)).astype(np.int32),
        loss_weights=weights.astype(np.float32),
        segment_ids=segments,
        positions=positions.astype(np.int32),
        task_ids=(segments > 1).astype(np.int32),
    )


def split(batch: Batch, micro: int) -> Batch:
    return jax.tree.map(lambda x: jnp.asarray(x.reshape(micro, -1, x.shape[-1])), batch)


def make(**options):
    optimizer = optim.make_optimizer(OPTIM, PARAMS)
    update = step.make_train_step(
        forward,
        optimizer,
        optim.make_groups(OPTIM, PARAMS),
        step.StepSpec(num_tasks=2, **options),
    )
    return jax.jit(update), step.init_state(PARAMS, optimizer)


@pytest.fixture(scope="module")
def plain():
    return make()


def test_8x1_4x2_and_1x8_micro_batches_are_the_same_update(plain):
    update, state = plain
    found = [update(state, None, split(rows(), micro), step.hparams(1e-2, 0.0)) for micro in (1, 4, 8)]
    for other_state, other in found[1:]:
        np.testing.assert_allclose(other.loss, found[0][1].loss, rtol=1e-6)
        np.testing.assert_allclose(other.grad_norm, found[0][1].grad_norm, rtol=1e-5)
        np.testing.assert_allclose(other.sums.nll, found[0][1].sums.nll, rtol=1e-5)
        near = jax.tree.map(lambda a, b: np.allclose(a, b, atol=2e-5), other_state.params, found[0][0].params)
        assert jax.tree.all(near)


def test_the_loss_is_the_weighted_mean_over_all_trained_tokens(plain):
    update, state = plain
    batch = rows()
    _, metrics = update(state, None, split(batch, 4), step.hparams(1e-2, 0.0))
    hidden, head = forward(PARAMS, None, jax.tree.map(jnp.asarray, batch), step.hparams(0.0))
    log_p = jax.nn.log_softmax(hidden @ head.T)
    total, weight = 0.0, 0.0
    for r in range(8):
        for t in range(11):
            same = batch.segment_ids[r, t] == batch.segment_ids[r, t + 1] != 0
            w = float(batch.loss_weights[r, t + 1]) * bool(same)
            total -= w * float(log_p[r, t, int(batch.tokens[r, t + 1])])
            weight += w
    np.testing.assert_allclose(metrics.loss, total / weight, rtol=1e-5)
    np.testing.assert_allclose(metrics.sums.weight.sum(), weight)


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_laid_end_to_end_have_the_same_sums_and_gradients(shards):
    batch = jax.tree.map(jnp.asarray, rows())

    def objective(params, tokens):
        loss = LossConfig(normalization=Normalization.EXAMPLE)
        spec = step.StepSpec(num_tasks=2, loss=loss, head=HeadSpec(shards=shards), room=Room(tokens=tokens))
        sums = step.batch_sums(forward, params, None, batch, step.hparams(0.0), spec)
        return sums.objective, sums

    gradient = jax.jit(jax.grad(objective, has_aux=True), static_argnums=1)
    in_rows, laid, short = gradient(PARAMS, None), gradient(PARAMS, 90 // shards), gradient(PARAMS, 40 // shards)
    for a, b in zip(jax.tree.leaves(laid), jax.tree.leaves(in_rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert laid[1].over_capacity == 0
    real = np.asarray(batch.segment_ids > 0).reshape(shards, -1).sum(1)
    assert short[1].over_capacity == np.maximum(real - 40 // shards, 0).sum() > 0


def test_a_batch_without_weight_changes_nothing_but_the_step(plain):
    update, state = plain
    warm, _ = update(state, None, split(rows(), 4), step.hparams(1e-2, 0.1))  # momentum that could move parameters
    empty = dataclasses.replace(rows(), loss_weights=np.zeros((8, 12), np.float32))
    after, metrics = update(warm, None, split(empty, 4), step.hparams(1e-2, 0.1))
    assert not metrics.applied and metrics.finite and metrics.loss == 0
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), (after.params, after.opt_state), (warm.params, warm.opt_state)
    )
    assert jax.tree.all(same)
    assert int(after.step) == int(warm.step) + 1


def test_a_non_finite_gradient_is_withheld_and_reported(plain):
    update, state = plain
    broken = dataclasses.replace(state, params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params))
    after, metrics = update(broken, None, split(rows(), 4), step.hparams(1e-2, 0.0))
    assert not metrics.finite and not metrics.applied
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b, equal_nan=True)), after.params, broken.params)
    assert jax.tree.all(same)


def test_learning_rate_and_decay_are_traced_and_reach_the_update():
    update: Any
    update, state = make()
    found = {}
    for decay in (0.0, 0.1):
        found[decay], metrics = update(state, None, split(rows(), 4), step.hparams(5e-3, decay))
        np.testing.assert_allclose(metrics.learning_rate, 5e-3, rtol=1e-6)
    moved, _ = update(state, None, split(rows(), 4), step.hparams(1e-2, 0.1))
    assert update._cache_size() == 1, "another number is no other program"
    kernel = lambda at: np.asarray(at.params["layers"]["mlp"]["down"]["kernel"], np.float64)
    np.testing.assert_allclose(kernel(found[0.0]) - kernel(found[0.1]), 5e-3 * 0.1 * kernel(state), atol=1e-8)
    assert np.abs(kernel(moved) - kernel(found[0.1])).max() > 1e-3
    scale = lambda at: np.asarray(at.params["final_norm"]["scale"])
    np.testing.assert_array_equal(scale(found[0.0]), scale(found[0.1]))  # scales of norms do not decay


def test_every_micro_batch_has_noise_of_its_own():
    table = {"embedding": jax.random.normal(jax.random.key(0), (32, 8))}

    def noisy(params, frozen, batch, numbers, key=None):
        assert key is not None
        hidden = params["embedding"][batch.tokens]
        return hidden + jax.random.normal(key, hidden.shape), params["embedding"]

    one = jax.tree.map(jnp.asarray, rows(2))
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), one)  # the same rows twice, as tasks 0 and 1
    tasks = jnp.broadcast_to(jnp.arange(2)[:, None, None], batch.tokens.shape)
    batch = dataclasses.replace(batch, task_ids=tasks)
    gradient = step.make_gradient(noisy, optim.make_groups(OPTIM, table), step.StepSpec(num_tasks=2))
    _, sums = jax.jit(gradient)(table, None, batch, step.hparams(0.0), jax.random.key(1))
    assert sums.weight[0] == sums.weight[1] > 0
    assert abs(float(sums.nll[0] - sums.nll[1])) > 0.1


def test_example_normalisation_weighs_every_example_the_same():
    batch = rows()
    _, weights = losses.shift(batch.tokens, batch.loss_weights, batch.segment_ids)
    found = np.asarray(step.example_normalized(weights, jnp.asarray(batch.segment_ids)))
    for r in range(8):
        for segment in (1, 2):
            inside = np.asarray(weights)[r, batch.segment_ids[r] == segment]
            total = found[r, batch.segment_ids[r] == segment].sum()
            np.testing.assert_allclose(total, 1.0 if inside.sum() else 0.0, rtol=1e-6)


def test_a_fixed_denominator_divides_by_the_constant(plain):
    update, state = make(loss=step.LossConfig(normalization=step.Normalization.FIXED, fixed_denominator=100.0))
    _, fixed = update(state, None, split(rows(), 4), step.hparams(1e-2, 0.0))
    _, mean = plain[0](plain[1], None, split(rows(), 4), step.hparams(1e-2, 0.0))
    np.testing.assert_allclose(fixed.loss * 100, mean.loss * mean.sums.weight.sum(), rtol=1e-6)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_prompts_dilute_the_mean_over_tokens_and_add_to_that_over_responses(weight):
    """One parameter, the scale of fixed hidden states: its gradient by both normalisations."""
    rng = np.random.default_rng(3)
    states, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((32, 8), (32, 8)))

    def scaled(params, frozen, batch, numbers, key=None):
        return params["scale"] * states[batch.tokens], head

    batch, micro_batches = rows(), 4
    real = (batch.segment_ids > 0) & (batch.positions > 0)
    response = real & (batch.loss_weights == 1)
    prompted = dataclasses.replace(
        batch, loss_weights=np.where(response, 1, np.where(real, weight, 0)).astype(np.float32)
    )

    def gradient(given: Batch, normalization: Normalization) -> tuple[float, float]:
        loss = LossConfig(normalization=normalization)
        optimizer, params = optax.identity(), {"scale": jnp.ones(())}
        update = step.make_train_step(
            scaled, optimizer, optim.make_groups(OPTIM, params),
            step.StepSpec(num_tasks=2, loss=loss),
        )  # fmt: skip
        state = step.init_state(params, optimizer)
        numbers = dataclasses.replace(step.hparams(1e-2), prompt_weight=np.float32(weight))
        _, metrics = jax.jit(update)(state, None, split(given, micro_batches), numbers)
        return float(metrics.grad_norm), float(metrics.loss)

    diluted, added = gradient(prompted, Normalization.TOKEN), gradient(prompted, Normalization.RESPONSE)
    ratio = response.sum() / (response.sum() + weight * (real & ~response).sum())
    np.testing.assert_allclose(np.divide(diluted, added), ratio, rtol=1e-6)
    only = gradient(batch, Normalization.RESPONSE)
    np.testing.assert_allclose(only, gradient(batch, Normalization.TOKEN), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"fixed_denominator": 3.0},
        {"normalization": step.Normalization.FIXED},
        {"label_smoothing": 1.0},
        {"z_loss": -1.0},
        {"chunk": 0},
    ],
)
def test_an_impossible_loss_is_refused(options):
    with pytest.raises(UserError, match="loss"):
        step.LossConfig(**options)


def test_sums_over_micro_batches_of_bfloat16_parameters_are_float32():
    """64 micro-batches are as near to the gradient of float32 parameters as one is, embedding included."""
    tokens = np.random.default_rng(0).integers(0, 8, (64, 16)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = Batch(
        tokens=tokens, loss_weights=ones.astype(np.float32), segment_ids=ones, positions=ones, task_ids=0 * ones
    )
    draw = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
    wide = {"embed": draw(1, 8, 6), "mix": {"kernel": draw(2, 6, 6)}, "bias": draw(3, 6)}
    head = draw(4, 8, 6)

    def toy(params, frozen, batch, numbers, key=None):
        hidden = lookup(params["embed"], jnp.asarray(batch.tokens)).astype(jnp.float32)
        return product("bsd,de->bse", hidden, params["mix"]["kernel"]) + params["bias"].astype(jnp.float32)[
            None, None
        ], head

    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, state, params=None: (updates, updates)
    )
    groups = optim.make_groups(OPTIM, wide)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, micro):
        update = step.make_train_step(toy, keep, groups, step.StepSpec(num_tasks=1))
        state = step.init_state(params, keep)
        return update(state, None, split(batch, micro), step.hparams(0.0))[0].opt_state

    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide)
    exact = gradient(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow), 1)
    for name in ("embed", "bias"):
        off = {m: float(jnp.linalg.norm(gradient(narrow, m)[name] - exact[name])) for m in (1, 64)}
        assert off[64] <= 1.5 * off[1] <= 0.02 * float(jnp.linalg.norm(exact[name]))


def test_small_steps_of_bfloat16_parameters_reach_the_loss_of_float32():
    """At this rate every update is below half a unit in the last place: rounded to the nearest, nothing would move."""
    tokens = np.random.default_rng(0).integers(0, 8, (1, 8, 16)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = Batch(
        tokens=tokens, loss_weights=ones.astype(np.float32), segment_ids=ones, positions=ones, task_ids=0 * ones
    )
    draw = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).uniform(1, 2, shape), jnp.bfloat16)
    narrow = {"embed": draw(1, 8, 6), "kernel": draw(2, 6, 6)}
    head = jnp.asarray(np.random.default_rng(3).standard_normal((8, 6)), jnp.float32)

    def toy(params, frozen, batch, numbers, key=None):
        hidden = lookup(params["embed"], jnp.asarray(batch.tokens)).astype(jnp.float32)
        return product("bsd,de->bse", hidden, params["kernel"]), head

    config = optim.OptimConfig(peak_lr=1e-3, warmup_frac=0.0, schedule=optim.Schedule.CONSTANT)

    def losses_of(params):
        optimizer, groups = optim.make_optimizer(config, params), optim.make_groups(config, params)
        update = step.make_train_step(toy, optimizer, groups, step.StepSpec(num_tasks=1))
        numbers = step.hparams(config.peak_lr, clip_norm=config.clip_norm)

        def once(state, _):
            state, metrics = update(state, None, batch, numbers)
            return state, metrics.loss

        run = jax.jit(lambda state: jax.lax.scan(once, state, None, length=200)[1])
        return np.asarray(run(step.init_state(params, optimizer)))

    exact = losses_of(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow))
    found = losses_of(narrow)
    assert exact[0] - exact[-1] > 0.5
    assert abs(found[-1] - exact[-1]) < 0.1 * (exact[0] - exact[-1])
