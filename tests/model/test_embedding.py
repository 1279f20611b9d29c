"""The lookup in a table that is split: one device's numbers, and never the whole table on a device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_xla

from jaxtune.model.embedding import embedded
from jaxtune.model.linear import lookup
from jaxtune.parallel.mesh import ROWS, MeshConfig, make_mesh
from jaxtune.parallel.sharding import replicated

VOCABULARY, WIDTH = 48, 24
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (8, 16)).astype(np.int32)
TOKENS[0] = 47  # one token many times
TOWARD = np.random.default_rng(2).normal(size=(8, 16, WIDTH)).astype(np.float32)
MESHES = [
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=2, fsdp=4),
    MeshConfig(data=1, tensor=4, fsdp=2),
    MeshConfig(data=2, tensor=4),
    MeshConfig(data=1, expert=2, fsdp=2, sequence=2),
    MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
]


def looked_up(look, rows: int = 8, dtype: str = "float32"):
    def total(table, tokens):
        found = look(table, tokens, dtype)
        return jnp.sum(found.astype(jnp.float32) * TOWARD[:rows]), found

    return jax.value_and_grad(total, has_aux=True)


def plainly(table, tokens, dtype):
    return lookup(table, tokens).astype(dtype)


def program(config: MeshConfig, rows: int = 8, dtype: str = "float32", vocabulary: int = VOCABULARY):
    mesh = make_mesh(config)
    spread = jax.P(ROWS, "sequence") if rows == 8 else jax.P()
    split = jax.NamedSharding(mesh, jax.P("tensor" if vocabulary % config.tensor == 0 else None, "fsdp"))
    given = (
        jax.device_put(TABLE[:vocabulary], split),
        jax.device_put(TOKENS[:rows] % vocabulary, jax.NamedSharding(mesh, spread)),
    )
    hidden = jax.NamedSharding(mesh, jax.P(*spread, None))
    step = jax.jit(looked_up(embedded, rows, dtype), out_shardings=((replicated(mesh), hidden), split))
    with jax.set_mesh(mesh):
        return step.lower(*given).compile(quick_xla.OPTIONS), given


def check(config: MeshConfig, rows: int = 8, dtype: str = "float32", vocabulary: int = VOCABULARY):
    step, given = program(config, rows, dtype, vocabulary)
    (_, found), gradient = step(*given)
    (_, expected), summed = looked_up(plainly, rows, dtype)(
        jnp.asarray(TABLE[:vocabulary]), jnp.asarray(TOKENS[:rows] % vocabulary)
    )
    assert np.array_equal(np.asarray(found), np.asarray(expected)), "a lookup rounds nothing"
    np.testing.assert_allclose(np.asarray(gradient), summed, rtol=1e-6, atol=1e-6 * float(jnp.abs(summed).max()))


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_rows_and_their_gradients_are_those_of_one_device(config):
    check(config)


def test_rows_of_a_batch_that_do_not_divide_are_looked_up_by_every_device():
    check(MeshConfig(data=1, fsdp=4, tensor=2), rows=3)


def test_products_in_bfloat16_get_rows_in_bfloat16_and_a_gradient_in_float32():
    check(MeshConfig(data=1, fsdp=4, tensor=2), dtype="bfloat16")


def test_a_vocabulary_that_does_not_divide_is_whole():
    check(MeshConfig(data=1, fsdp=2, tensor=4), vocabulary=46)


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_no_device_ever_has_the_whole_table_or_its_gradient(config):
    step, _ = program(config)
    shapes = set(re.findall(r"f32\[([\d,]+)\]", step.as_text() or ""))
    part = f"{VOCABULARY // config.tensor},{WIDTH // config.fsdp}"
    assert part in shapes
    assert f"{VOCABULARY},{WIDTH}" not in shapes and f"{WIDTH},{VOCABULARY}" not in shapes


def test_where_nothing_splits_the_table_the_program_is_the_plain_lookup():
    text = lambda look: str(jax.make_jaxpr(looked_up(look))(jnp.asarray(TABLE), jnp.asarray(TOKENS)))
    assert text(embedded) == text(plainly)
    with jax.set_mesh(make_mesh(MeshConfig(data=4, sequence=2))):
        assert text(embedded) == text(plainly)
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        assert text(embedded) != text(plainly)
