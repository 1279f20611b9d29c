"""The statistics against rliable and statsmodels."""

import numpy as np
import pytest

from jaxtune.science.aggregates import interquartile_mean, probability_of_improvement
from jaxtune.science.contrasts import holm
from jaxtune.science.crossed import crossed

pytestmark = pytest.mark.parity


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(9) ** 3
        assert holm(p_values.tolist()) == pytest.approx(multitest.multipletests(p_values, method="holm")[1].tolist())


def test_aggregates_are_those_of_rliable():
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, (5, 7)) / 9, rng.integers(0, 9, (6, 7)) / 9  # runs x tasks
    assert interquartile_mean(x.T) == pytest.approx(metrics.aggregate_iqm(x))
    assert probability_of_improvement(x.T, y.T) == pytest.approx(metrics.probability_of_improvement(x, y))


def test_the_crossed_variance_is_that_of_a_mixed_model():
    api = pytest.importorskip("statsmodels.api")
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(2)
    seeds, items = 12, 30
    table = rng.standard_normal((seeds, 1)) + 0.7 * rng.standard_normal((1, items)) + rng.standard_normal((12, 30))
    rows = pandas.DataFrame(
        {"y": table.reshape(-1), "seed": np.repeat(range(seeds), items), "item": np.tile(range(items), seeds), "one": 1}
    )
    fit = api.MixedLM.from_formula(
        "y ~ 1", groups="one", re_formula="0", vc_formula={"seed": "0 + C(seed)", "item": "0 + C(item)"}, data=rows
    ).fit(reml=True)
    found = crossed(table)
    assert found.mean == pytest.approx(float(fit.params["Intercept"]), abs=1e-6)
    assert found.half_new_items == pytest.approx(2.1 * float(fit.bse["Intercept"]), rel=0.1)
