"""Linear attention by the gated delta rule: chunks against single tokens, borders of examples, and decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.model import delta_rule, lora
from jaxtune.model import transformer as model
from jaxtune.model.cache import init_cache
from jaxtune.model.delta import DeltaConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.rope import RopeConfig, RopeScaling
from jaxtune.model.settings import LayerKind, ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import AXES, Indivisible, MeshConfig, make_mesh
from jaxtune.train import ahead, memory
from jaxtune.train.memory import Work

LINEAR, FULL = LayerKind.LINEAR, LayerKind.GLOBAL
SIZES = DeltaConfig(key_heads=2, value_heads=6, key_dim=5, value_dim=3)
CONFIG = ModelConfig(
    vocab_size=31, d_model=12, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=20, max_seq_len=256,
    attn_gate=True, qk_norm=True, norm_offset=True, layer_kinds=(LINEAR, FULL) * 2,
    delta=SIZES,
)  # fmt: skip
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def rule_inputs(length: int, *, alike: bool = False) -> tuple:
    """Queries, keys, values, decays and strengths; `alike`: keys nearly equal, written in full and never forgotten."""
    rng = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, dtype=np.float32))
    query, key, value = draw(2, length, 2, 5), draw(2, length, 2, 5), draw(2, length, 6, 3)
    decay, beta = -jnp.exp(draw(2, length, 6) - 1), jax.nn.sigmoid(draw(2, length, 6))
    if alike:
        return query, 1 + 0.01 * key, value, 0.001 * decay, 1 - 0.001 * beta
    return query, key, value, decay, beta


def borders(length: int) -> jax.Array:
    """First tokens of segments: at the first token in one row only, in the middle of chunks and at their ends."""
    starts = np.zeros((2, length), bool)
    starts[0, [i for i in (0, 1, 17, 31, 63, 64, 100) if i < length]] = True
    starts[1, length // 2] = True
    return jnp.asarray(starts)


@pytest.mark.parametrize(("length", "alike"), [(1, False), (23, False), (64, True), (150, False), (150, True)])
def test_chunks_compute_what_single_tokens_do(length, alike):
    """Results, the memory at the end, and the gradients to all that comes in."""
    inputs, starts = rule_inputs(length, alike=alike), borders(length)
    memory = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 3), dtype=np.float32))

    def total(rule, inputs, memory):
        out, after = rule(*inputs, starts, memory)
        weigh = lambda x: jnp.sum(x * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape))
        return weigh(out) + weigh(after), (out, after)

    both = [
        jax.jit(jax.value_and_grad(functools.partial(total, rule), argnums=(0, 1), has_aux=True))(inputs, memory)
        for rule in (delta_rule.chunked, delta_rule.recurrent)
    ]
    ours, expected = ((results, slopes) for (_, results), slopes in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), ours, expected)


def drawn(config: ModelConfig) -> dict:
    rng = np.random.default_rng(0)
    shapes = model.abstract_params(config)[1]
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, dtype=np.float32)), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(CONFIG)


GRAPHDEF = model.abstract_params(CONFIG)[0]
APPLY = jax.jit(lambda params, *row: model.apply(GRAPHDEF, params, *row), compiler_options=QUICK)
LENGTHS = (70, 3, 1, 40)
TOKENS = [np.random.default_rng(9).integers(0, 31, length) for length in LENGTHS]


SMALL = dataclasses.replace(CONFIG, num_layers=2, layer_kinds=(LINEAR, FULL))
"""One layer of each kind, for programs that take long to compile."""


def row(segments: list[np.ndarray], *, before: int = 0, width: int = 128) -> tuple:
    """One packed row; padding before and after it holds tokens that must not matter."""
    tokens, places, ids = np.full((1, width), 7), np.zeros((1, width), int), np.zeros((1, width), int)
    at = before
    for number, segment in enumerate(segments, 1):
        stop = at + len(segment)
        tokens[0, at:stop], places[0, at:stop], ids[0, at:stop] = segment, np.arange(len(segment)), number
        at = stop
    return tuple(jnp.asarray(x, jnp.int32) for x in (tokens, places, ids))


@pytest.mark.parametrize("before", [0, 9])
def test_examples_of_a_packed_row_are_read_as_if_alone(params, before):
    together = APPLY(params, *row(TOKENS, before=before))[0]
    at = before
    for segment in TOKENS:
        alone = APPLY(params, *row([segment]))[0]
        np.testing.assert_allclose(together[at : at + len(segment)], alone[: len(segment)], atol=3e-5)
        at += len(segment)


def test_no_gradient_passes_the_border_of_an_example():
    """Of the second example's results to what the first one's tokens, and the padding, are embedded as."""
    graphdef, params = model.abstract_params(SMALL)[0], drawn(SMALL)
    tokens, places, ids = row([TOKENS[0][:20], TOKENS[3][:9]], before=2, width=40)

    def total(noise):
        hidden = model.apply(graphdef, params, tokens, places, ids, noise=noise)
        return jnp.sum(jnp.where(ids[..., None] == 2, hidden, 0.0) ** 2)

    slopes = jnp.abs(jax.jit(jax.grad(total), compiler_options=QUICK)(jnp.zeros((1, 40, 12)))).max(axis=-1)
    np.testing.assert_array_equal(slopes > 0, ids == 2)


@pytest.mark.parametrize("chunk", [16, 40])
def test_decoding_equals_the_row_read_at_once(params, chunk):
    """Prompts of unequal length read in chunks, one of them shorter than the convolution; then single tokens."""
    sequences, ends = [TOKENS[0], TOKENS[3][:2]], np.asarray([62, 2])
    whole = [APPLY(params, *row([tokens]))[0] for tokens in (TOKENS[0], TOKENS[3])]
    step = jax.jit(functools.partial(model.apply_cached, GRAPHDEF), compiler_options=QUICK)
    cache = init_cache(CONFIG, 2, 128)
    padded = np.stack([np.pad(tokens, (0, 80 - len(tokens)), constant_values=5) for tokens in sequences])
    for start in range(0, 80, chunk):
        places = np.broadcast_to(start + np.arange(chunk), (2, chunk))
        present = (places < ends[:, None]).astype(np.int32)
        given = (jnp.asarray(x, jnp.int32) for x in (padded[:, start : start + chunk], places, present))
        hidden, cache = step(params, *given, cache)
        for i, end in enumerate(ends):
            count = max(0, min(end - start, chunk))
            np.testing.assert_allclose(hidden[i, :count], whole[i][start : start + count], atol=3e-5)
    active = jnp.asarray([[1], [0]], jnp.int32)  # the second row has stopped for a while: nothing of it may change
    for number in range(8):
        here = jnp.ones((2, 1), jnp.int32) if number >= 3 else active
        at = cache.lengths.tolist()
        new = jnp.asarray([[TOKENS[0][at[0]]], [TOKENS[3][at[1]]]], jnp.int32)
        hidden, cache = step(params, new, cache.lengths[:, None], here, cache)
        for i in range(2):
            if here[i, 0]:
                np.testing.assert_allclose(hidden[i, 0], whole[i][at[i]], atol=3e-5)


def test_a_cache_holds_keys_of_attention_and_memories_of_linear_layers_alone():
    cache = init_cache(CONFIG, 3, 64, jnp.bfloat16)
    assert cache.windows is not None and cache.memories is not None
    assert cache.keys.shape == (2, 3, 64, 2, 6) and cache.windows.shape == (2, 3, 3, 38)
    assert cache.memories.shape == (2, 3, 6, 5, 3) and cache.memories.dtype == jnp.float32


def test_the_program_does_not_grow_with_depth():
    def size(layers: int) -> int:
        config = dataclasses.replace(CONFIG, num_layers=layers, layer_kinds=(LINEAR, FULL) * (layers // 2))
        graphdef, params = model.abstract_params(config)
        return len(str(jax.make_jaxpr(lambda params: model.apply(graphdef, params, *row(TOKENS)))(params)).splitlines())

    assert size(40) == size(24)


@pytest.mark.parametrize("remat", [Remat.FULL, Remat.DOTS], ids=lambda remat: remat.value)
def test_rematerialised_layers_have_the_same_gradients(remat):
    params = drawn(SMALL)

    def slopes(config: ModelConfig):
        graphdef = model.abstract_params(config)[0]
        total = lambda params: jnp.sum(model.apply(graphdef, params, *row(TOKENS[1:3], width=8)) ** 2)
        return jax.jit(jax.grad(total), compiler_options=QUICK)(params)

    ours, expected = slopes(dataclasses.replace(SMALL, remat=remat)), slopes(SMALL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, expected)


def test_adapters_equal_the_merged_weights(params):
    settings = lora.LoraConfig(rank=2, targets=(r"layers\.(attn|delta)\.\w+\.kernel",))
    shapes = jax.eval_shape(lambda params: lora.init_lora(params, settings, 0), params)
    assert set(shapes["layers"]["delta"]) == {"qkv", "gate", "beta", "decay", "o"}
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape, dtype=np.float32)), shapes)
    ours = APPLY(lora.apply_lora(params, adapters, settings), *row(TOKENS))
    np.testing.assert_allclose(ours, APPLY(lora.merge(params, adapters, settings), *row(TOKENS)), rtol=1e-3, atol=1e-4)


def test_the_adapters_of_a_run_are_on_linear_layers_too(params):
    shapes = jax.eval_shape(lambda params: lora.init_lora(params, lora.LoraConfig(), 0), params)
    assert set(shapes["layers"]["delta"]) == {"qkv", "gate", "o"} and set(shapes["layers"]["attn"]) == set("qkvo")


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)],
    ids=["rows and heads", "tokens of a row too"],
)
def test_a_mesh_computes_what_one_device_does(mesh):
    graphdef, params = model.abstract_params(SMALL)[0], drawn(SMALL)
    places = np.tile(np.arange(10), (4, 2))
    ids = np.repeat([[1, 2]], 4, axis=0).repeat(10, axis=1)
    tokens = np.random.default_rng(3).integers(0, 31, (4, 20))
    rows = tuple(jnp.asarray(x, jnp.int32) for x in (tokens, places, ids))
    program = jax.value_and_grad(lambda params: jnp.mean(model.apply(graphdef, params, *rows) ** 2))
    expected = jax.jit(program, compiler_options=QUICK)(params)
    devices = make_mesh(mesh)
    split = sharding.shardings(devices, params, indivisible=Indivisible.REPLICATE)
    assert split["layers"]["delta"]["o"]["kernel"].spec == jax.P(None, "tensor", None, "fsdp")
    with jax.set_mesh(devices):
        ours = jax.jit(program, compiler_options=QUICK)(jax.device_put(params, split))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-3, atol=1e-5), ours, expected)


def work(config: ModelConfig, **options) -> Work:
    axes: dict[str, int] = dict.fromkeys(AXES, 1)
    given = {"axes": axes, "micro_rows": 2, "micro_batches": 1, "seq_len": 128, "indivisible": Indivisible.REPLICATE}
    given |= options
    return Work(model=config, optim=OptimConfig(), **given)


def test_memory_and_operations_count_linear_layers():
    """The backward pass of a wide memory takes room, less where heads are split; and attention is in few layers."""
    wide = dataclasses.replace(SIZES, key_heads=16, value_heads=64, key_dim=128, value_dim=128)
    config = dataclasses.replace(SMALL, delta=wide)
    axes = dict.fromkeys(AXES, 1) | {"tensor": 4}
    whole, split = (memory.estimate(work(config, axes=given)) for given in (dict.fromkeys(AXES, 1), axes))
    held = 4 * 2 * 128 * delta_rule.transient_floats(16, 64, 128, 128)
    assert whole.layer > held > split.layer > held / 4
    plain = dataclasses.replace(config, layer_kinds=(FULL,) * 2)
    linear, full = (ahead.operations(work(c)).attention for c in (config, plain))
    rule = delta_rule.operations(16, 64, 128, 128) * 2 * 128  # of one layer, for two rows of 128 tokens
    assert linear == pytest.approx(full / 2 + 3 * rule)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"delta": None}, "layer_kinds has linear layers; set delta"),
        (
            {
                "rope": RopeConfig(
                    scaling=RopeScaling.LONGROPE, original_max_len=8, short_factor=(1.0,) * 3, long_factor=(2.0,) * 3
                )
            },
            "whose memory cannot be computed again as longrope needs",
        ),
    ],
)
def test_an_impossible_model_says_why(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"value_heads": 5}, "5 value heads; their number must be a multiple of its 2 key heads"),
        ({"key_dim": 0}, "linear attention has key_dim = 0: not a model"),
        ({"conv_width": 1}, r"conv_width is 1; it must be in \[2, 64\]"),
    ],
)
def test_impossible_sizes_say_why(sizes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SIZES, **sizes)


def test_experts_stand_beside_linear_attention(params):
    """Three kinds of layers, each stacked over those that have it."""
    moe = MoeConfig(num_experts=3, experts_per_token=2, d_ff=7, shared_d_ff=5)
    kinds = (LINEAR, LINEAR, FULL) * 2
    config = dataclasses.replace(CONFIG, num_layers=6, layer_kinds=kinds, moe=moe, dense_layers=(1, 4))
    layers = model.abstract_params(config)[1]["layers"]
    assert layers["delta"]["qkv"]["kernel"].shape[0] == 4 and layers["attn"]["q"]["kernel"].shape == (2, 12, 4, 12)
    assert layers["moe"]["gate"]["kernel"].shape[0] == 4 and layers["mlp"]["up"]["kernel"].shape[0] == 2
    assert layers["attn_norm"]["scale"].shape[0] == 6
