"""A small train state for tests of checkpoints, and equality of states to the bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


OPTIMIZER = optax.adamw(1e-3)


def make_state(seed: int = 0) -> State:
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    params = {"embed": {"embedding": draw(64, 32)}, "norm": {"scale": draw(32).astype(jnp.bfloat16)}}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    opt_state = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)[1]
    return State(step=jnp.asarray(seed, jnp.int32), params=params, opt_state=opt_state)


def same(left, right) -> bool:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    equal = lambda a, b: a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
    return all(equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
