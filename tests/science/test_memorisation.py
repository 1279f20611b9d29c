"""Memorisation estimators against curves that were planted."""

import math

import numpy as np
import pytest

from jaxtune.science.memorisation import exposure, memorised


def test_a_planted_curve_is_found_and_the_control_is_zero():
    rng = np.random.default_rng(0)
    seeds = rng.normal(2.0, 0.2, 5)  # shared by all bins of a seed
    curve = {0: 0.0, 1: 0.0, 4: 0.3, 16: 0.9}
    found = memorised({r: (seeds - gain + rng.normal(0, 0.01, 5)).tolist() for r, gain in curve.items()})
    assert list(found) == [1, 4, 16]
    for repeats, one in found.items():
        assert one.mean == pytest.approx(curve[repeats], abs=0.03) and one.n == 5
        assert one.clear == (repeats > 1)
    with pytest.raises(ValueError, match="bin 0"):
        memorised({1: [1.0]})


def test_equal_bins_are_exactly_zero():
    found = memorised({0: [1.5, 1.25, 1.75], 2: [1.5, 1.25, 1.75]})
    assert found[2].mean == 0 and found[2].p == 1


def test_exposure_is_the_rank_in_bits():
    nll = np.array([[0.1, 2.0, 3.0, 4.0], [5.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert exposure(nll, np.array([0, 0, 0])) == pytest.approx([2.0, 0.0, 2 - math.log2(2.5)])


@pytest.mark.parametrize("answers", [64, 1024])
def test_a_model_that_knows_nothing_has_an_exposure_of_log2_e(answers):
    rng = np.random.default_rng(1)
    found = exposure(rng.normal(size=(4000, answers)), rng.integers(0, answers, 4000))
    assert found.mean() == pytest.approx(math.log2(math.e), abs=0.15)
