"""A mixture of experts over a mesh: each device sorts its own tokens; loss and gradients are one device's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.model import transformer as model
from jaxtune.model.attention.core import Backend
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, MeshConfig, make_mesh

CONFIG = ModelConfig(
    family="qwen3_moe", vocab_size=40, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=8,
    max_seq_len=32, tie_embeddings=False, moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=8),
)  # fmt: skip
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOKENS = np.random.default_rng(0).integers(0, 40, (4, 16)).astype(np.int32)


def program(config: ModelConfig):
    """Sum of weighted squares of the last hidden states, with gradients."""
    graphdef = model.abstract_params(config)[0]

    def total(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(16), tokens.shape)
        hidden = model.apply(graphdef, params, tokens, positions, jnp.ones_like(tokens))
        return jnp.sum(hidden**2 * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape)) / hidden.size

    return jax.value_and_grad(total)


SINKS = dataclasses.replace(
    CONFIG, family="gpt_oss", attn_sinks=True,
    moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=8, bias=True, clamped=ClampedGate(limit=0.1)),
)  # fmt: skip


def on_mesh(config: ModelConfig, params, mesh: MeshConfig):
    devices = make_mesh(mesh)
    places = sharding.shardings(devices, params, indivisible=mesh.indivisible)
    with jax.set_mesh(devices):
        return jax.jit(program(config), compiler_options=QUICK)(jax.device_put(params, places), TOKENS)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)], ids=str
)
def test_a_mesh_computes_sinks_and_biases_of_experts_as_one_device_does(mesh):
    """By blocks where rows are whole; where their tokens are split, by the ring."""
    drawn = model.init_params(SINKS, 0)[1]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), drawn)
    by_blocks = dataclasses.replace(SINKS, attention=Backend.BLOCKWISE)
    expected = jax.jit(program(by_blocks), compiler_options=QUICK)(params, TOKENS)
    attention = Backend.RING if mesh.sequence > 1 else Backend.BLOCKWISE
    ours = on_mesh(dataclasses.replace(SINKS, attention=attention), params, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, atol=1e-5), ours, expected)
    layers = expected[1]["layers"]
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in jax.tree.leaves((layers["moe"], layers["attn"])))


@pytest.mark.parametrize(
    ("mesh", "hidden"),
    [
        (MeshConfig(data=2, fsdp=2, tensor=2), 8),
        (MeshConfig(data=1, fsdp=2, tensor=2, sequence=2), 8),
        (MeshConfig(data=1, fsdp=4, tensor=2, indivisible=Indivisible.REPLICATE), 7),
        (MeshConfig(data=8, indivisible=Indivisible.REPLICATE), 8),  # 4 rows do not divide over 8
    ],
    ids=str,
)
def test_a_mesh_computes_what_one_device_computes(mesh, hidden):
    assert CONFIG.moe is not None
    config = dataclasses.replace(CONFIG, moe=dataclasses.replace(CONFIG.moe, d_ff=hidden))
    params = model.init_params(config, 0)[1]
    expected = jax.jit(program(config), compiler_options=QUICK)(params, TOKENS)
    ours = on_mesh(config, params, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, atol=1e-5), ours, expected)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]["layers"]["moe"])) > 1e-3
