"""Products of rows with their group's matrix: equal to one product a row, whatever the sizes, at no group's expense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.model.grouped import LEAST_BLOCK, MOST_BLOCK, block_size, grouped_product


def random_case(sizes, inputs=5, outputs=3, dtype=jnp.float32):
    draw = np.random.default_rng(0).standard_normal
    rows, matrices = draw((sum(sizes), inputs)), draw((len(sizes), inputs, outputs))
    return jnp.asarray(rows, dtype), jnp.asarray(matrices, dtype), jnp.asarray(sizes, jnp.int32)


def row_by_row(rows, matrices, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.einsum("na,nab->nb", rows, matrices[group], precision="highest")


@pytest.mark.parametrize(
    "sizes",
    [
        (1,),
        (0, 1, 0),
        (LEAST_BLOCK, LEAST_BLOCK),
        (LEAST_BLOCK + 1, 0, LEAST_BLOCK - 1),
        (0, 0, 77),
        (77, 0, 0),
        (3, 40, 0, 1, 200, 19),
        (1,) * 50,
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_one_product_a_row(sizes):
    rows, matrices, sizes = random_case(sizes)

    def total(function):
        weigh = jnp.cos(jnp.arange(len(rows) * 3.0)).reshape(-1, 3)
        weighted = lambda rows, matrices: jnp.sum(function(rows, matrices) ** 2 * weigh)
        return jax.value_and_grad(weighted, argnums=(0, 1))(rows, matrices)

    expected = total(lambda rows, matrices: row_by_row(rows, matrices, np.asarray(sizes)))
    ours = jax.jit(lambda: total(lambda rows, matrices: grouped_product(rows, matrices, sizes)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, expected)


def test_sums_of_bfloat16_are_kept_in_float32():
    rows, matrices, sizes = random_case((300, 20), inputs=64, dtype=jnp.bfloat16)
    product, back = jax.vjp(lambda rows, matrices: grouped_product(rows, matrices, sizes), rows, matrices)
    exact = row_by_row(rows.astype(jnp.float32), matrices.astype(jnp.float32), np.asarray(sizes))
    assert product.dtype == jnp.bfloat16
    np.testing.assert_allclose(product.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    gradient = back(jnp.ones_like(product))[1]
    summed = rows[:300].astype(jnp.float32).sum(axis=0)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient[0, :, 0].astype(jnp.float32), summed, rtol=2**-8, atol=1e-6)


def test_trials_side_by_side_give_what_each_gives_alone():
    rows, matrices, _ = random_case((30, 30))
    sizes = jnp.asarray([[30, 30], [59, 1], [0, 60]], jnp.int32)
    together = jax.vmap(lambda sizes: grouped_product(rows, matrices, sizes))(sizes)
    for each, alone in zip(sizes, together, strict=True):
        np.testing.assert_allclose(grouped_product(rows, matrices, each), alone, rtol=1e-6)


def test_a_tpu_gets_its_kernel_and_others_get_blocks():
    shapes = jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)
    total = lambda rows, matrices, sizes: jnp.sum(grouped_product(rows, matrices, sizes) ** 2)
    traced = jax.jit(jax.grad(total, argnums=(0, 1))).trace(*shapes, jax.ShapeDtypeStruct((4,), jnp.int32))
    text = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu", "cuda")}
    assert {name: "ragged_dot" in program for name, program in text.items()} == {
        "tpu": True,
        "cpu": False,
        "cuda": False,
    }
    assert {name: "while" in program for name, program in text.items()} == {"tpu": False, "cpu": True, "cuda": True}


def test_memory_does_not_grow_with_the_number_of_groups():
    def temporary_bytes(groups: int) -> int:
        shapes = jax.ShapeDtypeStruct((1024, 64), jnp.float32), jax.ShapeDtypeStruct((groups, 64, 64), jnp.float32)
        total = lambda rows, matrices, sizes: jnp.sum(grouped_product(rows, matrices, sizes) ** 2)
        program = jax.jit(jax.grad(total)).lower(*shapes, jax.ShapeDtypeStruct((groups,), jnp.int32)).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary_bytes(64) < 1.5 * temporary_bytes(2)


def test_blocks_are_small_for_many_groups_and_bounded():
    assert [block_size(n, 8) for n in (1, 512, 1024, 10**6)] == [LEAST_BLOCK, 32, 64, MOST_BLOCK]
