"""Seconds that a run spends beside its steps."""

import pytest

from jaxtune.train.decisions import Rules
from jaxtune.train.forecast import Forecast, times


@pytest.mark.parametrize("every", [0, 1, 3, 4, 10, 99])
@pytest.mark.parametrize("total", [1, 7, 12])
def test_times_counts_what_the_rules_will_ask_for(every, total):
    rules = Rules(total=total, validate_every=every, save_every=1)
    for settled in range(total + 1):
        assert times(every, settled, total) == sum(rules.validates(done) for done in range(settled + 1, total + 1))


def test_a_forecast_adds_validations_checkpoints_and_the_end():
    forecast = Forecast(validation=5.0, saving=1.0, answers=20.0)
    rules = Rules(total=160, validate_every=40, save_every=100)
    assert forecast.seconds(rules, 0) == 4 * 5.0 + 2 * 1.0 + (5.0 + 20.0)
    assert forecast.seconds(rules, 120) == 5.0 + 1.0 + 25.0
    assert forecast.seconds(rules, 160) == 0.0
    assert forecast.seconds(Rules(total=160, validate_every=None, save_every=100), 0) == 2.0 + 25.0


def test_what_is_timed_is_the_last_measured():
    forecast = Forecast()
    assert forecast.timed("answers", lambda: "done") == "done"
    assert forecast.answers > 0 and forecast.validation == 0
