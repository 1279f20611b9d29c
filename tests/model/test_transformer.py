import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.errors import UserError
from jaxtune.model import moe, rope
from jaxtune.model import transformer as model
from jaxtune.model.attention.core import Backend
from jaxtune.model.cache import init_cache
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.rope import RopeConfig, RopeScaling
from jaxtune.model.settings import Activation, LayerKind, ModelConfig, Remat
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh

PLAIN = ModelConfig(
    vocab_size=31, d_model=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=20, max_seq_len=64
)
RICH = dataclasses.replace(
    PLAIN,
    activation=Activation.GELU_TANH,
    norm_offset=True,
    post_norms=True,
    qk_norm=True,
    qkv_bias=True,
    out_bias=True,
    tie_embeddings=False,
    embed_scale=3.0,
    attn_soft_cap=4.0,
    final_soft_cap=5.0,
    sliding_window=3,
    layer_kinds=(LayerKind.LOCAL, LayerKind.GLOBAL, LayerKind.LOCAL),
    local_rope=RopeConfig(theta=100.0),
)
EXPERTS = dataclasses.replace(PLAIN, moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=7))
CONFIGS = {"plain": PLAIN, "rich": RICH, "experts": EXPERTS}


def random_params(config: ModelConfig):
    rng = np.random.default_rng(0)
    shapes = model.abstract_params(config)[1]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, dtype=np.float32)), shapes)


def logits(config: ModelConfig, params, tokens, positions, segment_ids, dtype=jnp.float32):
    graphdef = model.abstract_params(config)[0]
    hidden = model.apply(graphdef, params, tokens, positions, segment_ids, dtype=dtype)
    return model.apply_logits(graphdef, params, hidden)


jitted = jax.jit(logits, static_argnums=0, static_argnames="dtype")


def rows(lengths: tuple[tuple[int, ...], ...], length: int = 12):
    """Rows packed with segments of these lengths, the rest padding; tokens at random."""
    tokens = np.random.default_rng(1).integers(0, 31, (len(lengths), length))
    positions, segments = np.zeros((2, len(lengths), length), np.int32)
    for row, parts in enumerate(lengths):
        start = 0
        for i, n in enumerate(parts):
            positions[row, start : start + n] = np.arange(n)
            segments[row, start : start + n] = i + 1
            start += n
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(positions), jnp.asarray(segments)


@pytest.fixture(params=CONFIGS, scope="module")
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


def test_parameters_have_the_documented_shapes():
    shapes = jax.tree.map(lambda leaf: leaf.shape, model.abstract_params(RICH)[1])
    assert shapes["embed"]["embedding"] == (31, 12)
    assert shapes["head"]["kernel"] == (12, 31)
    assert shapes["final_norm"]["scale"] == (12,)
    layers = shapes["layers"]
    assert layers["attn"]["q"] == {"kernel": (3, 12, 4, 6), "bias": (3, 4, 6)}
    assert layers["attn"]["k"] == layers["attn"]["v"] == {"kernel": (3, 12, 2, 6), "bias": (3, 2, 6)}
    assert layers["attn"]["o"] == {"kernel": (3, 4, 6, 12), "bias": (3, 12)}
    assert layers["attn"]["q_norm"]["scale"] == layers["attn"]["k_norm"]["scale"] == (3, 6)
    assert layers["mlp"]["gate"]["kernel"] == layers["mlp"]["up"]["kernel"] == (3, 12, 20)
    assert layers["mlp"]["down"]["kernel"] == (3, 20, 12)
    for norm in ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm"):
        assert layers[norm]["scale"] == (3, 12)
    moe_shapes = jax.tree.map(lambda leaf: leaf.shape, model.abstract_params(EXPERTS)[1])["layers"]["moe"]
    assert moe_shapes["router"]["kernel"] == (3, 12, 4)
    assert moe_shapes["gate"]["kernel"] == moe_shapes["up"]["kernel"] == (3, 4, 12, 7)
    assert moe_shapes["down"]["kernel"] == (3, 4, 7, 12)


def test_initial_parameters_follow_the_seed():
    config = dataclasses.replace(PLAIN, num_layers=2, vocab_size=300)
    draw = jax.jit(lambda seed: model.init_params(config, seed)[1])
    first, again, other = draw(3), draw(3), draw(4)
    assert jax.tree.structure(first) == jax.tree.structure(model.abstract_params(config)[1])
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["layers"]["attn"]["q"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel, other["layers"]["attn"]["q"]["kernel"])
    assert 0.019 < float(first["embed"]["embedding"].std()) < 0.021


def test_packed_rows_equal_single_sequences(config, params):
    tokens, positions, segments = rows(((5, 4, 1), (12,)))
    together = jitted(config, params, tokens, positions, segments)
    start = 0
    for n in (5, 4, 1):
        alone = np.zeros((2, 12), np.int32)
        alone[:, :n] = tokens[0, start : start + n]
        first = rows(((n,), (n,)))
        expected = jitted(config, params, jnp.asarray(alone), *first[1:])[0, :n]
        np.testing.assert_allclose(together[0, start : start + n], expected, atol=2e-5)
        start += n


def test_cached_decoding_equals_the_full_forward_pass(config, params):
    tokens, positions, segments = rows(((12,), (9,)))
    expected = jitted(config, params, tokens, positions, segments)
    graphdef = model.abstract_params(config)[0]
    step = jax.jit(functools.partial(model.apply_cached, graphdef))
    lengths = np.asarray([8, 5])
    prompt = jnp.asarray((np.arange(8)[None, :] < lengths[:, None]).astype(np.int32))
    cache = init_cache(config, 2, 16)
    hidden, cache = step(params, tokens[:, :8], positions[:, :8], prompt, cache)
    ours = model.apply_logits(graphdef, params, hidden)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(ours[row, :n], expected[row, :n], atol=2e-5)
    for _ in range(4):
        np.testing.assert_array_equal(cache.lengths, lengths)
        new = jnp.take_along_axis(tokens, cache.lengths[:, None], axis=1)
        hidden, cache = step(params, new, cache.lengths[:, None], jnp.ones((2, 1), jnp.int32), cache)
        ours = model.apply_logits(graphdef, params, hidden)[:, 0]
        np.testing.assert_allclose(ours, expected[np.arange(2), lengths], atol=2e-5)
        lengths = lengths + 1


@pytest.fixture(scope="module")
def influence(config, params):
    """Change of the logits at [place] when the token at [token] of a packed row is replaced."""
    tokens, positions, segments = (np.asarray(x) for x in rows(((4, 3, 2),)))
    changed = np.tile(tokens, (13, 1))
    changed[np.arange(12), np.arange(12)] = (tokens[0] + 1) % 31
    batch = (changed, np.tile(positions, (13, 1)), np.tile(segments, (13, 1)))
    out = np.asarray(jitted(config, params, *map(jnp.asarray, batch)))
    return np.abs(out[:12] - out[12]).max(axis=-1).T, segments[0]


def test_no_logit_depends_on_another_segment_or_a_later_token(influence):
    change, segments = influence
    hidden = (segments[:, None] != segments[None, :]) | (np.arange(12)[:, None] < np.arange(12)[None, :])
    assert change[hidden].max() < 1e-6


def test_logits_depend_on_every_visible_token(influence, config):
    change, segments = influence
    place, token = np.arange(12)[:, None], np.arange(12)[None, :]
    visible = (segments[:, None] == segments[None, :]) & (token <= place) & (segments[:, None] > 0)
    assert change[visible].min() > 1e-4


def gradient(config: ModelConfig, params, dtype=jnp.float32):
    batch = rows(((5, 4, 1), (12,)))

    def loss(params):
        return (jax.nn.log_softmax(logits(config, params, *batch, dtype=dtype))[..., 3] ** 2).mean()

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", [Remat.DOTS, Remat.FULL, Remat.OFFLOAD])
def test_rematerialisation_changes_no_gradient(remat):
    expected = plain_gradient()
    ours = gradient(dataclasses.replace(PLAIN, remat=remat), random_params(PLAIN))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


@functools.cache
def plain_gradient():
    return gradient(PLAIN, random_params(PLAIN))


def test_rematerialisation_keeps_less():
    """Residuals of the backward pass, by policy: full < dots < none, and long rows keep no more than their outputs."""
    params = random_params(PLAIN)
    tokens, positions, segments = (jnp.zeros((2, 256), jnp.int32),) * 3

    def residuals(remat):
        config = dataclasses.replace(PLAIN, remat=remat)
        _, pull = jax.eval_shape(lambda p: jax.vjp(lambda p: logits(config, p, tokens, positions, segments), p), params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    full, dots, none = (residuals(remat) for remat in (Remat.FULL, Remat.DOTS, Remat.NONE))
    assert full < 0.6 * dots < 0.6 * none


def test_the_program_does_not_grow_with_depth():
    def size(config):
        params = model.abstract_params(config)[1]
        args = [jax.ShapeDtypeStruct((1, 8), jnp.int32)] * 3
        return len(jax.jit(logits, static_argnums=0).lower(config, params, *args).as_text().splitlines())

    kinds = (LayerKind.LOCAL,) * 5 + (LayerKind.GLOBAL,)
    deep = dataclasses.replace(RICH, num_layers=24, layer_kinds=kinds * 4)
    assert size(deep) == size(dataclasses.replace(RICH, num_layers=6, layer_kinds=kinds))


def test_bfloat16_compute_leaves_gradients_in_float32_and_close():
    ours = gradient(PLAIN, random_params(PLAIN), dtype=jnp.bfloat16)
    for (path, mine), exact in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(plain_gradient()), strict=True):
        assert mine.dtype == jnp.float32
        size = float(jnp.abs(exact).max())
        np.testing.assert_allclose(mine, exact, atol=0.1 * size + 1e-4, err_msg=jax.tree_util.keystr(path))


def test_a_mesh_changes_nothing_that_matters():
    config = dataclasses.replace(RICH, max_seq_len=256)
    params = random_params(config)
    batch = rows(((100, 60, 20),) * 4, length=192)
    expected = jitted(config, params, *batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, indivisible=Indivisible.REPLICATE))
    places = sharding.shardings(mesh, params, indivisible=Indivisible.REPLICATE)
    with jax.set_mesh(mesh):
        ours = jax.jit(logits, static_argnums=0)(config, jax.device_put(params, places), *batch)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_experts_equal_a_loop_over_tokens():
    rng = np.random.default_rng(0)
    config = MoeConfig(num_experts=5, experts_per_token=2, d_ff=7)
    tokens = rng.standard_normal((6, 4), dtype=np.float32)
    scores = rng.standard_normal((6, 5), dtype=np.float32)
    gate, up = rng.standard_normal((2, 5, 4, 7), dtype=np.float32)
    down = rng.standard_normal((5, 7, 4), dtype=np.float32)
    weights, experts = moe.route(jnp.asarray(scores), config)
    ours = moe.mix_experts(
        jnp.asarray(tokens), weights, experts, jnp.asarray(gate), jnp.asarray(up), jnp.asarray(down),
        moe.gated_by(jax.nn.silu),
    )  # fmt: skip
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for i, token in enumerate(tokens):
        best = np.argsort(-shares[i])[:2]
        expected = sum(
            shares[i, e]
            / shares[i, best].sum()
            * (np.asarray(jax.nn.silu(token @ gate[e])) * (token @ up[e]))
            @ down[e]
            for e in best
        )
        np.testing.assert_allclose(ours[i], expected, rtol=2e-5)


def test_experts_with_biases_and_a_clamped_gate_equal_a_loop_over_tokens():
    rng = np.random.default_rng(0)
    config = MoeConfig(num_experts=5, experts_per_token=2, d_ff=7, bias=True, clamped=ClampedGate(alpha=1.3, limit=1.5))
    layer = moe.Moe(config, 4, jax.nn.silu, std_in=1.0, std_out=1.0, rngs=nnx.Rngs(0))
    for linear in (layer.router, layer.gate, layer.up, layer.down):
        assert linear.bias is not None
        linear.bias = nnx.Param(jnp.asarray(rng.standard_normal(linear.bias[...].shape, dtype=np.float32)))
    x = rng.standard_normal((2, 3, 4), dtype=np.float32)
    ours = layer(jnp.asarray(x)).reshape(-1, 4)
    (router, router_bias), *kernels = (
        [np.asarray(part[...], np.float64) for part in (linear.kernel, linear.bias) if part is not None]
        for linear in (layer.router, layer.gate, layer.up, layer.down)
    )
    passed = 0
    for token, mine in zip(x.reshape(-1, 4), ours, strict=True):
        scores = token @ router + router_bias
        best = np.argsort(-scores)[:2]
        shares = np.exp(scores[best]) / np.exp(scores[best]).sum()
        expected = 0
        for share, e in zip(shares, best, strict=True):
            gate, up = (token @ kernel[e] + bias[e] for kernel, bias in kernels[:2])
            passed += np.count_nonzero(gate > 1.5) + np.count_nonzero(np.abs(up) > 1.5)
            gate, up = np.minimum(gate, 1.5), np.clip(up, -1.5, 1.5)
            hidden = (up + 1) * gate / (1 + np.exp(-1.3 * gate))
            expected += share * (hidden @ kernels[2][0][e] + kernels[2][1][e])
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    assert passed > 10


def test_graph_definitions_of_one_config_are_equal():
    """A function made anew for each model in one of its modules would compile every program again."""
    assert EXPERTS.moe is not None
    clamped = dataclasses.replace(EXPERTS.moe, bias=True, clamped=ClampedGate())
    for config in (EXPERTS, dataclasses.replace(EXPERTS, moe=clamped, attn_sinks=True)):
        first, second = (model.abstract_params(config)[0] for _ in range(2))
        assert first == second and hash(first) == hash(second)


def test_no_token_is_dropped_when_all_choose_one_expert():
    config = dataclasses.replace(EXPERTS, num_layers=1)
    params = random_params(config)
    router = jnp.zeros((1, 12, 4)).at[0, :, 2].set(50.0)  # or -50: experts 0 and 1 then, for all tokens alike
    params["layers"]["moe"]["router"]["kernel"] = router
    tokens, positions, segments = rows(((12,),))
    full = jitted(config, params, tokens, positions, segments)
    alone = jitted(config, params, tokens[:, :1], positions[:, :1], segments[:, :1])
    np.testing.assert_allclose(full[0, 0], alone[0, 0], atol=1e-5)


def test_rotation_keeps_length_and_depends_on_distance_only():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 8), dtype=np.float32)) for _ in range(2))

    def turned(heads, position):
        return rope.rotate(
            heads, *rope.tables(RopeConfig(theta=100.0), 8, jnp.asarray([[position]]), jnp.asarray([[position + 1]]))
        )[0, 0, 0]

    assert jnp.linalg.norm(turned(query, 37)) == pytest.approx(float(jnp.linalg.norm(query)), rel=1e-5)
    scores = [float(turned(query, p) @ turned(key, p + 5)) for p in (0, 11, 300)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-4)


def test_partial_rotation_leaves_the_rest_alone():
    heads = jnp.ones((1, 1, 1, 8))
    out = rope.rotate(heads, *rope.tables(RopeConfig(partial=0.5), 8, jnp.asarray([[3]]), jnp.asarray([[4]])))
    np.testing.assert_array_equal(out[..., 4:], 1.0)
    assert float(jnp.abs(out[..., :4] - 1.0).min()) > 0.001


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_kv_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"d_ff": 0}, r"model d_ff is 0; it must be in \[1, "),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"layer_kinds": (LayerKind.GLOBAL,)}, "layer_kinds has 1 entries; the model has 3 layers"),
        ({"layer_kinds": (LayerKind.LOCAL,) * 3}, "set sliding_window"),
        ({"head_dim": 7}, "must be even"),
    ],
)
def test_an_impossible_config_says_why(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PLAIN, **changed)
    with pytest.raises(UserError, match="yarn.* needs factor, original_max_len"):
        RopeConfig(scaling=RopeScaling.YARN)
    with pytest.raises(UserError, match=r"experts_per_token is 5; it must be between 1 and num_experts \(4\)"):
        MoeConfig(num_experts=4, experts_per_token=5, d_ff=3)


def test_the_tied_head_is_the_embedding():
    params = random_params(PLAIN)
    assert "head" not in params
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 12), dtype=np.float32))
    ours = model.apply_logits(model.abstract_params(PLAIN)[0], params, hidden)
    np.testing.assert_allclose(ours, hidden @ params["embed"]["embedding"].T, rtol=1e-5, atol=1e-5)


def test_backends_of_the_model_agree():
    tokens, positions, segments = rows(((70, 60), (130,)), length=160)
    params = random_params(RICH)
    first, second = (
        jitted(dataclasses.replace(RICH, attention=backend), params, tokens, positions, segments)
        for backend in (Backend.REFERENCE, Backend.BLOCKWISE)
    )
    real = np.asarray(segments > 0)
    np.testing.assert_allclose(first[real], second[real], atol=2e-5)
