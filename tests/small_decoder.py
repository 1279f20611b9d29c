"""A small random model and prompts of many lengths, for tests of generation and of likelihoods."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.evaluate.decoding import Batching, SamplingConfig, generate
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params

CONFIG = ModelConfig(
    vocab_size=61, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=24, max_seq_len=120
)
NEVER = (CONFIG.vocab_size + 1,)
"""Stop tokens that no answer has."""
LENGTHS = (5, 1, 33, 64, 32, 70, 31)
"""Of the prompts."""


def random_model() -> Any:
    """Graph definition and parameters large enough that answers vary."""
    graphdef, shapes = abstract_params(CONFIG)
    draws = np.random.default_rng(0)
    is_norm = lambda path: path[-1].key == "scale"
    draw = lambda path, leaf: jnp.asarray(0.4 * draws.standard_normal(leaf.shape) + is_norm(path), leaf.dtype)
    return graphdef, jax.tree_util.tree_map_with_path(draw, shapes)


def random_prompts() -> list[list[int]]:
    """Token ids, of the lengths above."""
    draws = np.random.default_rng(0)
    return [draws.integers(0, CONFIG.vocab_size, length).tolist() for length in LENGTHS]


def answer(model, prompts, sampling: SamplingConfig, stop_ids=NEVER, **options) -> list[list[int]]:
    """Answers in one call of `generate`; `options` are those of `Batching`."""
    batching = Batching(**options)
    return generate(model[0], model[1], CONFIG, prompts, stop_ids=stop_ids, sampling=sampling, batching=batching)
