"""Functions of a config that are called at every validation."""

import math

import pytest

from jaxtune.errors import UserError
from jaxtune.evaluate.hooks import call_hook, check_hook
from jaxtune.storage import userfiles


def test_numbers_by_name_come_back_and_nothing_is_nothing():
    found = call_hook(lambda step, params, metrics: {"twice": 2 * metrics["loss"], "at": step}, 3, None, {"loss": 1.5})
    assert found == {"twice": 3.0, "at": 3.0}
    assert call_hook(lambda step, params, metrics: None, 0, None, {}) == {}
    assert math.isnan(call_hook(lambda *given: {"ratio": math.inf}, 0, None, {})["ratio"])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("norms", "it must be a function"),
        (lambda step: None, "cannot be called as <lambda>.step, params, metrics."),
        (lambda step, params, metrics, more: None, "missing a required argument: 'more'"),
    ],
)
def test_what_cannot_be_called_is_refused_when_the_config_is_made(hook, message):
    with pytest.raises(UserError, match=message):
        check_hook(hook)


@pytest.mark.parametrize("returned", [3.0, {"a": "high"}, {"a": None}])
def test_what_is_no_number_is_said(returned):
    with pytest.raises(UserError, match="on_validation returned .* at step 7; it must"):
        call_hook(lambda step, params, metrics: returned, 7, None, {})


def test_an_error_names_the_line_of_the_users_file(tmp_path):
    (tmp_path / "mine.py").write_text("def hook(step, params, metrics):\n    return {'a': metrics['los']}\n")
    hook = userfiles.load_module(tmp_path / "mine.py").hook
    with pytest.raises(UserError) as caught:
        call_hook(hook, 40, None, {"loss": 1.0})
    assert "on_validation at step 40" in str(caught.value) and "KeyError: 'los'" in str(caught.value)
    assert "mine.py, line 2, in hook: return {'a': metrics['los']}" in str(caught.value)
