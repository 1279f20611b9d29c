"""Attention: every backend equal to the reference, the choice of one, and what rematerialisation keeps of it."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxtune.errors import UserError
from jaxtune.model import transformer
from jaxtune.model.attention import blockwise, kernels
from jaxtune.model.attention import choice as backends
from jaxtune.model.attention.blockwise import Scoring
from jaxtune.model.attention.core import Backend, attention, cached_attention, plain
from jaxtune.model.settings import ModelConfig, Remat

SCALE = 0.3
LENGTH = 200
CONFIG = ModelConfig(
    vocab_size=8, d_model=8, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=8, max_seq_len=512
)


def sample(
    length: int = LENGTH, heads: int = 6, kv_heads: int = 2, dim: int = 8
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, keys, values and segments of two rows; the first ends in padding."""
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, dim) for n in (heads, kv_heads, kv_heads)]
    arrays = [jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    lengths = [[3, 130, length - 143, 10], [length - 60, 1, 59]]
    ids = [[1, 2, 3, 0], [1, 2, 3]]
    segment_ids = jnp.asarray(np.stack([np.repeat(i, n) for i, n in zip(ids, lengths, strict=True)]))
    return arrays[0], arrays[1], arrays[2], segment_ids


SINKS = jnp.asarray([-2.0, 0.0, 1.0, 3.0, 0.5, -0.5])
"""A sink for each of six heads."""


def slow_attention(query, key, value, segment_ids, sinks=None, *, window, soft_cap):
    """One query at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    beside = np.zeros(query.shape[2]) if sinks is None else np.exp(np.asarray(sinks, np.float64))
    segment_ids = np.asarray(segment_ids)
    mixed = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, i, h in np.ndindex(query.shape[:3]):
        seen = [j for j in range(i + 1) if segment_ids[b, j] == segment_ids[b, i] and (not window or i - j < window)]
        scores = SCALE * key[b, seen, h // group] @ query[b, i, h]
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        shares = np.exp(scores)
        mixed[b, i, h] = shares @ value[b, seen, h // group] / (shares.sum() + beside[h])
    return mixed


def with_gradients(attend, query, key, value, segment_ids, *sinks):
    """Output and gradients of a sum over the real tokens; padding's output is nobody's business."""
    real = (segment_ids > 0)[:, :, None, None]

    def loss(query, key, value, *sinks):
        mixed = jnp.where(real, attend(query, key, value, segment_ids, *sinks), 0.0)
        return (mixed * jnp.cos(jnp.arange(mixed.shape[-1], dtype=mixed.dtype))[None, None, None]).sum(), mixed

    differentiated = tuple(range(3 + len(sinks)))
    gradients, mixed = jax.jit(jax.grad(loss, argnums=differentiated, has_aux=True))(query, key, value, *sinks)
    return [mixed, *gradients]


@functools.cache
def reference(window: int | None, soft_cap: float | None, length: int = LENGTH, *, sinks: bool = False):
    attend = functools.partial(attention, scoring=Scoring(SCALE, window, soft_cap), backend=Backend.REFERENCE)
    return with_gradients(attend, *sample(length), *([SINKS] if sinks else []))


@pytest.mark.parametrize(("window", "soft_cap", "sinks"), [(None, None, False), (5, 1.5, False), (5, None, True)])
def test_the_reference_equals_a_loop_over_queries(window, soft_cap, sinks):
    inputs = (*sample(), *([SINKS] if sinks else []))
    real = np.asarray(inputs[3] > 0)
    expected = slow_attention(*inputs, window=window, soft_cap=soft_cap)
    np.testing.assert_allclose(reference(window, soft_cap, sinks=sinks)[0][real], expected[real], atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "window", "soft_cap", "sinks"),
    [
        (Backend.BLOCKWISE, None, None, False),
        (Backend.BLOCKWISE, 5, 1.5, False),
        (Backend.BLOCKWISE, 5, None, True),
        (Backend.DOT_PRODUCT, None, None, False),
        (Backend.DOT_PRODUCT, 5, None, False),
    ],
)
def test_backends_equal_the_reference_in_value_and_gradient(backend, window, soft_cap, sinks):
    attend = functools.partial(attention, scoring=Scoring(SCALE, window, soft_cap), backend=backend)
    ours = with_gradients(attend, *sample(), *([SINKS] if sinks else []))
    for mine, expected in zip(ours, reference(window, soft_cap, sinks=sinks), strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-5)


@pytest.mark.parametrize("most", [0, kernels.FUSED_BLOCKS], ids=["two backward kernels", "one"])
@pytest.mark.parametrize(("window", "soft_cap", "sinks"), [(5, 1.5, False), (5, None, True)])
def test_the_tpu_kernel_equals_the_reference_when_interpreted(window, soft_cap, sinks, most, monkeypatch):
    monkeypatch.setattr(kernels, "FUSED_BLOCKS", most)
    monkeypatch.setattr(kernels, "SPLASH_BLOCK", 128)  # two blocks a row
    attend = functools.partial(kernels.splash, scoring=Scoring(SCALE, window, soft_cap), interpret=True)
    ours = with_gradients(attend, *sample(256), *([SINKS] if sinks else []))
    for mine, expected in zip(ours, reference(window, soft_cap, 256, sinks=sinks), strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-5)


@pytest.mark.parametrize("backend", [Backend.DOT_PRODUCT, Backend.CUDNN])
def test_a_backend_without_sinks_never_leaves_them_out(backend):
    with pytest.raises(ValueError, match=f"the backend {backend.value} has no attention sinks"):
        attention(*sample(), SINKS, scoring=Scoring(SCALE), backend=backend)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_cudnn_equals_the_reference():
    assert backends.deviation(Backend.CUDNN, CONFIG, jnp.bfloat16, window=None) < backends.TOLERANCE["bfloat16"]


def test_bfloat16_stays_close_to_float32():
    half = [x.astype(jnp.bfloat16) for x in sample()[:3]]
    attend = functools.partial(attention, scoring=Scoring(SCALE), backend=Backend.BLOCKWISE)
    mixed = jax.jit(attend)(*half, sample()[3])
    assert mixed.dtype == jnp.bfloat16
    real = np.asarray(sample()[3] > 0)
    np.testing.assert_allclose(np.asarray(mixed, np.float32)[real], reference(None, None)[0][real], atol=0.03)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.BLOCKWISE])
def test_no_output_depends_on_another_segment_or_a_later_token(backend):
    query, key, value, segment_ids = sample()
    attend = functools.partial(attention, scoring=Scoring(SCALE), backend=backend)
    seen = jax.jit(lambda key, value: attend(query, key, value, segment_ids)[0, 50].sum())
    to_key, to_value = jax.jit(jax.grad(seen, argnums=(0, 1)))(key, value)
    own = np.zeros((2, LENGTH), bool)
    own[0, 3:51] = True  # segment 2 of the first row, up to the query itself
    for gradient in (to_key, to_value):
        touched = np.abs(gradient).max(axis=(2, 3)) > 0
        np.testing.assert_array_equal(touched, own)


def test_blockwise_visits_only_the_blocks_that_hold_visible_keys():
    count = 4
    segments = np.zeros((count, 2, blockwise.BLOCK), np.int32)
    row = np.repeat([1, 2, 3, 0], [blockwise.BLOCK + 5, blockwise.BLOCK, blockwise.BLOCK, blockwise.BLOCK - 5])
    segments[:, 0] = segments[:, 1] = row.reshape(count, blockwise.BLOCK)
    first = blockwise._first_visible(jnp.asarray(segments), None)
    np.testing.assert_array_equal(first, [0, 0, 1, 2])
    np.testing.assert_array_equal(blockwise._first_visible(jnp.ones_like(segments), 1), [0, 1, 2, 3])
    np.testing.assert_array_equal(blockwise._first_visible(jnp.ones_like(segments), 2), [0, 0, 1, 2])


def test_blockwise_holds_no_score_matrix():
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in sample(2048, heads=2, kv_heads=1)]

    def temporary(backend):
        attend = functools.partial(attention, scoring=Scoring(SCALE), backend=backend)
        gradient = jax.grad(lambda *args: attend(*args).sum(), argnums=(0, 1, 2))
        analysis = jax.jit(gradient).lower(*inputs).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(Backend.BLOCKWISE) * 10 < temporary(Backend.REFERENCE)


def test_stale_and_padding_slots_of_a_cache_are_invisible():
    query, key, value, _ = sample()
    positions = jnp.asarray([[7, 8], [3, 4]])
    queries = jnp.take_along_axis(query, positions[:, :, None, None], axis=1)
    attend = jax.jit(functools.partial(cached_attention, scale=SCALE, window=6))
    clean = attend(queries, key, value, positions)
    spoil = (jnp.arange(LENGTH)[None, :] > jnp.asarray([[8], [4]]))[:, :, None, None]
    spoilt = [jnp.where(spoil, 1e6, x) for x in (key, value)]
    np.testing.assert_array_equal(attend(queries, *spoilt, positions), clean)
    ones, places = jnp.ones((2, LENGTH), jnp.int32), positions[:, :, None, None]
    whole = attention(query, key, value, ones, scoring=Scoring(SCALE, 6))
    np.testing.assert_allclose(clean, jnp.take_along_axis(whole, places, axis=1), atol=1e-6)
    with_sinks = attend(queries, *spoilt, positions, SINKS)
    whole = attention(query, key, value, ones, SINKS, scoring=Scoring(SCALE, 6))
    np.testing.assert_allclose(with_sinks, jnp.take_along_axis(whole, places, axis=1), atol=1e-6)


def test_auto_takes_the_plain_path_on_a_cpu():
    for length in (64, 512):
        config, resolution = backends.resolve(CONFIG, length, jnp.float32, platform="cpu")
        assert config.attention is resolution.backend is plain(length)
        assert resolution.rejected == {}
    assert plain(64) is not plain(512)


@pytest.mark.parametrize(
    ("changed", "where", "reason"),
    [
        ({"attention": Backend.SPLASH}, {"platform": "cpu"}, "splash: it needs a TPU, and this is a CPU"),
        ({"attention": Backend.CUDNN}, {"platform": "tpu"}, "cudnn: it needs a GPU, and this is a TPU"),
        ({"attention": Backend.CUDNN}, {"platform": "gpu"}, "computes in bfloat16 or float16 only"),
        ({"attention": Backend.SPLASH}, {"platform": "tpu", "seq_len": 200}, "multiple of 128 .* seq_len is 200"),
        ({"attention": Backend.DOT_PRODUCT, "attn_soft_cap": 5.0}, {}, "it has no soft cap"),
        ({"attention": Backend.DOT_PRODUCT, "attn_sinks": True}, {}, "dot_product: it has no attention sinks"),
        ({"attention": Backend.CUDNN, "attn_sinks": True}, {"platform": "gpu"}, "cudnn: it has no attention sinks"),
        ({"attention": Backend.BLOCKWISE}, {"platform": "gpu"}, "its loops are for CPUs, and this is a GPU"),
        ({"attention": Backend.BLOCKWISE}, {"sequence_shards": 4}, "needs whole rows, .* over sequence=4"),
    ],
)
def test_a_backend_that_cannot_run_says_why(changed, where, reason):
    arguments = {"seq_len": 256, "dtype": jnp.float32, "platform": "cpu"} | where
    with pytest.raises(UserError, match=f"attention backend cannot run here: .*{reason}.*Choose auto"):
        backends.resolve(dataclasses.replace(CONFIG, **changed), **arguments)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(("soft_cap", "sinks"), [(None, False), (5.0, False), (None, True)])
def test_no_loops_over_blocks_run_on_accelerators(monkeypatch, platform, soft_cap, sinks):
    """Where no kernel can run: rows that are no multiple of 128 tokens, float32."""
    config = dataclasses.replace(CONFIG, attn_soft_cap=soft_cap, attn_sinks=sinks)
    chosen = backends.resolve(config, 2000, jnp.float32, platform=platform)[1].backend
    assert chosen is (Backend.REFERENCE if sinks or soft_cap else Backend.DOT_PRODUCT)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    shape = jax.ShapeDtypeStruct((1, 512, 2, 8), jnp.float32)
    attend = functools.partial(attention, scoring=Scoring(1.0, None, soft_cap))
    own = [jax.ShapeDtypeStruct((2,), jnp.float32)] if sinks else []
    traced = jax.make_jaxpr(attend)(shape, shape, shape, jax.ShapeDtypeStruct((1, 512), jnp.int32), *own)
    assert not {equation.primitive.name for equation, _ in equations(traced.jaxpr)} & {"while", "scan"}


def equations(jaxpr: Any, live: bool = True) -> Iterator[tuple[Any, bool]]:
    """Every equation, inner ones too, and whether its results are wanted where it stands."""
    for equation in jaxpr.eqns:
        here = live and bool(equation.outvars)
        yield equation, here
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, here)


@pytest.mark.parametrize(("remat", "forward"), [(Remat.NONE, 1), (Remat.DOTS, 1), (Remat.FULL, 2)])
@pytest.mark.parametrize(
    ("backend", "most", "backward"),
    [(Backend.SPLASH, kernels.FUSED_BLOCKS, 1), (Backend.SPLASH, 0, 2), (Backend.CUDNN, 0, 1)],
)
def test_rematerialisation_of_dots_keeps_what_a_kernel_computed(monkeypatch, backend, most, backward, remat, forward):
    monkeypatch.setattr(kernels, "FUSED_BLOCKS", most)
    for check in ("check_cudnn_version", "check_compute_capability", "check_is_flash_attention"):  # no GPU is here
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda *_, **__: 91000)
    config = ModelConfig(
        vocab_size=16, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16, max_seq_len=256,
        remat=remat, attention=backend,
    )  # fmt: skip
    graphdef, params = transformer.abstract_params(config)
    ids = jnp.ones((1, 128), jnp.int32)
    loss = lambda params: transformer.apply(graphdef, params, ids, ids, ids, dtype=jnp.bfloat16).sum()
    traced = jax.make_jaxpr(jax.grad(loss))(params)
    names = [equation.primitive.name for equation, live in equations(traced.jaxpr) if live]
    if backend is Backend.CUDNN:
        assert names.count("dot_product_attention_fwd_wrapper") == forward
        assert names.count("dot_product_attention_bwd_wrapper") == backward
    else:
        assert names.count("pallas_call") == forward + backward


def test_auto_takes_a_kernel_only_once_it_is_proven(monkeypatch):
    config = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=1, sliding_window=9)
    monkeypatch.setattr(kernels, "splash", functools.partial(kernels.splash, interpret=True))
    chosen, resolution = backends.resolve(config, 256, jnp.float32, platform="tpu")
    assert chosen.attention is resolution.backend is Backend.SPLASH

    right = kernels.splash
    monkeypatch.setattr(kernels, "splash", lambda *args, **options: 1.01 * right(*args, **options))
    _, resolution = backends.resolve(config, 256, jnp.float32, platform="tpu")
    assert resolution.backend is Backend.DOT_PRODUCT
    assert "is off by" in resolution.rejected["splash"]


def test_a_kernel_that_fails_to_run_is_rejected_with_its_error(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no such chip")

    monkeypatch.setattr(kernels, "splash", fail)
    _, resolution = backends.resolve(CONFIG, 256, jnp.float32, platform="tpu")
    assert resolution.rejected == {"splash": "NotImplementedError: no such chip"}
