"""Meshes and shardings: any mesh computes the same numbers, and the compiled program communicates only what it must."""

import collections
import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick_xla
from jax.sharding import PartitionSpec

from jaxtune.batch import Batch
from jaxtune.errors import UserError
from jaxtune.model import transformer as model
from jaxtune.model.delta import DeltaConfig
from jaxtune.model.linear import REDUCED, product
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.settings import LayerKind, ModelConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import AXES, Indivisible, MeshConfig, make_mesh
from jaxtune.step import losses

ROWS, SEQ = 8, 32
QUICK = quick_xla.OPTIONS
"""Compiler options that leave partitioning and collectives as they are and take a fifth of the time."""
TINY = ModelConfig(
    vocab_size=64, d_model=32, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=16, d_ff=96, max_seq_len=SEQ,
    tie_embeddings=False,
)  # fmt: skip
GRAPHDEF, SHAPES = model.abstract_params(TINY)
EVERY_PARAMETER = [
    TINY,
    dataclasses.replace(
        TINY,
        family="gemma3",
        tie_embeddings=True,
        post_norms=True,
        qk_norm=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    ),
    dataclasses.replace(TINY, family="qwen3_moe", moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=32)),
    dataclasses.replace(
        TINY,
        family="gpt_oss",
        attn_sinks=True,
        moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=32, bias=True, clamped=ClampedGate()),
    ),
    dataclasses.replace(
        TINY,
        family="qwen3_5_text",
        attn_gate=True,
        layer_kinds=(LayerKind.LINEAR, *(LayerKind.GLOBAL,) * (TINY.num_layers - 1)),
        delta=DeltaConfig(key_heads=8, value_heads=8, key_dim=4, value_dim=4),
    ),
]
MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, tensor=8),
    MeshConfig(data=1, sequence=8),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
]
ALL_MESHES = [
    MeshConfig(data=a, fsdp=b, tensor=c, sequence=d)
    for a, b, c, d in itertools.product((1, 2, 4, 8), repeat=4)
    if a * b * c * d == 8
]


def name(config: MeshConfig) -> str:
    return "x".join(f"{axis}{getattr(config, axis)}" for axis in AXES if getattr(config, axis) != 1)


def packed_batch() -> Batch:
    """Two examples a row and some padding, unequal counts of trained tokens."""
    random = np.random.default_rng(0)
    segments = np.repeat([[1, 2, 0]], ROWS, 0).repeat([20, 10, 2], axis=1).astype(np.int32)
    positions = np.concatenate([np.arange(20), np.arange(10), np.arange(2)]).astype(np.int32)
    weights = (random.random((ROWS, SEQ)) < np.linspace(0.1, 0.9, ROWS)[:, None]) * (segments > 0)
    return Batch(
        tokens=random.integers(0, TINY.vocab_size, (ROWS, SEQ)).astype(np.int32),
        loss_weights=weights.astype(np.float32),
        segment_ids=segments,
        positions=np.repeat(positions[None], ROWS, 0),
        task_ids=(segments == 2).astype(np.int32),
    )


def loss(params, batch: Batch, shards: int):
    tokens, positions, segments, tasks = map(
        jnp.asarray, (batch.tokens, batch.positions, batch.segment_ids, batch.task_ids)
    )
    head = sharding.gathered(params["head"]["kernel"], "head.kernel")
    hidden = model.apply(GRAPHDEF, params, tokens, positions, segments)
    targets, weights = losses.shift(batch.tokens, batch.loss_weights, batch.segment_ids)
    spec = losses.LossSpec(head=losses.HeadSpec(vocab_axis=1, shards=shards))
    sums = losses.per_task_sums(hidden, head, targets, weights, tasks, num_tasks=2, spec=spec)
    return sums.objective / sums.weight.sum()


@pytest.fixture(scope="module")
def params():
    return model.init_params(TINY, 0)[1]


@pytest.fixture(scope="module")
def single(params):
    """The program of one device."""
    step = jax.jit(jax.value_and_grad(lambda p, b: loss(p, Batch(**b), 1)))
    return step.lower(params, {key: jnp.asarray(value) for key, value in vars(packed_batch()).items()}).compile(QUICK)


@pytest.fixture(scope="module")
def reference(params, single):
    value, gradient = single(params, {key: jnp.asarray(value) for key, value in vars(packed_batch()).items()})
    return float(value), jax.tree.map(np.asarray, gradient)


COMPILED = {}


def compiled(config: MeshConfig, params):
    """The program of a mesh and its placed arguments; each is compiled once for all tests."""
    if config not in COMPILED:
        mesh = make_mesh(config)
        places = sharding.shardings(mesh, SHAPES)
        fields = vars(sharding.put_batch(mesh, packed_batch(), ROWS))  # lowering calls dataclasses with placeholders
        arguments = jax.device_put(params, places), fields
        step = jax.jit(
            jax.value_and_grad(lambda p, b: loss(p, Batch(**b), sharding.row_shards(mesh))),
            out_shardings=(sharding.replicated(mesh), places),
        )
        with jax.set_mesh(mesh):
            COMPILED[config] = step.lower(*arguments).compile(QUICK), arguments
    return COMPILED[config]


def collectives(text: str) -> dict[str, int]:
    kinds = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute|collective-broadcast"
    return dict(collections.Counter(re.findall(rf"(?<=[ )])({kinds})(?:-start)?\(", text)))


def check_mesh(config, params, reference):
    program, arguments = compiled(config, params)
    value, gradient = program(*arguments)
    np.testing.assert_allclose(float(value), reference[0], atol=1e-5)
    for ours, alone in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference[1]), strict=True):
        np.testing.assert_allclose(np.asarray(ours), alone, atol=1e-5)


@pytest.mark.parametrize("config", MESHES, ids=name)
def test_a_mesh_computes_the_loss_and_gradients_of_one_device(config, params, reference):
    check_mesh(config, params, reference)


@pytest.mark.slow
@pytest.mark.parametrize("config", [c for c in ALL_MESHES if name(c) not in map(name, MESHES)], ids=name)
def test_every_other_mesh_of_eight_devices_agrees_too(config, params, reference):
    check_mesh(config, params, reference)


@pytest.mark.parametrize("config", MESHES, ids=name)
def test_every_axis_divides_the_work(config, params, single):
    """An eighth of the floating-point operations, and what the devices do together on top."""
    share = compiled(config, params)[0].cost_analysis()["flops"] / single.cost_analysis()["flops"]
    assert share < (0.25 if config.sequence < 8 else 0.3)  # there a block of attention, 64, is longer than the rows


def test_data_parallelism_only_sums(params):
    assert set(collectives(compiled(MESHES[0], params)[0].as_text())) == {"all-reduce"}


def test_tensor_parallelism_only_sums(params):
    assert set(collectives(compiled(MESHES[2], params)[0].as_text())) == {"all-reduce"}


def test_fsdp_gathers_weights_and_scatters_gradients_and_keeps_nothing_whole(params):
    """XLA's CPU backend writes a reduce-scatter as an all-reduce and a slice; the slice proves that it is one."""
    program = compiled(MESHES[1], params)[0]
    text = program.as_text()
    found = collectives(text)
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter", "all-to-all"}
    # The 7 weights of a layer, forward and backward; head; token ids for the embedding and its gradient.
    assert found["all-gather"] <= 2 * 7 + 3
    assert found["all-to-all"] == 2, "the embedded tokens change hands, and their gradient"
    assert "f32[64,32]" not in text, "the whole embedding, or its gradient, is on one device"
    for leaf in jax.tree.leaves(SHAPES["layers"]):
        if leaf.ndim > 2:
            whole = "f32[" + ",".join(map(str, leaf.shape)) + "]"
            assert whole not in text, f"{whole}: a whole stacked weight, or its gradient, is on one device"
    for leaf in jax.tree.leaves(program.output_shardings[1]):
        assert isinstance(leaf.spec, PartitionSpec)


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_parameters_and_optimizer_state_take_one_share_per_device(fsdp):
    config = dataclasses.replace(TINY, vocab_size=4096, d_model=256, d_ff=1024)
    shapes = model.abstract_params(config)[1]
    mesh = make_mesh(MeshConfig(fsdp=fsdp))
    optimizer = optax.adamw(1e-3)
    places = sharding.shardings(mesh, shapes)
    state = jax.eval_shape(optimizer.init, shapes)
    for tree, where in ((shapes, places), (state, sharding.optimizer_shardings(optimizer, shapes, places))):
        whole = sum(leaf.size for leaf in jax.tree.leaves(tree))
        held = sum(
            math.prod(s.shard_shape(leaf.shape))
            for leaf, s in zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
        )
        assert held / whole == pytest.approx(1 / fsdp, rel=0.01)  # norms are whole everywhere


@pytest.mark.parametrize("config", EVERY_PARAMETER, ids=lambda config: config.family)
@pytest.mark.parametrize("trials", [False, True])
def test_the_rules_cover_every_parameter_of_every_family(config, trials):
    shapes = model.abstract_params(config)[1]
    if trials:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), shapes)
    specs = sharding.partition_specs(shapes, trials=trials)
    for leaf, spec in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)), strict=True
    ):
        assert len(spec) == leaf.ndim
        assert (spec[0] == "trial") == trials
        if leaf.ndim - trials >= 3 and leaf.size > 4096:
            assert "fsdp" in spec, "every large parameter is split"


def test_parameters_without_a_rule_are_all_listed():
    with pytest.raises(ValueError, match=r"(?s)RULES.*layers.new.kernel \[2, 4\].*odd \[3\]"):
        sharding.partition_specs({"layers": {"new": {"kernel": jnp.zeros((2, 4))}}, "odd": jnp.zeros(3)})


def test_heads_that_do_not_divide_are_an_error_or_replicated_by_choice():
    shapes = model.abstract_params(dataclasses.replace(TINY, num_kv_heads=2))[1]
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    with pytest.raises(UserError) as caught:
        sharding.shardings(mesh, shapes)
    assert "layers.attn.k.kernel [2, 32, 2, 16]: 2 over tensor=8" in str(caught.value)
    assert "layers.attn.v.kernel" in str(caught.value) and "mesh.indivisible" in str(caught.value)
    places = sharding.shardings(mesh, shapes, indivisible=Indivisible.REPLICATE)
    assert places["layers"]["attn"]["k"]["kernel"].spec == PartitionSpec(None, "fsdp", None, None)
    assert places["layers"]["attn"]["q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1, 1, 1, 1)),
        (MeshConfig(fsdp=4), (1, 2, 1, 4, 1, 1)),
        (MeshConfig(trial=2, data=1, fsdp=-1, tensor=2), (2, 1, 1, 2, 2, 1)),
        (MeshConfig(devices=2), (1, 2, 1, 1, 1, 1)),
        (MeshConfig(data=2, expert=-1, tensor=2), (1, 2, 2, 1, 2, 1)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(config, shape):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == shape
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_mesh(MeshConfig(data=3)), r"data=3\) needs 3 devices, but there are 8"),
        (lambda: make_mesh(MeshConfig(tensor=3)), r"tensor=3\) needs a multiple of 3 devices"),
        (lambda: make_mesh(MeshConfig(devices=9)), "mesh.devices is 9, but there are 8"),
        (lambda: MeshConfig(data=-1, fsdp=-1), "only one mesh axis may be -1"),
        (lambda: MeshConfig(tensor=0), "tensor=0"),
        (
            lambda: sharding.local_rows(make_mesh(MeshConfig()), 12),
            "12 rows do not divide over data=8, expert=1, fsdp=1",
        ),
    ],
)
def test_a_mesh_that_cannot_be_built_is_a_user_error(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(data=2, fsdp=2, sequence=2)], ids=name)
def test_batches_arrive_unchanged_with_their_rows_and_tokens_split(config):
    mesh = make_mesh(config)
    micro = np.arange(3 * ROWS * SEQ, dtype=np.int32).reshape(3, ROWS, SEQ)
    placed = sharding.put_batch(mesh, {"tokens": micro}, ROWS)["tokens"]
    assert np.array_equal(np.asarray(placed), micro)
    shard = (3, ROWS // sharding.row_shards(mesh), SEQ // config.sequence)
    assert placed.sharding.shard_shape(micro.shape) == shard
    assert list(sharding.local_rows(mesh, ROWS)) == list(range(ROWS))


def test_rows_that_the_sequence_axis_does_not_divide_are_a_user_error():
    mesh = make_mesh(MeshConfig(data=1, sequence=8))
    with pytest.raises(UserError, match="rows of 30 tokens do not divide over sequence=8"):
        sharding.put_batch(mesh, np.zeros((8, 30), np.int32), 8)


def test_trials_train_side_by_side_without_talking(params, reference):
    mesh = make_mesh(MeshConfig(trial=8, data=1))
    stacked = jax.tree.map(lambda x: jnp.stack([x * (1 + i / 100) for i in range(8)]), params)
    places = sharding.shardings(mesh, stacked, trials=True)
    fields = {key: np.repeat(value[None], 8, 0) for key, value in vars(packed_batch()).items()}
    arguments = jax.device_put(stacked, places), sharding.put_batch(mesh, fields, ROWS, trials=True)
    step = jax.vmap(jax.value_and_grad(lambda p, b: loss(p, Batch(**b), 1)), spmd_axis_name="trial")
    with jax.set_mesh(mesh):
        program = jax.jit(step).lower(*arguments).compile(QUICK)
    text = program.as_text() or ""
    sums = [line for line in text.splitlines() if re.search(r" all-reduce\(", line)]
    assert set(collectives(text)) <= {"all-reduce"}
    assert all("pred[]" in line for line in sums), "only the loop over loss chunks ends for all trials together"
    values, gradients = program(*arguments)
    np.testing.assert_allclose(float(values[0]), reference[0], atol=1e-5)
    assert len(set(np.asarray(values).tolist())) == 8
    for ours, alone in zip(jax.tree.leaves(gradients), jax.tree.leaves(reference[1]), strict=True):
        np.testing.assert_allclose(np.asarray(ours[0]), alone, atol=1e-5)


def test_without_a_mesh_constraints_do_nothing():
    x = jnp.ones((2, 3, 4))
    assert sharding.constrain(x, sharding.Layout.HIDDEN) is x
    assert sharding.gathered({"kernel": x}, "head")["kernel"] is x


def test_the_table_shows_what_a_device_holds():
    mesh = make_mesh(MeshConfig(fsdp=8, data=1))
    rows = {row[0]: row[1:] for row in sharding.table(mesh, SHAPES, sharding.shardings(mesh, SHAPES))}
    assert rows["head.kernel"][0] == (32, 64)
    assert rows["head.kernel"][2] == 32 * 64 * 4 // 8


def gradient_of_a_weight(reduced: str, shards: int, dtype: str):
    """Text of the program, and the gradient, of a weight by rows that `shards` devices split."""
    mesh = make_mesh(MeshConfig(data=shards, devices=shards))
    random = np.random.default_rng(1)
    rows, weight = (jnp.asarray(random.standard_normal(shape, dtype=np.float32)) for shape in ((64, 16), (16, 8)))
    rows = jax.device_put(rows, jax.NamedSharding(mesh, PartitionSpec("data")))

    def objective(weight, rows):
        with REDUCED(reduced):
            return jnp.square(product("nd,df->nf", rows.astype(dtype), weight).astype(jnp.float32)).sum()

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(objective)).lower(weight, rows)
        return lowered.as_text(), np.asarray(lowered.compile(QUICK)(weight, rows))


@pytest.mark.parametrize("shards", [1, 4])
def test_devices_add_up_their_parts_of_a_gradient_in_the_dtype_that_is_asked_for(shards):
    (wide, exact), (narrow, rounded) = (
        gradient_of_a_weight(dtype, shards, "bfloat16") for dtype in ("float32", "bfloat16")
    )
    part = "tensor<16x8xbf16>"
    if shards == 1:
        assert narrow == wide, "one device has nothing to add up"
    else:
        assert part in narrow.split("dot_general")[-1] and part not in wide.split("dot_general")[-1]
        assert 0 < np.abs(rounded - exact).max() < 2**-7 * np.abs(exact).max()
    assert exact.dtype == rounded.dtype == np.float32


def test_products_in_float32_are_added_up_in_float32():
    assert gradient_of_a_weight("bfloat16", 4, "float32")[0] == gradient_of_a_weight("float32", 4, "float32")[0]
