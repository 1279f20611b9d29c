import numpy as np
import pytest

from jaxtune.science.crossed import cluster_means, crossed


def simulate(rng, seeds=6, items=40, sd=(0.5, 0.8, 1.0)):
    seed, item, rest = sd
    return (
        seed * rng.standard_normal((seeds, 1))
        + item * rng.standard_normal((1, items))
        + rest * rng.standard_normal((seeds, items))
    )


def test_both_intervals_hold_the_truth_of_a_crossed_simulation():
    rng = np.random.default_rng(0)
    new, same = [], []
    for _ in range(1500):
        seed, item, rest = (rng.standard_normal(shape) for shape in ((6, 1), (1, 40), (6, 40)))
        table = 0.5 * seed + 0.8 * item + rest
        found = crossed(table)
        new.append(abs(found.mean) <= found.half_new_items)
        same.append(abs(found.mean - 0.8 * item.mean()) <= found.half_new_seeds)
    assert 0.93 <= np.mean(new) <= 0.975
    assert 0.93 <= np.mean(same) <= 0.97


def test_the_variance_is_the_exact_one_on_average():
    rng = np.random.default_rng(1)
    exact = 0.25 / 200 + 0.64 / 300 + 1 / (200 * 300)
    table = simulate(rng, seeds=200, items=300)
    assert (crossed(table).half_new_items / 1.96) ** 2 == pytest.approx(exact, rel=0.2)


def test_items_of_one_source_count_once():
    rng = np.random.default_rng(2)
    sources = simulate(rng, items=10)
    copies = np.repeat(sources, 5, axis=1)
    grouped = crossed(copies, [index // 5 for index in range(50)])
    assert grouped.clusters == 10
    assert grouped.half_new_items == pytest.approx(crossed(sources).half_new_items)
    assert crossed(copies).half_new_items < grouped.half_new_items


def test_one_seed_has_no_interval():
    assert np.isnan(crossed(np.ones((1, 5))).half_new_items)


def test_groups_are_one_per_item():
    with pytest.raises(ValueError, match="3 groups for 4 items"):
        cluster_means(np.ones((2, 4)), ["a", "b", "c"])
