"""Integer weights: the size of the error, the packing, and that whole weights are never kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.model import quantize
from jaxtune.model.linear import product
from jaxtune.model.quantize import Bits, Quantized


@functools.partial(jax.jit, static_argnums=(1, 2))
def stored_and_dense(kernel, bits: Bits, axis: int):
    stored = quantize.quantize(kernel, bits, axis)
    return stored, stored.dense()


def random_kernel(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(("bits", "levels"), [(Bits.INT8, 127), (Bits.INT4, 7)], ids=lambda x: getattr(x, "value", ""))
@pytest.mark.parametrize(
    ("shape", "axis", "group"), [((2, 96, 3, 5), -3, 48), ((2, 3, 6, 4), -2, 6), ((128, 5), -2, 64)]
)
def test_the_error_is_at_most_half_a_step_of_the_group(bits, levels, shape, axis, group):
    kernel = random_kernel(*shape)
    stored, dense = stored_and_dense(kernel, bits, axis)
    assert stored.scales.shape[axis] == shape[axis] // group
    grouped = np.moveaxis(np.asarray(kernel), axis, -1).reshape(-1, group)
    error = np.moveaxis(np.asarray(dense - kernel), axis, -1).reshape(-1, group)
    step = np.abs(grouped).max(-1, keepdims=True) / levels
    assert (np.abs(error) <= 0.5001 * step).all()
    assert np.abs(error).max() > 0.3 * step.max(), "weights came back unrounded"


def test_four_bit_weights_take_half_a_byte():
    kernel = random_kernel(2, 64, 10)
    sizes = {bits: stored_and_dense(kernel, bits, -2)[0].value.nbytes for bits in Bits}
    assert sizes == {Bits.INT8: 2 * 64 * 10, Bits.INT4: 2 * 64 * 10 // 2}


def test_an_odd_axis_cannot_hold_pairs():
    with pytest.raises(ValueError, match="axis -2 of \\(5, 3\\) is odd"):
        quantize.quantize(random_kernel(5, 3), Bits.INT4, -2)


def test_zero_weights_stay_zero():
    assert not stored_and_dense(jnp.zeros((64, 2)), Bits.INT8, -2)[1].any()


@pytest.mark.parametrize("bits", list(Bits), ids=lambda bits: bits.value)
def test_products_and_their_gradients_are_those_of_the_dense_weights(bits):
    stored, dense = stored_and_dense(random_kernel(16, 3, 5), bits, -3)
    left = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 16)), jnp.float32)
    total = lambda left, kernel: jnp.sum(jnp.sin(product("bsd,dhe->bshe", left, kernel)))
    ours, ours_gradient = jax.jit(jax.value_and_grad(total))(left, stored)
    value, gradient = jax.jit(jax.value_and_grad(total))(left, dense)
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    np.testing.assert_allclose(ours_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_a_scan_over_layers_keeps_no_dense_weights():
    layers, width = 16, 64
    kernel = Quantized(
        value=jax.ShapeDtypeStruct((layers, width, width), jnp.int8),
        scales=jax.ShapeDtypeStruct((layers, 1, width), jnp.float32), bits=Bits.INT8, axis=-2,
    )  # fmt: skip

    def total(left, kernel):
        body = lambda x, layer: (jnp.tanh(product("sd,de->se", x, layer)), None)
        return jnp.sum(jax.lax.scan(body, left, kernel)[0])

    left = jax.ShapeDtypeStruct((4, width), jnp.float32)
    memory = jax.jit(jax.grad(total)).lower(left, kernel).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < layers * width * width * 4 / 2


def test_only_kernels_of_the_layers_are_quantised():
    params = {
        "embed": {"embedding": random_kernel(8, 4)},
        "layers": {
            "attn": {"q": {"kernel": random_kernel(2, 4, 2, 2), "bias": random_kernel(2, 2, 2)}},
            "moe": {"router": {"kernel": random_kernel(2, 4, 3)}, "up": {"kernel": random_kernel(2, 3, 4, 6)}},
        },
    }
    stored = quantize.quantize_params(params, Bits.INT8)
    assert stored["layers"]["attn"]["q"]["kernel"].axis == -3
    assert stored["layers"]["moe"]["up"]["kernel"].scales.shape == (2, 3, 1, 6)
    for keys in (("embed", "embedding"), ("layers", "attn", "q", "bias"), ("layers", "moe", "router", "kernel")):
        assert isinstance(functools.reduce(lambda tree, key: tree[key], keys, stored), jax.Array)
