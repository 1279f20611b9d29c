"""Cosines of gradients whose true angle was planted."""

import numpy as np
import pytest

from jaxtune.science.conflict import cosine, rank_agreement, sketch, squared_norm


def gram_of(truth, noise: float, batches: int = 16, seed: int = 0):
    """Inner products of noisy gradients [task, batch]; noise has `noise` times the length of a unit gradient."""
    rng = np.random.default_rng(seed)
    tasks, size = truth.shape
    found = truth[:, None, :] + rng.normal(0, noise / np.sqrt(size), (tasks, batches, size))
    return np.einsum("ambd,cnbd->amcn", found[:, :, None], found[:, :, None])


def unit(*rows):
    found = np.zeros((len(rows), 400))
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_duplicate_is_one_its_negative_minus_one_and_disjoint_tasks_are_zero():
    gram = gram_of(unit([1, 2], [1, 2], [-1, -2], [0, 0, 3]), noise=0.5)
    assert cosine(gram, 0, 1).value == pytest.approx(1, abs=0.02)
    assert cosine(gram, 0, 2).value == pytest.approx(-1, abs=0.02)
    assert cosine(gram, 0, 3).value == pytest.approx(0, abs=0.05)
    same = np.tile(gram[:1, :, :1], (2, 1, 2, 1))
    assert cosine(same, 0, 1).value == pytest.approx(1, abs=1e-9)


def test_the_split_half_form_is_unbiased_where_the_raw_cosine_shows_a_third():
    truth = unit([1, 0], [0.6, 0.8])
    values, raw, covered = [], [], []
    for seed in range(200):
        found = cosine(gram_of(truth, noise=np.sqrt(32), batches=16, seed=seed), 0, 1)  # signal 1/2 of the noise
        values.append(found.value)
        raw.append(found.raw)
        covered.append(found.low <= 0.6 <= found.high)
    assert np.nanmean(values) == pytest.approx(0.6, abs=0.05)
    assert np.mean(raw) == pytest.approx(0.6 / 3, abs=0.05)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_a_task_without_a_gradient_is_unreliable():
    truth = np.vstack([unit([1.0]), np.zeros((1, 400))])
    found = [cosine(gram_of(truth, noise=1.0, seed=seed), 0, 1).reliable for seed in range(20)]
    assert sum(found) <= 2
    assert squared_norm(gram_of(truth, noise=1.0), 0)[0] == pytest.approx(1, abs=0.2)


def test_sketches_keep_inner_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000))
    found = [float(sketch(a, 4096, seed=seed) @ sketch(b, 4096, seed=seed)) for seed in range(30)]
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    assert np.mean(found) == pytest.approx(a @ b, abs=3 * scale / np.sqrt(4096 * 30))
    assert np.std(found) < 2 * scale / np.sqrt(4096)


def test_rank_agreement_is_spearmans():
    first = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    assert rank_agreement(first, first**3) == pytest.approx(1)
    assert rank_agreement(first, -first) == pytest.approx(-1)
    assert np.isnan(rank_agreement(first[:2], first[:2]))
