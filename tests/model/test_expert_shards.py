"""Experts split over devices: loss, gradients and counts are one device's, and no token is lost however routed."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_xla

from jaxtune.errors import UserError
from jaxtune.model import expert_shards, lora, moe
from jaxtune.model import transformer as model
from jaxtune.model.lora import LoraConfig
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.quantize import Bits
from jaxtune.model.settings import ModelConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import MeshConfig, make_mesh

QUICK = quick_xla.OPTIONS
TOKENS = np.random.default_rng(0).integers(0, 40, (8, 16)).astype(np.int32)
MIXTRAL = ModelConfig(
    family="mixtral", vocab_size=40, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=8,
    max_seq_len=32, tie_embeddings=False, moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=12),
)  # fmt: skip


def variant(family: str, **options: Any) -> ModelConfig:
    of_model = {name: options.pop(name) for name in ("attn_sinks",) if name in options}
    sizes: dict[str, Any] = {"num_experts": 8, "experts_per_token": 2, "d_ff": 12}
    mixture = MoeConfig(**sizes | options)
    return dataclasses.replace(MIXTRAL, family=family, moe=mixture, **of_model)


FAMILIES = {
    "mixtral": MIXTRAL,
    "olmoe": variant("olmoe", normalise=False, experts_per_token=3),
    "a shared expert": variant("qwen3_next", shared_d_ff=8),
    "gpt-oss": variant("gpt_oss", bias=True, clamped=ClampedGate(limit=0.1), attn_sinks=True),
}
MESHES = [
    MeshConfig(data=1, expert=2, fsdp=2, devices=4),
    MeshConfig(data=1, expert=4, fsdp=2),
    MeshConfig(data=1, expert=2, tensor=2, sequence=2),
]


def drawn(config: ModelConfig):
    """Parameters that leave no bias at zero."""
    params = model.init_params(config, 0)[1]
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)


def objective(config: ModelConfig, params, tokens):
    graphdef = model.abstract_params(config)[0]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.apply(graphdef, params, tokens, positions, jnp.ones_like(tokens))
    return jnp.sum(hidden**2 * (1.5 + jnp.sin(jnp.arange(hidden.size))).reshape(hidden.shape)) / hidden.size


@functools.cache
def expected(family: str):
    config = FAMILIES[family]
    step = jax.jit(jax.value_and_grad(functools.partial(objective, config)), compiler_options=QUICK)
    return step(drawn(config), TOKENS)


def compiled(config: ModelConfig, mesh: jax.sharding.Mesh, rows: int = 8):
    params = jax.device_put(drawn(config), sharding.shardings(mesh, drawn(config)))
    spread = jax.P() if rows % sharding.row_shards(mesh) else jax.P(sharding.ROWS)
    tokens = jax.device_put(TOKENS[:rows], jax.NamedSharding(mesh, spread))
    step = jax.jit(
        jax.value_and_grad(functools.partial(objective, config)),
        out_shardings=(sharding.replicated(mesh), sharding.shardings(mesh, drawn(config))),
    )
    with jax.set_mesh(mesh):
        return step.lower(params, tokens).compile(QUICK), (params, tokens)


def agree(ours, alone):
    """Within 1e-5 of the largest entry of each array."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=1e-5 * max(float(jnp.abs(other).max()), 1e-3))


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"expert{mesh.expert}-tensor{mesh.tensor}")
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_one_device(family, mesh):
    step, given = compiled(FAMILIES[family], make_mesh(mesh))
    agree(step(*given), expected(family))
    assert all(float(jnp.abs(leaf).max()) > 1e-5 for leaf in jax.tree.leaves(expected(family)[1]["layers"]["moe"]))


def test_rows_that_do_not_divide_are_computed_whole_by_every_device():
    step, given = compiled(MIXTRAL, make_mesh(MeshConfig(data=1, expert=4, fsdp=2)), rows=4)
    alone = jax.jit(jax.value_and_grad(functools.partial(objective, MIXTRAL)), compiler_options=QUICK)
    agree(step(*given), alone(drawn(MIXTRAL), TOKENS[:4]))


def test_tokens_are_gathered_and_results_scattered_and_no_device_ever_has_all_experts():
    step, _ = compiled(MIXTRAL, make_mesh(MeshConfig(data=2, expert=4)))
    text = step.as_text() or ""
    assert "reduce-scatter(" in text and "all-gather(" in text
    groups = set(re.findall(r"all-gather\(.*?replica_groups=(\S+?), ", text))
    assert groups and all(group.startswith(("[2,4]<=[8]", "{{0,1,2,3},{4,5,6,7}}")) for group in groups), groups
    shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)}
    assert any(shape[-3:] == (2, 16, 12) for shape in shapes), "a device's two experts"
    assert not [shape for shape in shapes if shape[-3:] in ((8, 16, 12), (8, 12, 16))]
    whole, _ = compiled(MIXTRAL, make_mesh(MeshConfig(data=8)))
    account, account_of_whole = step.memory_analysis(), whole.memory_analysis()
    assert account is not None and account_of_whole is not None
    less = account_of_whole.argument_size_in_bytes - account.argument_size_in_bytes
    experts = 4 * 3 * 8 * 16 * 12
    assert less == pytest.approx(experts * 3 / 4, rel=0.05)


def test_where_the_axis_is_one_the_mixture_is_computed_as_without_it(monkeypatch):
    def elsewhere(*_):
        raise AssertionError("taken")

    monkeypatch.setattr(moe, "_where_experts_are", elsewhere)
    trace = functools.partial(jax.make_jaxpr(functools.partial(objective, MIXTRAL)), drawn(MIXTRAL), TOKENS)
    with jax.set_mesh(make_mesh(MeshConfig(data=8))):  # nothing else is split that would be gathered
        program = str(trace())
    assert "psum_scatter" not in program and "reduce_scatter" not in program and "all_gather" not in program
    with jax.set_mesh(make_mesh(MeshConfig(data=4, expert=2))), pytest.raises(AssertionError, match="taken"):
        trace()


@pytest.mark.parametrize("bits", [None, Bits.INT4], ids=["plain base", "int4 base"])
def test_adapters_of_experts_train_as_on_one_device(bits):
    settings = LoraConfig(rank=2, base=bits, targets=(r"layers\.moe\.(gate|up|down)\.kernel",))
    frozen = lora.freeze_base(drawn(MIXTRAL), settings)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, lora.init_lora(frozen, settings, 0))
    total = lambda adapters, frozen: objective(
        MIXTRAL, lora.apply_lora(frozen, adapters, settings), jnp.asarray(TOKENS)
    )
    step = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)
    alone = step(adapters, frozen)
    mesh = make_mesh(MeshConfig(data=1, expert=4, fsdp=2))
    placed = jax.device_put(frozen, sharding.shardings(mesh, frozen))
    with jax.set_mesh(mesh):
        agree(step(jax.device_put(adapters, sharding.replicated(mesh)), placed), alone)
    assert all(float(jnp.abs(leaf).max()) > 1e-6 for leaf in jax.tree.leaves(alone[1]))


ROUTINGS = {
    "even": np.stack([np.arange(24) % 8, (np.arange(24) + 3) % 8], axis=1),
    "all to two experts of one device": np.stack([np.full(24, 6), np.full(24, 7)], axis=1),
    "all to two experts of two devices": np.stack([np.full(24, 1), np.full(24, 6)], axis=1),
    "random": np.stack([np.random.default_rng(i).permutation(8)[:2] for i in range(24)]),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("ways", [2, 4, 8])
def test_the_parts_of_all_devices_sum_to_the_mixture_however_uneven_the_routing(routing, ways):
    experts = jnp.asarray(ROUTINGS[routing], jnp.int32)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda *shape: jax.random.normal(next(keys), shape)
    floats = (draw(24, 6), draw(24, 2), (draw(8, 6, 5), draw(8, 6, 5), draw(8, 5, 6)), (draw(8, 5), draw(8, 5)))
    gated, toward, count = moe.gated_by(jax.nn.silu), draw(24, 6), 8 // ways

    def alone(tokens, weights, matrices, biases):
        return jnp.sum(toward * moe.mix_experts(tokens, weights, experts, *matrices, gated=gated, biases=biases))

    def in_parts(tokens, weights, matrices, biases):
        total = jnp.zeros(())
        for first in range(0, 8, count):
            here = slice(first, first + count)
            own = tuple(tuple(leaf[here] for leaf in leaves) for leaves in (matrices, biases))
            part = expert_shards.mix_shard(gated, ways, tokens, weights, experts - first, *own)
            total += jnp.sum(toward * part)
        return total

    agree(*(jax.value_and_grad(way, argnums=(0, 1, 2, 3))(*floats) for way in (in_parts, alone)))
    counts = [expert_shards.sorted_here(experts - first, count)[2] for first in range(0, 8, count)]
    assert np.array_equal(np.concatenate(counts), np.bincount(ROUTINGS[routing].reshape(-1), minlength=8))


@pytest.mark.parametrize(
    ("mixture", "ways", "message"),
    [
        (MIXTRAL.moe, 3, "mesh.expert is 3, which does not divide the model's 8 experts; choose a divisor"),
        (None, 2, "mesh.expert is 2, but the model has no mixture of experts; leave it at 1, and split by mesh.fsdp"),
    ],
)
def test_a_size_that_experts_cannot_be_split_by_is_refused(mixture, ways, message):
    with pytest.raises(UserError) as caught:
        moe.check_expert_axis(mixture, ways)
    assert str(caught.value) == message
    moe.check_expert_axis(mixture, 1)
