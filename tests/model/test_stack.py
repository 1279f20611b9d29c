"""Stacks of unlike layers: the plan of their scans, and what it computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.errors import UserError
from jaxtune.model import lora, stack
from jaxtune.model import transformer as model
from jaxtune.model.attention.layer import packed_attention
from jaxtune.model.block import Block
from jaxtune.model.moe import MoeConfig
from jaxtune.model.rope import RopeConfig, example_lengths, tables
from jaxtune.model.settings import LayerKind, ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import AXES
from jaxtune.train import memory
from jaxtune.train.memory import Work

D, E = ("attn", "mlp"), ("attn", "moe")
MIXED = ModelConfig(
    vocab_size=31, d_model=12, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=20, max_seq_len=64,
    moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=7, shared_d_ff=5), dense_layers=(0, 1, 3, 5),
)  # fmt: skip


def drawn(config: ModelConfig) -> dict:
    return random_like(model.abstract_params(config)[1])


def random_like(shapes: dict) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, dtype=np.float32)), shapes)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((D,) * 5, [(0, (D,), 5)]),
        ((D, *(E,) * 4), [(0, (D,), 1), (1, (E,), 4)]),
        ((D, E) * 3, [(0, (D, E), 3)]),
        ((D, D, D, E) * 2 + (D,), [(0, (D, D, D, E), 2), (8, (D,), 1)]),
        ((D, D, E, D, E, D), [(0, (D,), 2), (2, (E, D), 2)]),
        ((E,), [(0, (E,), 1)]),
    ],
)
def test_a_stack_is_a_short_list_of_repeated_blocks(kinds, expected):
    assert [(repeat.first, repeat.block, repeat.repeats) for repeat in stack.repeats(kinds)] == expected


def test_every_layer_of_any_stack_is_planned_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        kinds = tuple(E if one else D for one in rng.random(rng.integers(1, 40)) < 0.5)
        assert sum((repeat.block * repeat.repeats for repeat in stack.repeats(kinds)), ()) == kinds


def test_parameters_of_unlike_layers_are_stacked_by_part():
    layers = model.abstract_params(MIXED)[1]["layers"]
    assert layers["attn"]["q"]["kernel"].shape == (6, 12, 4, 6)
    assert layers["mlp"]["gate"]["kernel"].shape == (4, 12, 20)
    assert layers["moe"]["gate"]["kernel"].shape == (2, 4, 12, 7)
    assert layers["moe"]["shared"]["down"]["kernel"].shape == (2, 5, 12)
    assert layers["moe"]["shared_gate"]["kernel"].shape == (2, 12, 1)


def one_by_one(config: ModelConfig, params: dict, tokens, positions, segments):
    """Hidden states without a scan: every layer's own weights, taken by hand from the stacks of their kind."""
    x = params["embed"]["embedding"][tokens]
    cos, sin = tables(config.rope, config.head_dim, positions, example_lengths(positions, segments))
    taken = {D: 0, E: 0}
    for layer in range(config.num_layers):
        kind = D if layer in config.dense_layers else E
        part = "mlp" if kind is D else "moe"
        places = {name: layer for name in params["layers"] if name not in ("mlp", "moe")} | {part: taken[kind]}
        taken[kind] += 1
        weights = {name: jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"][name]) for name, i in places.items()}
        shape = nnx.eval_shape(lambda kind=kind: Block(config, kind, rngs=nnx.Rngs(0), dtype=jnp.float32))
        attend = lambda *heads: (packed_attention(config, 0, segments, *heads), None)
        x, _ = nnx.merge(nnx.split(shape)[0], weights)(x, cos, sin, attend)
    wide = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.norm_eps)
    return wide * params["final_norm"]["scale"][None, None]


TOKENS = np.random.default_rng(1).integers(0, 31, (1, 9))
ROW = (jnp.asarray(TOKENS), jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), jnp.asarray([[1] * 4 + [2] * 5]))


def test_scans_over_blocks_compute_what_the_layers_do_one_by_one():
    config = dataclasses.replace(MIXED, num_layers=4, dense_layers=(0, 2))
    params, graphdef = drawn(config), model.abstract_params(config)[0]
    ours = jax.jit(lambda params: model.apply(graphdef, params, *ROW))(params)
    expected = jax.jit(lambda params: one_by_one(config, params, *ROW))(params)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_the_program_of_a_repeated_block_does_not_grow_with_depth():
    def size(layers: int) -> int:
        config = dataclasses.replace(MIXED, num_layers=layers, dense_layers=tuple(range(0, layers, 2)))
        graphdef, params = model.abstract_params(config)
        return len(str(jax.make_jaxpr(lambda params: model.apply(graphdef, params, *ROW))(params)).splitlines())

    assert size(24) == size(8) < size(3)  # three layers are no repetition


@pytest.mark.parametrize("remat", [Remat.FULL, Remat.DOTS], ids=lambda remat: remat.value)
def test_unlike_layers_are_rematerialised_each(remat):
    graphdef, params = model.abstract_params(dataclasses.replace(MIXED, remat=remat))
    program = str(jax.make_jaxpr(lambda params: model.apply(graphdef, params, *ROW))(params))
    assert program.count("remat") >= 4  # two dense layers in one scan, and a layer of each kind in the other


def test_adapters_of_unlike_layers_equal_the_merged_weights():
    config = dataclasses.replace(MIXED, num_layers=2, dense_layers=(0,))
    settings, graphdef = lora.LoraConfig(rank=2), model.abstract_params(config)[0]
    params = drawn(config)
    adapters = random_like(jax.eval_shape(lambda params: lora.init_lora(params, settings, 0), params))
    assert {"mlp", "moe"} <= set(adapters["layers"]) and "shared" in adapters["layers"]["moe"]

    @jax.jit
    def both(params, adapters):
        adapted = lora.apply_lora(lora.freeze_base(params, settings), adapters, settings)
        merged = lora.merge(params, adapters, settings)
        return tuple(model.apply(graphdef, weights, *ROW) for weights in (adapted, merged))

    ours, merged = both(params, adapters)
    np.testing.assert_allclose(ours, merged, rtol=1e-4, atol=1e-5)


def test_a_shallow_model_is_like_the_first_layers():
    """What the plan of memory looks at: one and two layers alone."""
    kinds = (LayerKind.LOCAL, LayerKind.GLOBAL) * 3
    config = dataclasses.replace(MIXED, unrotated_layers=(5,), sliding_window=3, layer_kinds=kinds)
    assert config.shallow(2).layers == (config.layers[2],) * 2
    plain = dataclasses.replace(MIXED, num_layers=2, moe=None, dense_layers=(), unrotated_layers=(1,))
    axes: dict[str, int] = dict.fromkeys(AXES, 1)
    work = Work(model=plain, optim=OptimConfig(), axes=axes, micro_rows=2, micro_batches=1, seq_len=16)
    assert memory.estimate(work).total > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense_layers": (6,)}, r"dense_layers has \[6\]; the model has layers 0 to 5"),
        ({"unrotated_layers": (-1,)}, r"unrotated_layers has \[-1\]"),
        ({"moe": None}, "dense_layers says which layers have no experts"),
        ({"dense_layers": tuple(range(6))}, "dense_layers has every layer"),
        ({"parallel_block": True, "pre_norms": False, "post_norms": True}, "side by side read one norm"),
        ({"local_rope": RopeConfig(interleaved=True)}, "must agree on interleaved"),
    ],
)
def test_an_impossible_stack_says_why(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(MIXED, **changed)
