"""Adapters: equal to merged weights, cheaper than full training, keyed by path, strict about targets."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import lora
from jaxtune.model.linear import product
from jaxtune.model.lora import Adapted, LoraConfig, Scaling, Variant
from jaxtune.model.moe import MoeConfig
from jaxtune.model.quantize import Bits
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params, apply
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh

CONFIG = ModelConfig(
    vocab_size=41, d_model=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=16, max_seq_len=32,
    tie_embeddings=False,
)  # fmt: skip
EXPERTS = dataclasses.replace(CONFIG, moe=MoeConfig(num_experts=3, experts_per_token=2, d_ff=8))
SPECS = {"q": ("bsd,dhe->bshe", 1), "o": ("bshe,hed->bsd", 2), "up": ("bsd,df->bsf", 1)}


def random_like(tree, seed: int) -> Any:
    draws = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draws.standard_normal(leaf.shape), leaf.dtype), tree)


def base_of(config: ModelConfig) -> dict:
    return random_like(abstract_params(config)[1], 0)


def adapters_of(config: ModelConfig, settings: LoraConfig) -> dict:
    return random_like(jax.eval_shape(lambda: lora.init_lora(base_of(config), settings, 0)), 1)


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config: ModelConfig, params):
    tokens = jnp.arange(16).reshape(2, 8) % config.vocab_size
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    return apply(abstract_params(config)[0], params, tokens, positions, jnp.ones((2, 8), jnp.int32))


def random_adapted(name: str, variant: Variant, seed: int = 0) -> tuple[Adapted, jax.Array]:
    """A kernel of one layer with an adapter, and an input for it."""
    into, out = {"q": ((12,), (4, 6)), "o": ((4, 6), (12,)), "up": ((12,), (16,))}[name]
    parts = {"value": (*into, *out), "a": (*into, 3), "b": (3, *out), "magnitude": out, "left": (2, 5, *into)}
    drawn = random_like({part: jax.ShapeDtypeStruct(shape, jnp.float32) for part, shape in parts.items()}, seed)
    left = drawn.pop("left")
    if variant is Variant.LORA:
        drawn["magnitude"] = None
    return Adapted(**drawn, scale=0.7, inputs=SPECS[name][1]), left


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
@pytest.mark.parametrize("name", list(SPECS))
def test_an_adapted_kernel_multiplies_and_differentiates_like_its_dense_form(name, variant):
    kernel, left = random_adapted(name, variant)
    spec = SPECS[name][0]

    def total(parts, left, *, dense: bool):
        adapted = dataclasses.replace(kernel, **parts)
        y = jnp.einsum(spec, left, adapted.dense()) if dense else product(spec, left, adapted)
        return jnp.sum(jnp.sin(y))

    parts = {part: getattr(kernel, part) for part in ("a", "b", "magnitude") if getattr(kernel, part) is not None}
    results = [
        jax.jit(jax.value_and_grad(functools.partial(total, dense=dense), argnums=(0, 1)))(parts, left)
        for dense in (False, True)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *results)


def test_dora_gives_every_output_the_learned_length():
    kernel, _ = random_adapted("o", Variant.DORA)
    np.testing.assert_allclose(
        jnp.sqrt(jnp.sum(kernel.dense() ** 2, axis=(0, 1))), jnp.abs(kernel.magnitude), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CONFIG, LoraConfig(rank=3, targets=(".*kernel",), scaling=Scaling.RANK_STABILIZED)),
        (CONFIG, LoraConfig(rank=2, variant=Variant.DORA, base=Bits.INT8)),
        (EXPERTS, LoraConfig(rank=2)),
    ],
    ids=["all kernels", "dora over int8", "experts"],
)
def test_the_adapted_model_equals_the_merged_one(config, settings):
    base, adapters = lora.freeze_base(base_of(config), settings), adapters_of(config, settings)
    ours = hidden_states(config, lora.apply_lora(base, adapters, settings))
    merged = lora.merge(base, adapters, settings)
    np.testing.assert_allclose(ours, hidden_states(config, merged), rtol=1e-4, atol=1e-5)
    assert not np.allclose(ours, hidden_states(config, lora.merge(base, {}, settings)), atol=1e-2)
    if "head" in adapters:
        np.testing.assert_array_equal(
            lora.apply_lora(base, adapters, settings)["head"]["kernel"], merged["head"]["kernel"]
        )


def test_adapters_over_a_split_base_give_the_same():
    settings = LoraConfig(rank=2, variant=Variant.DORA, base=Bits.INT8)
    base, adapters = lora.freeze_base(base_of(CONFIG), settings), adapters_of(CONFIG, settings)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    where = sharding.shardings(mesh, base, indivisible=Indivisible.REPLICATE)
    assert any("fsdp" in str(place.spec) for place in jax.tree.leaves(where["layers"]["mlp"]))
    split = jax.device_put(base, where)
    expected = hidden_states(CONFIG, lora.apply_lora(base, adapters, settings))
    with jax.set_mesh(mesh):
        placed = jax.device_put(adapters, sharding.replicated(mesh))
        ours = hidden_states(CONFIG, lora.apply_lora(split, placed, settings))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
def test_fresh_adapters_change_nothing(variant):
    base = base_of(CONFIG)
    settings = LoraConfig(rank=2, variant=variant)
    merged = lora.merge(base, lora.init_lora(base, settings, 0), settings)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), merged, base)


def test_an_adapter_is_drawn_from_seed_and_path_within_its_bound():
    base = base_of(CONFIG)
    few = lora.init_lora(base, LoraConfig(rank=4, targets=(r"layers\.attn\.o\.kernel",)), 7)
    many = lora.init_lora(base, LoraConfig(rank=4), 7)
    np.testing.assert_array_equal(few["layers"]["attn"]["o"]["a"], many["layers"]["attn"]["o"]["a"])
    assert not np.array_equal(many["layers"]["attn"]["q"]["a"], many["layers"]["attn"]["k"]["a"])
    other = lora.init_lora(base, LoraConfig(rank=4, targets=(r"layers\.attn\.o\.kernel",)), 8)
    assert not np.array_equal(few["layers"]["attn"]["o"]["a"], other["layers"]["attn"]["o"]["a"])
    a = few["layers"]["attn"]["o"]["a"]
    assert a.shape == (2, 4, 6, 4) and 0.9 / np.sqrt(24) < np.abs(a).max() <= 1 / np.sqrt(24)
    assert few["layers"]["attn"]["o"]["b"].shape == (2, 4, 12) and not few["layers"]["attn"]["o"]["b"].any()


def test_scaling_is_alpha_over_rank_or_its_root():
    assert LoraConfig(rank=16, alpha=8).scale == 0.5
    assert LoraConfig(rank=16, alpha=8, scaling=Scaling.RANK_STABILIZED).scale == 2.0


def test_factors_apart_cost_a_third_less_than_merged_weights():
    shapes = {"value": (256, 256), "a": (256, 4), "b": (4, 256), "left": (64, 256)}
    arguments = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def total(trained, value, *, dense: bool):
        kernel = Adapted(value=value, a=trained["a"], b=trained["b"], magnitude=None, scale=1.0, inputs=1)
        weights = kernel.dense() if dense else kernel
        return jnp.sum(jnp.sin(product("sd,df->sf", trained["left"], weights)))

    def flops(dense: bool) -> float:
        gradient = jax.jit(jax.grad(functools.partial(total, dense=dense)))
        trained = {name: arguments[name] for name in ("a", "b", "left")}
        costs: Any = gradient.lower(trained, arguments["value"]).compile().cost_analysis()
        return costs["flops"]

    assert flops(dense=False) < 0.72 * flops(dense=True)


def test_a_merged_export_is_the_adapted_model(tmp_path):
    settings = LoraConfig(rank=2)
    base = base_of(CONFIG)
    merged = lora.merge(base, adapters_of(CONFIG, settings), settings)
    hf.export_model(tmp_path / "merged", CONFIG, merged, TextFiles(eos_token_id=1))
    config, params = hf.import_model(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, params, merged)
    assert dataclasses.replace(config, layer_kinds=None) == CONFIG


def test_targets_that_match_nothing_are_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"\['q_proj'\] match no kernel; .*layers.attn.q.kernel"):
        lora.init_lora(base_of(CONFIG), LoraConfig(targets=("q_proj", ".*kernel")), 0)
    with pytest.raises(UserError, match="match no kernel"):
        lora.init_lora(base_of(CONFIG), LoraConfig(targets=(r"embed\.embedding",)), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"targets": ()}, "lora targets is empty"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize("variant", Variant)
def test_adapters_with_columns_of_zeros_are_the_same_adapters(variant):
    settings = LoraConfig(rank=3, variant=variant)
    base, adapters = base_of(CONFIG), adapters_of(CONFIG, settings)
    wide = lora.with_rank(adapters, 5)
    merged = lora.merge(base, adapters, settings)
    for ours, theirs in zip(*map(jax.tree.leaves, (lora.merge(base, wide, settings), merged)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), lora.with_rank(wide, 3), adapters)
    assert jax.tree.all(same), "cut to its rank, an adapter is what it was"
    assert all(leaf.shape != other.shape for leaf, other in zip(*map(factors, (wide, adapters)), strict=True))


def factors(adapters) -> list:
    """The low-rank factors, without lengths."""
    paths = jax.tree_util.tree_leaves_with_path(adapters)
    return [leaf for path, leaf in paths if "magnitude" not in jax.tree_util.keystr(path)]


def test_default_targets_are_those_that_runs_of_earlier_versions_recorded():
    """Else these runs, and sweeps, would be of other settings; linear layers join them without being named."""
    recorded = (r"layers\.attn\.[qkvo]\.kernel", r"layers\.(mlp|moe|moe\.shared)\.(gate|up|down)\.kernel")
    assert LoraConfig().targets == recorded
