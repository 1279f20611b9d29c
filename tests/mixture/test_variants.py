import math

import pytest

from jaxtune.errors import UserError
from jaxtune.mixture import MixtureConfig, OnCap, Strategy, allocate, alternatives, parse_alternatives

SIZES = {"qa": 1000, "code": 200, "math": 50}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature=1,2,inf", ("temperature", ["1", "2", "inf"])),
        ("mixture.max-repeats= 1, 4", ("max_repeats", ["1", "4"])),
    ],
)
def test_alternatives_are_read_from_one_option_and_its_values(text, expected):
    assert parse_alternatives(text) == expected


@pytest.mark.parametrize("text", ["temperature", "temperature=", "temprature=1,2", "weights=1,2"])
def test_an_option_that_cannot_be_compared_is_refused_with_those_that_can(text):
    with pytest.raises(UserError, match="--compare takes OPTION=V1,V2,.*temperature"):
        parse_alternatives(text)


def test_each_alternative_is_the_mixture_with_that_value_and_the_same_budget():
    found = alternatives(SIZES, MixtureConfig(max_repeats=4), 500, "temperature", ["1", "2", "inf"])
    for one, temperature in zip(found, (1.0, 2.0, math.inf), strict=True):
        expected = allocate(SIZES, MixtureConfig(temperature=temperature, max_repeats=4), 500)
        assert one.allocation is not None and one.allocation.counts == expected.counts
        assert sum(one.allocation.counts.values()) == 500


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("strategy", "equal", Strategy.EQUAL),
        ("on_cap", "shrink", OnCap.SHRINK),
        ("rate_max", "none", None),
        ("rate_max", "300", 300.0),
        ("max_examples", "100", 100),
        ("allow_underfill", "true", True),
    ],
)
def test_values_become_what_the_option_takes(option, value, expected):
    [one] = alternatives(SIZES, MixtureConfig(), 300, option, [value])
    assert one.allocation is not None and getattr(one.allocation.config, option) == expected


@pytest.mark.parametrize(("option", "value"), [("temperature", "warm"), ("strategy", "fair"), ("allow_underfill", "1")])
def test_a_value_of_the_wrong_kind_is_refused(option, value):
    with pytest.raises(UserError, match=f"{option} .*{value}"):
        alternatives(SIZES, MixtureConfig(), 300, option, [value])
