"""Trials on one axis: who is computed, in how many rounds, and that the others are not touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.step import trials


@pytest.mark.parametrize("compute", [trials.each, trials.at_once])
@pytest.mark.parametrize("rounds", [2, 4])
def test_trials_that_are_not_active_are_not_touched(compute, rounds):
    given = jnp.array([1.0, jnp.nan, 3.0, jnp.nan])
    step = jax.jit(functools.partial(compute, lambda state, own: (state + own, own + 1.0)))
    state, results = step(jnp.zeros(4), given, np.array([True, False, False, True]), np.array(rounds, np.int32))
    np.testing.assert_array_equal(state, [1.0, 0.0, 0.0, np.nan])
    np.testing.assert_array_equal(results, [2.0, 0.0, 0.0, np.nan])


def test_all_devices_go_through_as_many_rounds_as_the_busiest():
    mesh = make_mesh(MeshConfig(trial=2, data=1, devices=2))
    active, rounds = trials.turns([0, 1, 2], 6, mesh)
    assert active.tolist() == [True, True, True, False, False, False] and rounds == 3
    active, rounds = trials.turns([1, 4], 6, mesh)
    assert active.sum() == 2 and rounds == 1
