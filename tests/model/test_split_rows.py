"""Rows whose tokens are split over devices: attention equals that of one device, in memory linear in the row."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.model import transformer as model
from jaxtune.model.attention import choice
from jaxtune.model.attention.core import Backend
from jaxtune.model.attention.layer import packed_attention
from jaxtune.model.settings import LayerKind, ModelConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import MeshConfig, make_mesh

QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CONFIG = ModelConfig(
    vocab_size=40, d_model=16, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=8, d_ff=16, max_seq_len=4096,
    tie_embeddings=False,
)  # fmt: skip
THREE = {"num_heads": 6, "num_kv_heads": 3}
"""Heads that neither 2 nor 4 devices divide."""
WINDOW = {"sliding_window": 70, "layer_kinds": (LayerKind.LOCAL,) * 2}
LENGTH = 320
RING, BLOCKS, DOT = Backend.RING, Backend.BLOCKWISE, Backend.DOT_PRODUCT
FOUR, TWO = MeshConfig(data=1, fsdp=2, sequence=4), MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)


def sample(config: ModelConfig, length: int = LENGTH):
    """Queries, keys, values and sinks of two rows."""
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, config.head_dim) for n in (config.num_heads, *(config.num_kv_heads,) * 2)]
    arrays = [jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    return (*arrays, jnp.linspace(-1.0, 2.0, config.num_heads)) if config.attn_sinks else tuple(arrays)


def segments(draw: int) -> np.ndarray:
    """Two rows of segments of any lengths, in the order in which packing numbers them, with padding at the end."""
    rng = np.random.default_rng(draw)
    rows = np.zeros((2, LENGTH), np.int32)
    for row in rows:
        ends = np.sort(rng.choice(LENGTH + 1, size=rng.integers(1, 9), replace=False))
        for number, (start, stop) in enumerate(zip((0, *ends[:-1]), ends, strict=True), 1):
            row[start:stop] = number
    rows[0] = 1 if draw == 0 else rows[0]  # a whole row of one segment
    return rows


def program(config: ModelConfig):
    """Outputs of a layer's attention at tokens that are not padding, and gradients of a weighted sum of them."""
    kind = config.kinds[0]

    def loss(inputs, segment_ids):
        query, key, value, *sinks = inputs
        mixed = packed_attention(config, kind, segment_ids, query, key, value, *sinks)
        mixed = jnp.where((segment_ids > 0)[:, :, None, None], mixed, 0.0)
        return (mixed * jnp.cos(jnp.arange(mixed.size, dtype=mixed.dtype)).reshape(mixed.shape)).sum(), mixed

    return jax.grad(loss, has_aux=True)


def compiled(config: ModelConfig, mesh: MeshConfig, length: int = LENGTH) -> tuple[Any, jax.sharding.Mesh]:
    """The program over a mesh: inputs and results split as a model's are."""
    devices = make_mesh(dataclasses.replace(mesh, devices=8))
    heads = "tensor" if config.num_kv_heads % mesh.tensor == 0 else None
    place = lambda *axes: jax.NamedSharding(devices, jax.P(*axes))
    arrays = place("fsdp", "sequence", heads, None)
    inputs = tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=arrays if x.ndim > 1 else place(heads))
        for x in jax.eval_shape(lambda: sample(config, length))
    )
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=place("fsdp", "sequence"))
    results = tuple(x.sharding for x in inputs)
    with jax.set_mesh(devices):
        jitted = jax.jit(program(config), out_shardings=(results, arrays), compiler_options=QUICK)
        return jitted.lower(inputs, ids).compile(), devices


@pytest.mark.parametrize(
    ("backend", "mesh", "changed"),
    [
        (RING, FOUR, {}),
        (RING, FOUR, {**THREE, **WINDOW, "attn_soft_cap": 1.5}),
        (RING, TWO, {**WINDOW, "attn_sinks": True}),
        (RING, TWO, {"attn_sinks": True, "attn_soft_cap": 1.5, **THREE}),
        (BLOCKS, FOUR, {**WINDOW, "attn_soft_cap": 1.5}),
        (BLOCKS, TWO, {"attn_sinks": True}),
        (BLOCKS, FOUR, {"num_kv_heads": 2, "attn_sinks": True}),  # each key/value head twice
        (DOT, FOUR, WINDOW),
    ],
)
def test_attention_of_split_rows_equals_the_reference(backend, mesh, changed):
    config = dataclasses.replace(CONFIG, attention=backend, **changed)
    inputs = sample(config)
    run, devices = compiled(config, mesh)
    reference = jax.jit(program(dataclasses.replace(config, attention=Backend.REFERENCE)), compiler_options=QUICK)
    (shardings, id_sharding), _ = run.input_shardings
    for draw in range(5):
        ids = segments(draw)
        expected = reference(inputs, ids)
        with jax.set_mesh(devices):
            ours = run(jax.device_put(inputs, tuple(shardings)), jax.device_put(ids, id_sharding))
        for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            theirs = np.asarray(theirs)
            np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
            assert np.abs(theirs).max() > 1e-3


def arrays_of(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of every array in a program's text."""
    found = re.findall(r"\b(f32|bf16|s32|pred)\[([\d,]+)\]", text)
    return [(kind, tuple(int(n) for n in shape.split(","))) for kind, shape in found]


def collectives(text: str) -> dict[str, set[str]]:
    """Kinds of collective operations in a program, and the types of what they move."""
    found: dict[str, set[str]] = {}
    lines = re.findall(r"= (\S.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    for result, name in lines:
        found.setdefault(name, set()).update(re.findall(r"\b(f32|bf16|s32|pred)\[", result))
    return found


@pytest.mark.parametrize(("backend", "collective"), [(RING, "collective-permute"), (BLOCKS, "all-to-all")])
def test_memory_of_split_rows_is_linear_and_keys_are_not_gathered(backend, collective):
    config = dataclasses.replace(CONFIG, attention=backend)
    temporary = []
    for length in (2048, 4096):
        run = compiled(config, FOUR, length)[0]
        text = run.as_text()
        assert not [shape for _, shape in arrays_of(text) if sum(n >= length // 4 for n in shape) > 1]
        moved = collectives(text)
        assert "f32" in moved.pop(collective)
        assert moved.keys() <= ({"all-gather"} if backend is BLOCKS else set())
        assert moved.get("all-gather", {"s32"}) == {"s32"}  # of segments alone
        temporary.append(run.memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 2.1 * temporary[0]
    text = compiled(dataclasses.replace(config, attention=Backend.REFERENCE), FOUR, 2048)[0].as_text()
    assert [shape for _, shape in arrays_of(text) if sum(n >= 512 for n in shape) > 1]


@functools.cache
def on_one_device(config: ModelConfig) -> tuple[Any, Any]:
    params = model.init_params(config, 0)[1]
    return params, jax.jit(of_model(config), compiler_options=QUICK)(params, TOKENS, POSITIONS, IDS)


TOKENS = np.random.default_rng(0).integers(0, 40, (2, 64)).astype(np.int32)
IDS = np.stack([np.repeat([1, 2, 3, 0], [20, 3, 30, 11]), np.repeat([1, 2], [50, 14])]).astype(np.int32)
POSITIONS = np.stack([np.concatenate([np.arange(np.sum(r == i)) for i in dict.fromkeys(r)]) for r in IDS])


def of_model(config: ModelConfig):
    """Mean of squared logits of the tokens that are not padding, with gradients of all parameters."""
    graphdef = model.abstract_params(config)[0]

    def loss(params, tokens, positions, ids):
        return jnp.mean(jnp.where((ids > 0)[:, :, None], model.apply(graphdef, params, tokens, positions, ids), 0) ** 2)

    return jax.value_and_grad(loss)


@pytest.mark.parametrize(("backend", "mesh"), [(RING, FOUR), (BLOCKS, FOUR), (Backend.AUTO, TWO)])
def test_a_model_with_layers_of_two_kinds_computes_what_one_device_does(backend, mesh):
    config = dataclasses.replace(CONFIG, sliding_window=9, layer_kinds=(LayerKind.LOCAL, LayerKind.GLOBAL))
    params, expected = on_one_device(config)
    devices = make_mesh(dataclasses.replace(mesh, devices=8))
    split = jax.device_put(params, sharding.shardings(devices, params))
    rows = [sharding.put_batch(devices, x, 2) for x in (TOKENS, POSITIONS.astype(np.int32), IDS)]
    with jax.set_mesh(devices):
        step = jax.jit(of_model(dataclasses.replace(config, attention=backend)), compiler_options=QUICK)
        ours = step(split, *rows)

    def close(mine, theirs):
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=1e-5 * np.abs(np.asarray(theirs)).max())

    jax.tree.map(close, ours, expected)


@pytest.mark.parametrize(
    ("platform", "changed", "shards", "chosen"),
    [
        ("cpu", {}, (4, 1), BLOCKS),
        ("cpu", {}, (4, 2), BLOCKS),  # 4 heads of queries and 2 of keys on a device, each of these twice
        ("cpu", THREE, (4, 1), RING),
        ("gpu", {}, (4, 1), RING),  # float32: cuDNN cannot, and the plain path holds all scores
        ("tpu", {}, (4, 1), Backend.SPLASH),
        ("tpu", THREE, (4, 1), RING),
        ("tpu", THREE, (3, 2), Backend.SPLASH),  # 3 heads do not divide over tensor=2, so that each device has all
    ],
)
def test_auto_exchanges_heads_where_they_divide_and_else_takes_the_ring(platform, changed, shards, chosen):
    config = dataclasses.replace(CONFIG, **changed)
    options = {"platform": platform, "sequence_shards": shards[0], "tensor_shards": shards[1], "proven": False}
    resolved, resolution = choice.resolve(config, 3072, jnp.float32, **options)
    assert resolved.attention is resolution.backend is chosen
    assert ("splash" in resolution.rejected) == (platform == "tpu" and chosen is RING)


def test_backends_that_cannot_split_rows_say_so_before_anything_runs():
    whole = dataclasses.replace(CONFIG, attention=RING)
    with pytest.raises(UserError, match=r"ring: it needs rows whose tokens are split \(sequence > 1\).*Choose auto"):
        choice.resolve(whole, 256, jnp.float32, platform="cpu")
    uneven = dataclasses.replace(CONFIG, attention=BLOCKS, **THREE)
    with pytest.raises(UserError, match="6 heads of queries and 3 of keys do not divide over sequence=4.*ring"):
        choice.resolve(uneven, 256, jnp.float32, platform="cpu", sequence_shards=4)
    with pytest.raises(UserError, match="blockwise cannot run here: .*over sequence=4"):
        compiled(uneven, FOUR)
    devices = make_mesh(dataclasses.replace(FOUR, devices=8))
    with pytest.raises(UserError, match="rows of 322 tokens do not divide over sequence=4"), jax.set_mesh(devices):
        jax.eval_shape(program(whole), sample(whole, 322), jnp.ones((2, 322), jnp.int32))
