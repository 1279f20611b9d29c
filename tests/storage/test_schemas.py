"""Shapes of JSON documents: what fits, and how the first thing that does not is told."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import pytest

from jaxtune.storage.documents import UnreadableDocument
from jaxtune.storage.schemas import Real, check_shape


class Inner(TypedDict):
    step: int
    name: NotRequired[str]


class Outer(TypedDict, total=False):
    runs: list[Inner]
    losses: Mapping[str, float]
    either: str | int | None


@pytest.mark.parametrize(
    "value, shape",
    [
        ({"runs": [{"step": 1, "name": "a", "more": []}], "losses": {"a": 1, "b": None, "c": "inf"}}, Outer),
        ({}, Outer),
        ({"either": None}, Outer),
        ({"either": "a"}, Outer),
        (2**63 - 1, int),
        (1.5, Real),
        ([[1], []], list[list[int]]),
        ({"x": object()}, Mapping[str, Any]),
    ],
)
def test_what_fits_passes(value, shape):
    check_shape(value, shape, "a.json")


@pytest.mark.parametrize(
    "value, shape, said",
    [
        ([], Outer, "a.json: the whole is a list; an object is needed"),
        ({"runs": {}}, Outer, "`runs` is an object; a list is needed"),
        ({"runs": [{"step": 1}, {}]}, Outer, r"`runs\[1\]` is an object; an object with the key 'step' is needed"),
        ({"runs": [{"step": True}]}, Outer, r"`runs\[0\].step` is true; a whole number"),
        ({"runs": [{"step": 1, "name": None}]}, Outer, r"`runs\[0\].name` is null; a text"),
        ({"losses": {"a": "nan"}}, Outer, "`losses.a` is 'nan'; a number"),
        ({"losses": {"a": 10**400}}, Outer, r"`losses.a` is 10+\.\.\.; a number"),
        ({"either": 1.5}, Outer, "`either` is 1.5; a text or a whole number of 64 bits or null"),
        (None, Real, "the whole is null; a number"),
        ("inf", Real, "the whole is 'inf'; a number"),
        (2**63, int, "whole number of 64 bits"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(value, shape, said):
    with pytest.raises(UnreadableDocument, match=said):
        check_shape(value, shape, "a.json")
