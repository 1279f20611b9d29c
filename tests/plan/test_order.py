import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxtune.plan.order import (
    Interleaving,
    MixedOrder,
    SequentialOrder,
    keyed,
    permutation,
    permute,
    splitmix64,
    stream_key,
)

GOLDEN_PERMUTATION = [4, 9, 1, 7, 3, 6, 2, 0, 8, 5]
SUPERGLUE_COUNTS = np.array([2551, 376, 497, 4369, 8423, 1271, 1919, 594])


def interleaving(counts):
    counts = np.asarray(counts)
    return Interleaving(counts, np.array([stream_key(0, "test", str(i)) for i in range(len(counts))], np.uint64))


def largest_stray(task, counts, tasks):
    """Most that any prefix holds more or less of a task than its share of the prefix."""
    k = np.arange(1, len(task) + 1)
    return max(np.abs(np.cumsum(task == i) - counts[i] * k / len(task)).max() for i in tasks)


def test_splitmix64_is_the_published_generator():
    # First outputs of the reference C program for the seed 1234567.
    state = np.array([1234567], np.uint64)
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)
    outputs = [int(splitmix64(state + np.uint64(i) * golden)[0]) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 1000, 4095, 4096, 4097, 65537, 262145, 1048577])
def test_permutations_are_bijections_at_every_size(size):
    assert (np.sort(permutation(3, "qa", 1, size)) == np.arange(size)).all()


@hypothesis.given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutations_are_bijections_under_every_key(size, key):
    image = permute(np.full(size, key, np.uint64), np.full(size, size), np.arange(size))
    assert (np.sort(image) == np.arange(size)).all()


def test_permutations_do_not_move_between_versions():
    assert permutation(0, "qa", 0, 10).tolist() == GOLDEN_PERMUTATION


def test_permutations_differ_by_seed_name_and_epoch():
    base = permutation(0, "qa", 0, 1000)
    for other in (permutation(1, "qa", 0, 1000), permutation(0, "qb", 0, 1000), permutation(0, "qa", 1, 1000)):
        assert (base == other).sum() < 12  # about 1 fixed point is expected of strangers


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_permutations_are_uniform(size):
    trials = 12_000
    keys = keyed(np.full(trials * size, stream_key(5, "x", ""), np.uint64), np.repeat(np.arange(trials), size))
    images = permute(keys, np.full(trials * size, size), np.tile(np.arange(size), trials)).reshape(trials, size)
    seen = {order: 0 for order in itertools.permutations(range(size))}
    for order in images.tolist():
        seen[tuple(order)] += 1
    expected = trials / len(seen)
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    freedom = len(seen) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_large_permutations_show_no_serial_correlation():
    size = 50_000
    image = permutation(7, "qa", 0, size).astype(float)
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) < 4 / math.sqrt(size)
    assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 4 / math.sqrt(size)


@pytest.mark.parametrize(
    "counts",
    [
        SUPERGLUE_COUNTS,
        [1],
        [5, 0, 3],
        [1] * 40,
        [500] * 1836,
        [30_000] + [11] * 1835,
        [2**k for k in range(15)],
        [10_000, 10_000],
    ],
)
def test_every_prefix_holds_each_share_within_a_few_examples_and_the_whole_exactly(counts):
    counts = np.array(counts)
    task, use = interleaving(counts).positions(0, int(counts.sum()))
    assert np.bincount(task, minlength=len(counts)).tolist() == counts.tolist()
    checked = {*np.argsort(-counts, kind="stable")[:8].tolist(), *range(0, len(counts), max(1, len(counts) // 8))}
    assert largest_stray(task, counts, checked) < 4
    for i in checked:
        assert use[task == i].tolist() == list(range(counts[i]))


def test_independent_draws_stray_far_more():
    counts = SUPERGLUE_COUNTS
    drawn = np.random.default_rng(0).permutation(np.repeat(np.arange(8), counts))
    assert largest_stray(drawn, counts, range(8)) > 20


@hypothesis.given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60).filter(any),
    st.data(),
)
def test_any_stretch_equals_the_same_stretch_of_the_whole(counts, data):
    order = interleaving(counts)
    start = data.draw(st.integers(0, order.total - 1))
    stop = data.draw(st.integers(start + 1, order.total))
    whole, part = order.positions(0, order.total), order.positions(start, stop)
    assert (part[0] == whole[0][start:stop]).all()
    assert (part[1] == whole[1][start:stop]).all()


def test_the_order_is_not_periodic():
    # Two equal tasks, alternating for ever, would put one task on each of two hosts.
    task, _ = interleaving([20_000, 20_000]).positions(0, 40_000)
    even_places = (task[::2] == 0).mean()
    assert abs(even_places - 0.5) < 0.02
    centred = task - 0.5
    for lag in range(8, 4200, 97):
        assert abs((centred[:-lag] * centred[lag:]).mean() / 0.25) < 0.05


def mixed(names, counts, sizes, *, usable=None, templates=None, seed=0, permuted_subset=True):
    n = len(names)
    return MixedOrder(
        tuple(names),
        counts=np.array(counts),
        sizes=np.array(sizes),
        usable=np.array(usable or sizes),
        templates=np.array(templates or [1] * n),
        seed=seed,
        permuted_subset=permuted_subset,
    )


def test_each_epoch_of_a_task_is_its_permutation():
    order = mixed(["qa", "math"], [250, 40], [100, 50])
    stretch = order.stretch(0, order.total)
    qa = stretch.example[stretch.task == 0]
    for epoch in range(2):
        assert qa[100 * epoch : 100 * (epoch + 1)].tolist() == permutation(0, "qa", epoch, 100).tolist()
    assert stretch.epoch[stretch.task == 0].tolist() == [0] * 100 + [1] * 100 + [2] * 50
    assert stretch.example[stretch.task == 1].tolist() == permutation(0, "math", 0, 50)[:40].tolist()


def test_adding_a_task_leaves_the_order_within_the_others():
    small, large = (
        mixed(["qa"], [250], [100], templates=[3]),
        mixed(["code", "qa"], [70, 250], [9, 100], templates=[2, 3]),
    )
    alone, beside = small.stretch(0, 250), large.stretch(0, 320)
    chosen = beside.task == 1
    for field in ("use", "epoch", "example", "template"):
        assert (getattr(alone, field) == getattr(beside, field)[chosen]).all()


def test_an_example_meets_every_template_before_it_meets_one_twice():
    order = mixed(["qa", "math"], [30 * 12, 100], [30, 100], templates=[5, 1])
    stretch = order.stretch(0, order.total)
    firsts = set()
    for example in range(30):
        met = stretch.template[(stretch.task == 0) & (stretch.example == example)].tolist()
        assert len(met) == 12
        assert sorted(met[:5]) == sorted(met[5:10]) == [0, 1, 2, 3, 4]
        firsts.add(tuple(met[:5]))
    assert len(firsts) > 10
    assert not stretch.template[stretch.task == 1].any()


def test_max_examples_keeps_one_subset_over_all_epochs():
    head = mixed(["qa"], [90], [100], usable=[30], permuted_subset=False).stretch(0, 90)
    assert set(head.example.tolist()) == set(range(30))
    seeded = mixed(["qa"], [90], [100], usable=[30]).stretch(0, 90)
    kept = set(seeded.example.tolist())
    assert len(kept) == 30
    assert max(kept) > 30
    assert sorted(seeded.example[:30]) == sorted(seeded.example[30:60]) == sorted(kept)


def test_the_sequential_order_visits_every_example_once_in_file_order():
    order = SequentialOrder(np.array([3, 0, 2]))
    stretch = order.stretch(0, order.total)
    assert stretch.task.tolist() == [0, 0, 0, 2, 2]
    assert stretch.example.tolist() == [0, 1, 2, 0, 1]
    assert order.stretch(2, 4).task.tolist() == [0, 2]
