"""Update directions, schedules, parameter groups, the moving average and the embedding noise."""

import dataclasses
import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.errors import UserError
from jaxtune.optim import OptimConfig, Optimizer, Schedule


def toy_params() -> dict:
    """A tree with the paths of a model: an embedding, layer matrices, a norm and a bias."""
    shapes = {
        "embed": {"embedding": (7, 6)},
        "layers": {
            "attn": {"q": {"kernel": (2, 6, 2, 3), "bias": (2, 2, 3)}, "o": {"kernel": (2, 2, 3, 6)}},
            "attn_norm": {"scale": (2, 6)},
            "mlp": {"up": {"kernel": (2, 6, 5)}},
        },
    }
    return random_like(jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape), 0)


def is_shape(node) -> bool:
    return isinstance(node, tuple)


def random_like(tree, seed: int) -> Any:
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(draws.standard_normal(leaf.shape), leaf.dtype), tree)


def run_steps(config: OptimConfig, params, *, steps: int = 3, rate: float = 0.01, weight_decay: float = 0.1) -> Any:
    """Parameters after a few updates with random gradients."""
    optimizer, groups = optim.make_optimizer(config, params), optim.make_groups(config, params)
    state = optimizer.init(params)

    @jax.jit
    def update(gradients, state, params):
        direction, state = optimizer.update(gradients, state, params)
        return optim.apply_update(params, direction, groups, rate=rate, weight_decay=weight_decay), state

    for step in range(steps):
        params, state = update(random_like(params, step + 1), state, params)
    return params


def run_optax(transformation: optax.GradientTransformation, params, steps: int = 3):
    state, update = transformation.init(params), jax.jit(transformation.update)
    for step in range(steps):
        updates, state = update(random_like(params, step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_trees_close(actual, expected, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), actual, expected)


def decays(params):
    return jax.tree.map(lambda path: "norm" not in path and "bias" not in path, optim.param_paths(params))


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (Optimizer.ADAMW, lambda mask: optax.adamw(0.01, weight_decay=0.1, mask=mask)),
        (Optimizer.LION, lambda mask: optax.lion(0.01, b1=0.9, b2=0.999, weight_decay=0.1, mask=mask)),
        (
            Optimizer.ADAFACTOR,
            lambda mask: optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(0.1, mask),
                optax.scale(-0.01),
            ),
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Optimizer) else "",
)
def test_updates_equal_those_of_optax_with_rate_and_decay_inside(optimizer, reference):
    params = toy_params()
    expected = run_optax(optax.chain(optax.clip_by_global_norm(1.0), reference(decays(params))), params)
    assert_trees_close(run_steps(OptimConfig(optimizer=optimizer), params), expected)


def test_muon_equals_optax_on_a_matrix_and_adam_elsewhere():
    params = toy_params()
    config = OptimConfig(optimizer=Optimizer.MUON, clip_norm=None, b1=0.95)
    ours = run_steps(config, params, weight_decay=0.0)
    muon = optax.contrib.muon(0.01, beta=0.95, consistent_rms=0.2)
    muon_update = jax.jit(muon.update)
    for layer in range(2):
        single = lambda tree, layer=layer: tree["layers"]["mlp"]["up"]["kernel"][layer]
        state, matrix = muon.init(single(params)), jnp.asarray(single(params))
        updates: Any
        for step in range(3):
            updates, state = muon_update(single(random_like(params, step + 1)), state, matrix)
            matrix = matrix + updates
        np.testing.assert_allclose(single(ours), matrix, atol=1e-5)
    adam = run_steps(dataclasses.replace(config, optimizer=Optimizer.ADAMW), params, weight_decay=0.0)
    np.testing.assert_allclose(ours["embed"]["embedding"], adam["embed"]["embedding"], atol=1e-6)
    np.testing.assert_allclose(ours["layers"]["attn_norm"]["scale"], adam["layers"]["attn_norm"]["scale"], atol=1e-6)


def test_muon_directions_are_orthogonal_over_the_heads_together():
    params = toy_params()
    optimizer = optim.make_optimizer(OptimConfig(optimizer=Optimizer.MUON), params)
    direction: Any = jax.jit(optimizer.update)(random_like(params, 1), optimizer.init(params), params)[0]
    for name, shape in {"q": (6, 6), "o": (6, 6)}.items():
        singular = np.linalg.svd(np.asarray(direction["layers"]["attn"][name]["kernel"][0]).reshape(shape))[1]
        assert singular.min() > 0.5 * singular.max()


def test_frozen_parameters_stay_hold_no_state_and_leave_the_clipped_norm():
    params = toy_params()
    config = OptimConfig(freeze=(r"embed.*",))
    after = run_steps(config, params)
    np.testing.assert_array_equal(after["embed"]["embedding"], params["embed"]["embedding"])
    shapes = [leaf.shape for leaf in jax.tree.leaves(optim.make_optimizer(config, params).init(params))]
    assert params["embed"]["embedding"].shape not in shapes
    rest = {"layers": params["layers"]}
    optimizer = optim.make_optimizer(OptimConfig(optimizer=Optimizer.LION, b1=0.0, clip_norm=0.1), rest)
    frozen = optim.make_optimizer(dataclasses.replace(config, optimizer=Optimizer.LION, b1=0.0, clip_norm=0.1), params)
    gradients = random_like(params, 1)
    alone: Any
    alone, state = optimizer.update({"layers": gradients["layers"]}, optimizer.init(rest), rest)
    among: Any
    among, frozen_state = frozen.update(gradients, frozen.init(params), params)
    assert_trees_close(among["layers"], alone["layers"])
    momenta = [x for x in jax.tree.leaves(frozen_state) if x.ndim]
    assert_trees_close(momenta, [x for x in jax.tree.leaves(state) if x.ndim])


def test_no_gradient_is_computed_for_frozen_parameters():
    params = toy_params()
    groups = optim.make_groups(OptimConfig(freeze=(r"embed.*",)), params)
    square = lambda tree: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(optim.stop_frozen(tree, groups)))
    gradients = jax.grad(square)(params)
    assert not gradients["embed"]["embedding"].any()
    np.testing.assert_allclose(gradients["layers"]["attn_norm"]["scale"], 2 * params["layers"]["attn_norm"]["scale"])


def test_multipliers_scale_the_update_and_the_first_match_counts():
    params = toy_params()
    config = OptimConfig(lr_multipliers={r"layers\.attn\..*": 0.0, r"layers.*": 0.5})
    plain, scaled = run_steps(OptimConfig(), params, steps=1), run_steps(config, params, steps=1)
    moved = lambda after, *path: (
        functools.reduce(lambda tree, key: tree[key], path, after)
        - functools.reduce(lambda tree, key: tree[key], path, params)
    )
    np.testing.assert_array_equal(moved(scaled, "layers", "attn", "q", "kernel"), 0)
    up = ("layers", "mlp", "up", "kernel")
    np.testing.assert_allclose(moved(scaled, *up), 0.5 * moved(plain, *up), atol=1e-6)
    np.testing.assert_allclose(moved(scaled, "embed", "embedding"), moved(plain, "embed", "embedding"))


def test_rate_and_decay_may_be_traced_and_stacked():
    params = toy_params()
    groups, direction = optim.make_groups(OptimConfig(), params), random_like(params, 1)
    move = lambda rate, decay: optim.apply_update(params, direction, groups, rate=rate, weight_decay=decay)
    stacked = jax.jit(jax.vmap(move))(jnp.array([0.1, 0.2]), jnp.array([0.0, 0.3]))
    assert_trees_close(jax.tree.map(lambda x: x[1], stacked), move(0.2, 0.3))


def test_small_updates_of_bfloat16_parameters_add_up():
    params = {"kernel": jnp.full((2000,), 0.05, jnp.bfloat16)}
    groups = optim.make_groups(OptimConfig(), params)

    @jax.jit
    def step(params, number):
        exact = optim.apply_update(params, {"kernel": jnp.ones(2000)}, groups, rate=2e-5, weight_decay=0.0)
        assert exact["kernel"].dtype == jnp.float32
        return optim.round_stochastically(exact, jax.random.fold_in(jax.random.key(0), number), params)

    for number in range(200):
        params = step(params, number)
    assert params["kernel"].dtype == jnp.bfloat16
    moved = np.asarray(params["kernel"], np.float64)
    assert moved.mean() == pytest.approx(0.05 - 200 * 2e-5, rel=0.01) and len(set(moved)) > 5


@hypothesis.given(st.floats(-(2**99), 2**99, width=32, allow_subnormal=False), st.integers(0, 99))
@hypothesis.settings(max_examples=50, deadline=None)
def test_stochastic_rounding_takes_a_neighbour_and_keeps_what_fits(value, seed):
    exact = {"a": jnp.full((64,), value, jnp.float32)}
    like = {"a": jnp.zeros((64,), jnp.bfloat16)}
    rounded = optim.round_stochastically(exact, jax.random.key(seed), like)["a"]
    down = float(np.float32(value).view(np.uint32).__and__(0xFFFF0000).view(np.float32))
    up = float((np.float32(down).view(np.uint32) + np.uint32(0x10000)).view(np.float32))
    found = {float(x) for x in np.asarray(rounded, np.float32)}
    assert found <= ({down} if down == float(np.float32(value)) else {down, up})
    assert optim.round_stochastically(exact, jax.random.key(seed), exact)["a"] is exact["a"]


@pytest.mark.parametrize("optimizer", list(Optimizer), ids=lambda optimizer: optimizer.value)
def test_moments_and_average_of_bfloat16_parameters_are_float32(optimizer):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toy_params())
    rule = optim.make_optimizer(OptimConfig(optimizer=optimizer, freeze=("embed.embedding",)), params)
    state = jax.eval_shape(rule.init, params)
    direction, after = jax.eval_shape(rule.update, params, state, params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state, after)) if leaf.dtype != jnp.int32}
    assert kinds == {jnp.dtype(jnp.float32)} and jax.tree.map(np.shape, state) == jax.tree.map(np.shape, after)
    average = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.float32), params)
    near = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 + 2**-7, jnp.bfloat16), params)
    moved = optim.update_ema(average, near, 0.999)
    assert all(leaf.dtype == jnp.float32 and float(leaf.max()) > 1.0 for leaf in jax.tree.leaves(moved))


def test_bfloat16_momentum_halves_the_first_moment():
    params = toy_params()
    dtypes = {
        x.dtype
        for x in jax.tree.leaves(optim.make_optimizer(OptimConfig(momentum_dtype="bfloat16"), params).init(params))
    }
    assert {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)} <= dtypes


STEPS, WARM = 40, 5
OPTAX_SCHEDULES = {
    Schedule.COSINE: optax.cosine_decay_schedule(1.0, STEPS - WARM, alpha=0.1),
    Schedule.LINEAR: optax.linear_schedule(1.0, 0.1, STEPS - WARM),
    Schedule.CONSTANT: optax.constant_schedule(1.0),
    Schedule.INVERSE_SQRT: lambda k: jnp.sqrt(WARM / (k + WARM + 1)),
    Schedule.WSD: optax.linear_schedule(1.0, 0.1, 8, transition_begin=STEPS - WARM - 8),
}


@pytest.mark.parametrize("schedule", list(Schedule), ids=lambda schedule: schedule.value)
def test_schedules_equal_those_of_optax(schedule):
    config = OptimConfig(schedule=schedule, warmup_steps=WARM, final_fraction=0.1, decay_frac=0.2)
    steps = jnp.arange(STEPS)
    warmup = optax.linear_schedule(0.0, 1.0, WARM)
    expected = jnp.where(steps < WARM, warmup(steps + 1), OPTAX_SCHEDULES[schedule](steps - WARM))
    ours = jax.jit(jax.vmap(optim.make_schedule(config, STEPS)))(steps)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert float(ours[0]) == pytest.approx(1 / WARM) and float(ours.max()) == 1.0


@hypothesis.given(
    schedule=st.sampled_from(list(Schedule)),
    total=st.integers(1, 128),
    warm=st.one_of(st.integers(0, 128), st.floats(0, 1, exclude_max=True)),
    decay=st.floats(0, 1, exclude_min=True),
    final=st.floats(0, 1),
    traced=st.booleans(),
)
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.example(Schedule.INVERSE_SQRT, 79, 0.515625, 1.0, 0.0, False)  # 41 * (1 / 41) is below 1
def test_no_schedule_jumps_and_each_reaches_its_peak(schedule, total, warm, decay, final, traced):
    given: Any = {"warmup_steps": warm} if isinstance(warm, int) else {"warmup_frac": warm}
    config = OptimConfig(schedule=schedule, decay_frac=decay, final_fraction=final, **given)
    steps = jnp.arange(128)  # always as many, so that nothing is compiled again
    try:
        length = optim.warmup_steps(config, total)
    except UserError as error:
        assert schedule is Schedule.WSD or isinstance(warm, int), error
        return
    curve = jax.vmap(optim.make_schedule(config, jnp.asarray(total) if traced else total))(steps)
    rates = np.asarray(curve, np.float64)[:total]
    span = max(round(decay * total), 1)
    slopes = {
        Schedule.COSINE: np.pi / 2 / (total - length),
        Schedule.LINEAR: 1 / (total - length),
        Schedule.CONSTANT: 0,
        Schedule.INVERSE_SQRT: 1 - np.sqrt(max(length, 1) / (max(length, 1) + 1)),
        Schedule.WSD: 1 / span,
    }
    assert np.abs(np.diff(rates)).max(initial=0) <= max(slopes[schedule], 1 / length if length else 0) + 1e-5
    assert rates.max() == 1.0 and rates.min() >= 0 and np.all(np.diff(rates[:length]) > 0)
    assert np.all(np.diff(rates[length:]) <= 1e-6)
    if not isinstance(warm, int) and warm > 0 and total > 2:
        assert length >= 2 and rates[0] < 1.0


def test_a_warmup_and_a_decay_that_overlap_are_refused():
    config = OptimConfig(schedule=Schedule.WSD, warmup_steps=80, decay_frac=0.5)
    with pytest.raises(UserError, match="a warmup of 80 steps and a decay of 50 overlap in a run of 100"):
        optim.make_schedule(config, 100)


def test_without_warmup_the_first_step_has_the_peak():
    for schedule in Schedule:
        assert float(optim.make_schedule(OptimConfig(schedule=schedule, warmup_frac=0.0), 10)(0)) == 1.0


def test_a_traced_length_gives_the_same_schedule():
    config = OptimConfig(warmup_frac=0.1)
    at = jax.jit(lambda step, total: optim.make_schedule(config, total)(step))
    for total in (7, 40, 333):
        steps = range(0, total, 3)
        np.testing.assert_allclose(
            [at(k, total) for k in steps], [optim.make_schedule(config, total)(k) for k in steps], atol=1e-6
        )


def test_warmup_is_a_share_of_the_steps_unless_given():
    assert optim.warmup_steps(OptimConfig(warmup_frac=0.03), 1000) == 30
    assert optim.warmup_steps(OptimConfig(warmup_frac=0.03, warmup_steps=7), 1000) == 7


def test_the_moving_average_equals_optax():
    params, average = toy_params(), random_like(toy_params(), 9)
    assert_trees_close(optim.update_ema(average, params, 0.9), optax.incremental_update(params, average, 0.1))


def test_embedding_noise_has_the_published_size_per_segment():
    segment_ids = jnp.array([[1] * 16 + [2] * 4 + [0] * 4])
    embeddings = jnp.zeros((1, 24, 64))
    noise = np.asarray(optim.neftune_noise(jax.random.key(0), embeddings, segment_ids, 5.0))[0]
    for where, length in ((slice(0, 16), 16), (slice(16, 20), 4)):
        bound = 5.0 / np.sqrt(length * 64)
        assert np.abs(noise[where]).max() <= bound
        assert np.abs(noise[where]).mean() == pytest.approx(bound / 2, rel=0.1)
    assert not noise[20:].any()


def test_no_noise_leaves_the_embeddings_as_they_are():
    embeddings = jax.random.normal(jax.random.key(1), (1, 3, 4), jnp.bfloat16)
    same = optim.neftune_noise(jax.random.key(0), embeddings, jnp.ones((1, 3), jnp.int32), 0.0)
    np.testing.assert_array_equal(same.astype(jnp.float32), embeddings.astype(jnp.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peak_lr", 0.0, r"optim.peak_lr is 0.0; it must be a number in \(0, 1000\]"),
        ("peak_lr", float("nan"), "peak_lr is nan"),
        ("warmup_frac", 1.0, r"warmup_frac is 1.0; it must be a number in \[0, 1\)"),
        ("final_fraction", 1.5, r"final_fraction is 1.5; it must be a number in \[0, 1\]"),
        ("b2", 1.0, "b2 is 1.0"),
        ("clip_norm", 0.0, "clip_norm is 0.0"),
        ("ema_decay", 1.0, r"ema_decay is 1.0; it must be a number in \(0, 1\)"),
        ("momentum_dtype", "float8", "momentum_dtype is 'float8'; it must be float32, bfloat16 or None"),
        ("freeze", ("(",), "'\\(' is not a regular expression"),
        ("lr_multipliers", {".*": -1.0}, r"lr_multipliers\['\.\*'\] is -1.0"),
    ],
)
def test_impossible_values_are_refused_by_name(field, value, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**{field: value})


def test_patterns_that_match_nothing_are_refused_with_the_paths_that_exist():
    with pytest.raises(UserError, match=r"freeze: \['emb'\] match no parameter; .*embed.embedding"):
        optim.make_groups(OptimConfig(freeze=("emb",)), toy_params())
    with pytest.raises(UserError, match="lr_multipliers: .* match no parameter"):
        optim.make_groups(OptimConfig(lr_multipliers={"lm_head": 2.0}), toy_params())
    with pytest.raises(UserError, match="leave no parameter to train"):
        optim.make_groups(OptimConfig(freeze=(".*",)), toy_params())


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match="a warmup of 10 steps leaves nothing of a run of 10"):
        optim.make_schedule(OptimConfig(warmup_steps=10), 10)
