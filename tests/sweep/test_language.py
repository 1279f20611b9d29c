import json
import math
import os
import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.errors import UserError
from jaxtune.sweep.language import (
    Setting,
    crossed,
    mixture_settings,
    parse_axes,
    parse_space,
    random_settings,
    read_settings,
    zipped,
)


def test_values_of_several_words_are_split_for_the_command_line():
    axes = parse_axes(["mixture.weights=qa 1 math 1,qa 1", "held-out='long name' b,c"])
    settings = crossed(axes)
    assert len(settings) == 4
    assert settings[0].arguments() == ["--mixture.weights", "qa", "1", "math", "1", "--held-out", "long name", "b"]
    assert settings[3].arguments() == ["--mixture.weights", "qa", "1", "--held-out", "c"]


def test_crossing_takes_every_combination_and_zipping_pairs_them():
    axes = parse_axes(["a=1,2,3", "b=x,y,z"])
    assert len(crossed(axes)) == 9
    assert [tuple(one.overrides.values()) for one in zipped(axes)] == [("1", "x"), ("2", "y"), ("3", "z")]
    with pytest.raises(UserError, match="a 3, b 2"):
        zipped(parse_axes(["a=1,2,3", "b=x,y"]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "takes OPTION=V1"),
        (["=1"], "takes OPTION=V1"),
        (["a=1,,2"], "empty value"),
        (["a=1", "a=2"], "twice"),
        (["a=1,1"], "lists a value twice"),
        (["seed=1,2"], "--seeds"),
        (["a='open"], "cannot be read as words"),
        (["a=1 --b 2"], "none of them an option"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(texts, message):
    with pytest.raises(UserError, match=message):
        parse_axes(texts)


def test_a_file_lists_any_settings(tmp_path):
    path = tmp_path / "arms.jsonl"
    lines = [{"overrides": {"optim.peak-lr": 0.001}, "tag": "slow"}, {"overrides": {"mixture.weights": "qa 1"}}]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second = read_settings(path)
    assert first == Setting(overrides={"optim.peak-lr": "0.001"}, tag="slow") and first.name == "slow"
    assert second.arguments() == ["--mixture.weights", "qa", "1"] and second.name == "weights=qa+1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no setting"),
        ("{", "arms.jsonl:1"),
        ("[]", "expected"),
        ('{"overrides": {}, "tags": "a"}', "expected"),
        ('{"overrides": {"a": [1]}}', "string or a number"),
        ('{"overrides": {"a": true}}', "string or a number"),
        ('{"overrides": {"a": ""}}', "option: value"),
        ('{"overrides": {"seed": 1}}', "--seeds"),
        ('{"overrides": {}, "tag": "../up"}', "a tag is letters"),
        ('{"overrides": {}, "tag": "a"}\n{"overrides": {"b": 1}, "tag": "a"}', "one tag"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_line(tmp_path, content, message):
    path = tmp_path / "arms.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_settings(path)
    with pytest.raises(UserError, match="--arms cannot be read: .*no such file"):
        read_settings(tmp_path / "missing.jsonl")


def test_a_pipe_of_settings_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="--arms cannot be read: .*no regular file"):
        read_settings(tmp_path / "pipe")


def test_random_settings_fill_their_spaces_evenly():
    texts = ["optim.peak-lr=log:1e-4:1e-2", "mixture.temperature=inv:1:inf", "batch.rows=int:1:4", "x=choice:a:b"]
    settings = random_settings([parse_space(text) for text in texts], 64, seed=3)
    rates = [math.log10(float(one.overrides["optim.peak-lr"])) for one in settings]
    inverse = [1 / float(one.overrides["mixture.temperature"]) for one in settings]
    assert np.histogram(rates, 8, (-4, -2))[0].tolist() == [8] * 8
    assert np.histogram(inverse, 4, (0, 1))[0].tolist() == [16] * 4
    for option, values in (("batch.rows", "1234"), ("x", "ab")):
        assert [[one.overrides[option] for one in settings].count(v) for v in values] == [64 // len(values)] * len(
            values
        )
    assert settings == random_settings([parse_space(text) for text in texts], 64, seed=3)
    assert settings != random_settings([parse_space(text) for text in texts], 64, seed=4)
    assert settings[:10] == random_settings([parse_space(text) for text in texts], 10, seed=3)


@given(
    st.floats(1e-6, 1e3),
    st.floats(1.01, 1e4),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["lin", "log", "inv"]),
)
def test_values_stay_inside_their_range(low, ratio, u, law):
    space = parse_space(f"a={law}:{low!r}:{low * ratio!r}")
    assert low * (1 - 1e-3) <= float(space.value(u)) <= low * ratio * (1 + 1e-3)


@pytest.mark.parametrize(
    "text",
    ["a", "a=log:1", "a=log:0:1", "a=log:2:1", "a=lin:0:inf", "a=inv:-1:2", "a=int:0.5:2", "a=log:x:2", "a=cube:1:2",
     "a=choice:1", "seed=int:0:3", "a=lin:nan:1", "a=int:0:inf"],
)  # fmt: skip
def test_a_space_that_cannot_be_used_is_refused(text):
    with pytest.raises(UserError, match="--space|--seeds"):
        parse_space(text)


def test_random_needs_a_space_for_every_option_once():
    space = parse_space("a=lin:0:1")
    for spaces, count in (([], 3), ([space], 0), ([space, space], 3)):
        with pytest.raises(UserError, match="--random|--space"):
            random_settings(spaces, count)


def test_mixtures_lie_around_the_natural_shares():
    sizes = {"qa": 3000, "math": 1000}
    for concentration, spread in ((1.0, 0.25), (50.0, 0.06)):
        settings = mixture_settings(sizes, 400, concentration=concentration)
        words = [shlex.split(one.overrides["mixture.weights"]) for one in settings]
        weights = [dict(zip(one[::2], map(float, one[1::2]), strict=True)) for one in words]
        shares = np.array([one["qa"] for one in weights])
        assert all(sum(one.values()) == pytest.approx(1, abs=1e-3) for one in weights)
        assert shares.mean() == pytest.approx(0.75, abs=0.04) and shares.std() == pytest.approx(spread, rel=0.35)
    for bad in ({"sizes": {"qa": 1}, "count": 2}, {"sizes": sizes, "count": 0}):
        with pytest.raises(UserError, match="--mixtures"):
            mixture_settings(**bad)
