"""Next-token losses: alignment, equality with the plain formulas and derivatives, and what is never computed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.step import losses

ROWS, SEQ, MODEL, VOCAB, TASKS = 4, 13, 6, 40, 3


def random_case(seed: int = 0, share: float = 0.4) -> dict[str, Any]:
    """Hidden states, a tied head, targets, weights of which about `share` are not zero, and task ids.

    About half of the targets have the highest logit.
    """
    keys = jax.random.split(jax.random.key(seed), 7)
    chosen = jax.random.uniform(keys[3], (ROWS, SEQ)) < share
    hidden, head = jax.random.normal(keys[0], (ROWS, SEQ, MODEL)), jax.random.normal(keys[1], (VOCAB, MODEL))
    right = jax.random.uniform(keys[6], (ROWS, SEQ)) < 0.5
    return {
        "hidden": hidden,
        "head": head,
        "targets": jnp.where(
            right, jnp.argmax(hidden @ head.T, -1), jax.random.randint(keys[2], right.shape, 0, VOCAB)
        ),
        "weights": jnp.where(chosen, jax.random.uniform(keys[4], (ROWS, SEQ), minval=0.1), 0.0),
        "task_ids": jax.random.randint(keys[5], (ROWS, SEQ), 0, TASKS),
    }


def naive_sums(hidden, head, targets, weights, task_ids, *, soft_cap=None, z_loss=0.0, label_smoothing=0.0):
    """The same sums from full logits, with Optax's cross-entropy."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, head)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    soft_targets = optax.smooth_labels(jax.nn.one_hot(targets, VOCAB), label_smoothing)
    each = optax.softmax_cross_entropy(logits, soft_targets) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    trained = weights != 0
    task = lambda values: jnp.stack([jnp.sum(jnp.where(task_ids == n, values, 0)) for n in range(TASKS)])
    return losses.LossSums(
        objective=jnp.sum(weights * each),
        nll=task(weights * nll),
        weight=task(weights),
        tokens=task(trained.astype(jnp.int32)),
        correct=task((trained & (jnp.argmax(logits, -1) == targets)).astype(jnp.int32)),
        over_capacity=jnp.zeros((), jnp.int32),
    )


def assert_close(actual, expected, tolerance=1e-6):
    """Largest difference at most `tolerance` of the largest expected value, leaf by leaf."""
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-30)


def per_task_sums(hidden, head, targets, weights, task_ids, *, num_tasks, **options):
    """`losses.per_task_sums` with the fields of its specs as options."""
    names = {field.name for field in dataclasses.fields(losses.HeadSpec)}
    of_head = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    spec = losses.LossSpec(head=losses.HeadSpec(**of_head), **rest)
    return losses.per_task_sums(hidden, head, targets, weights, task_ids, num_tasks=num_tasks, spec=spec)


STATIC = ("num_tasks", "vocab_axis", "capacity", "chunk", "shards", "soft_cap", "z_loss", "label_smoothing")
sums_of = jax.jit(per_task_sums, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=("function", *STATIC))
def value_and_gradients(case, *, function=per_task_sums, **options):
    """Sums, and gradients by hidden states, head and weights."""

    def objective(hidden, head, weights):
        sums = function(**{**case, "hidden": hidden, "head": head, "weights": weights}, **options)
        return sums.objective, sums

    gradient = jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)
    (_, sums), gradients = gradient(case["hidden"], case["head"], case["weights"])
    return sums, gradients


def test_positions_whose_target_has_the_highest_logit_are_counted_by_task():
    case = random_case()
    top = jnp.argmax(jnp.einsum("bsd,vd->bsv", case["hidden"], case["head"]), -1) == case["targets"]
    right = [int(jnp.sum(top & (case["weights"] != 0) & (case["task_ids"] == task))) for task in range(TASKS)]
    sums = sums_of(**case, num_tasks=TASKS)
    assert sums.correct.tolist() == right and 0 < sum(right) < int(sums.tokens.sum())


def compiled_text(function, *arguments) -> str:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text is not None
    return text


def test_shift_aligns_targets_and_weights_as_its_docstring_says():
    targets, weights = losses.shift(
        np.array([5, 6, 7, 8, 9, 0]), np.array([0.0, 1, 1, 0, 1, 0]), np.array([1, 1, 1, 2, 2, 0])
    )
    np.testing.assert_array_equal(targets, [6, 7, 8, 9, 0, 0])
    np.testing.assert_array_equal(weights, [1, 1, 0, 1, 0, 0])


def test_the_first_token_of_a_segment_and_padding_are_nobodys_target_even_if_weighted():
    segment_ids = np.array([[1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    _, weights = losses.shift(np.zeros((2, 7), np.int32), np.ones((2, 7), np.float32), segment_ids)
    np.testing.assert_array_equal(weights, [[1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])


@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 0.03}, {"label_smoothing": 0.1}, {"soft_cap": 3.0, "z_loss": 0.1, "label_smoothing": 0.2}],
    ids=lambda options: "+".join(options) or "plain",
)  # fmt: skip
def test_sums_and_gradients_equal_the_plain_formulas(options):
    case = random_case()
    expected, expected_gradients = value_and_gradients(case, function=naive_sums, **options)
    trained = case["weights"] != 0
    sums, gradients = value_and_gradients(case, num_tasks=TASKS, chunk=5, **options)
    assert_close(sums, expected)
    assert_close(gradients[:2], expected_gradients[:2])
    assert_close(gradients[2] * trained, expected_gradients[2] * trained)


@pytest.mark.parametrize("layout", [{}, {"chunk": 1, "capacity": 23}, {"chunk": 64, "capacity": 49}], ids=str)
def test_chunk_and_capacity_do_not_change_the_result(layout):
    case = random_case()
    expected = value_and_gradients(case, num_tasks=TASKS, chunk=5)
    assert int((case["weights"] != 0).sum()) <= 23
    assert_close(value_and_gradients(case, num_tasks=TASKS, **layout), expected)


def test_a_head_with_the_vocabulary_last_gives_the_same():
    case = random_case()
    expected, (to_hidden, to_head, _) = value_and_gradients(case, num_tasks=TASKS, chunk=5)
    last = {**case, "head": case["head"].T}
    sums, gradients = value_and_gradients(last, num_tasks=TASKS, chunk=5, vocab_axis=1)
    assert_close(sums, expected)
    assert_close(gradients[:2], (to_hidden, to_head.T))


def test_traced_options_give_the_same_as_python_numbers():
    case = random_case()
    fixed = sums_of(**case, num_tasks=TASKS, z_loss=0.1, label_smoothing=0.2)
    traced = jax.jit(lambda z, e: per_task_sums(**case, num_tasks=TASKS, z_loss=z, label_smoothing=e))
    assert_close(traced(0.1, 0.2), fixed)


def test_a_batch_without_weight_sums_to_zero_with_zero_gradients():
    case = random_case(share=0.0)
    sums, gradients = value_and_gradients(case, num_tasks=TASKS, chunk=5)
    for leaf in jax.tree.leaves((sums, gradients)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_positions_without_weight_are_never_read():
    case = random_case()
    poisoned = {**case, "hidden": jnp.where((case["weights"] != 0)[..., None], case["hidden"], jnp.nan)}
    clean = value_and_gradients(case, num_tasks=TASKS, chunk=5)
    assert_close(value_and_gradients(poisoned, num_tasks=TASKS, chunk=5), clean, tolerance=0)


def test_positions_over_the_capacity_are_counted():
    case = random_case()
    trained = int((case["weights"] != 0).sum())
    sums = sums_of(**case, num_tasks=TASKS, capacity=trained - 3, chunk=5)
    assert (int(sums.over_capacity), int(sums.tokens.sum())) == (3, trained - 3)


def test_sums_of_micro_batches_add_up_to_those_of_the_whole():
    case = random_case()
    whole = sums_of(**case, num_tasks=TASKS)
    split = lambda part: {k: v if k == "head" else v[part] for k, v in case.items()}
    parts = [sums_of(**split(part), num_tasks=TASKS) for part in (slice(0, 2), slice(2, 4))]
    assert_close(jax.tree.map(jnp.add, *parts), whole)


def test_gradients_scale_with_the_cotangent_of_the_objective():
    case = random_case()
    objective = lambda head, scale: scale * per_task_sums(**{**case, "head": head}, num_tasks=TASKS).objective
    gradient = jax.jit(jax.grad(objective))
    once, thrice = (gradient(case["head"], scale) for scale in (1.0, 3.0))
    assert_close(thrice, 3 * once)


def matmuls(function, *arguments) -> int:
    """How many matrix products the compiled program holds."""
    text = compiled_text(function, *arguments)
    return text.count(" dot(") + text.count("__onednn$matmul")


def test_a_frozen_head_costs_one_product_less_and_evaluation_two():
    case = random_case()
    objective = lambda hidden, head: (
        per_task_sums(**{**case, "hidden": hidden, "head": head}, num_tasks=TASKS).objective
    )
    arguments = case["hidden"], case["head"]
    both = matmuls(jax.grad(objective, argnums=(0, 1)), *arguments)
    assert both == 3
    assert matmuls(jax.grad(objective), *arguments) == 2
    assert matmuls(objective, *arguments) == 1


def test_memory_stays_far_below_the_full_logits():
    rows, seq, vocab = 4, 256, 4096
    shapes: dict[str, Any] = {
        "hidden": jax.ShapeDtypeStruct((rows, seq, 8), jnp.float32),
        "head": jax.ShapeDtypeStruct((vocab, 8), jnp.float32),
        **{name: jax.ShapeDtypeStruct((rows, seq), jnp.int32) for name in ("targets", "task_ids")},
        "weights": jax.ShapeDtypeStruct((rows, seq), jnp.float32),
    }
    objective = lambda hidden, head, rest: per_task_sums(hidden, head, **rest, num_tasks=2, chunk=16).objective
    rest: dict[str, Any] = {k: v for k, v in shapes.items() if k not in ("hidden", "head")}
    compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(shapes["hidden"], shapes["head"], rest).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < rows * seq * vocab * 4 / 10


def test_rows_sharded_over_devices_give_the_same_without_moving_hidden_states():
    case = random_case()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda name, x: jax.device_put(x, jax.NamedSharding(mesh, jax.P() if name == "head" else jax.P("data")))
    sharded = {name: place(name, x) for name, x in case.items()}
    options: dict[str, Any] = {"num_tasks": TASKS, "chunk": 5}
    expected = value_and_gradients(case, **options)
    assert_close(value_and_gradients(sharded, **options, shards=4), expected)
    options["shards"] = 4
    objective = lambda hidden, head, rest: per_task_sums(hidden, head, **rest, **options).objective
    rest: dict[str, Any] = {k: v for k, v in sharded.items() if k not in ("hidden", "head")}
    program = compiled_text(jax.grad(objective, argnums=(0, 1)), sharded["hidden"], sharded["head"], rest)
    assert "all-gather" not in program


def test_a_capacity_is_per_shard():
    case = random_case(share=1.0)
    sums = sums_of(**case, num_tasks=TASKS, shards=2, capacity=2 * SEQ - 1)
    assert (int(sums.over_capacity), int(sums.tokens.sum())) == (2, ROWS * SEQ - 2)


def test_rows_that_cannot_be_split_over_the_shards_are_refused():
    with pytest.raises(ValueError, match="4 rows cannot be split over 3 shards"):
        per_task_sums(**random_case(), num_tasks=TASKS, shards=3)


def test_stacked_trials_equal_single_ones():
    cases = [random_case(seed, share) for seed, share in ((0, 0.2), (1, 0.9))]
    run = functools.partial(value_and_gradients, num_tasks=TASKS, chunk=5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    together = jax.vmap(lambda case: run(case))(stacked)
    for trial, case in enumerate(cases):
        assert_close(jax.tree.map(lambda x, trial=trial: x[trial], together), run(case))


def test_bfloat16_hidden_states_keep_float32_sums():
    case = random_case()
    exact, (exact_hidden, exact_head, _) = value_and_gradients(case, num_tasks=TASKS)
    half = {**case, "hidden": case["hidden"].astype(jnp.bfloat16)}
    sums, (to_hidden, to_head, _) = value_and_gradients(half, num_tasks=TASKS)
    assert (sums.nll.dtype, to_hidden.dtype, to_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    assert_close((sums.nll, to_head), (exact.nll, exact_head), tolerance=0.02)
    assert_close(to_hidden, exact_hidden, tolerance=0.02)
