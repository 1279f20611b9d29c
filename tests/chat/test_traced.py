"""Traced strings: what they spell is what plain strings spell, and no operation turns user text into template text."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.chat.traced import OTHER, Traced, in_block, join, pieces_of, source_of, trace, trace_all

SEPARATORS = st.sampled_from([" ", "<", "ab", "\n", "x"])
TEXTS = st.text("ab <>\nxé", max_size=8)

OPERATIONS = {
    "upper": lambda s: s.upper(),
    "strip": lambda s: s.strip(),
    "strip_chars": lambda s: s.strip("a<"),
    "lstrip": lambda s: s.lstrip(),
    "rstrip": lambda s: s.rstrip("\n"),
    "head": lambda s: s[:3],
    "tail": lambda s: s[-2:],
    "middle": lambda s: s[1:4],
    "reverse": lambda s: s[::-1],
    "last": lambda s: s[-1] if s else s,
    "replace": lambda s: s.replace("a", "bb"),
    "title": lambda s: s.title(),
    "center": lambda s: s.center(12, "*"),
    "removeprefix": lambda s: s.removeprefix("a"),
    "removesuffix": lambda s: s.removesuffix("\n"),
    "add": lambda s: s + "<end>",
    "radd": lambda s: "<start>" + s,
    "percent": lambda s: "%s!" % s,  # noqa: UP031
    "times": lambda s: s * 2,
    "format": lambda s: format(s, ">9"),
    "str": lambda s: str(s),
}
LISTS = {
    "split": lambda s, sep: s.split(),
    "split_on": lambda s, sep: s.split(sep),
    "split_once": lambda s, sep: s.split(sep, 1),
    "split_white_once": lambda s, sep: s.split(None, 1),
    "rsplit": lambda s, sep: s.rsplit(sep, 1),
    "rsplit_white": lambda s, sep: s.rsplit(None, 1),
    "partition": lambda s, sep: s.partition(sep),
    "rpartition": lambda s, sep: s.rpartition(sep),
    "lines": lambda s, sep: s.splitlines(),
    "lines_kept": lambda s, sep: s.splitlines(keepends=True),
    "characters": lambda s, sep: list(s),
}


def mixed(parts):
    """Upper-case letters are the user's, so a character tells its own source."""
    return join(trace(text.upper(), 5) if ours else text for text, ours in parts)


def spelled(text):
    return "".join(piece for piece, _, _ in pieces_of(text))


def assert_sources_are_right(text):
    """Exactly the upper-case letters come from the user."""
    for piece, source, _ in pieces_of(text):
        letters = {char for char in piece if char.isalpha()}
        assert all(char.isupper() == (source == 5) for char in letters), pieces_of(text)


PARTS = st.lists(st.tuples(TEXTS, st.booleans()), max_size=4)
BLURRING = ("upper", "reverse", "replace", "title", "center", "percent", "times", "format")


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(parts=PARTS)
def test_an_operation_spells_the_same_as_on_a_plain_string(name, parts):
    text = mixed(parts)
    plain = str.__str__(text)
    result = OPERATIONS[name](text)
    assert result == OPERATIONS[name](plain) == spelled(result)
    if name not in BLURRING:
        assert_sources_are_right(result)
    elif any(source is not None for _, source, _ in pieces_of(text)) and name != "percent":
        assert not result or any(source == 5 for _, source, _ in pieces_of(result))


@pytest.mark.parametrize("name", LISTS)
@settings(max_examples=40, deadline=None)
@given(parts=PARTS, separator=SEPARATORS)
def test_splitting_keeps_each_characters_source(name, parts, separator):
    text = mixed(parts)
    found = list(LISTS[name](text, separator))
    assert found == list(LISTS[name](str.__str__(text), separator))
    for part in found:
        assert spelled(part) == part
        assert_sources_are_right(part)


@settings(max_examples=40, deadline=None)
@given(parts=PARTS)
def test_a_blurred_text_never_passes_for_the_templates(parts):
    """Prevents injection through a filter: what an operation can't follow counts as the user's."""
    text = mixed(parts)
    if source_of(text) is not None:
        for name in BLURRING:
            result = OPERATIONS[name](text)
            users = [char for char in str.__str__(result) if char.isupper()]
            owned = "".join(piece for piece, source, _ in pieces_of(result) if source is not None)
            assert all(char in owned for char in users)


def test_all_strings_of_plain_data_are_traced():
    traced = trace_all({"a": [1, "b", {"c": None}], "d": ("e",)}, 3)
    assert traced == {"a": [1, "b", {"c": None}], "d": ["e"]}
    assert all(isinstance(key, Traced) for key in traced)
    assert source_of(traced["a"]) == 3 and source_of([1, {"x": None}]) is None
    assert source_of([{"x": trace("y", OTHER)}]) == OTHER


def test_a_block_covers_template_text_too():
    assert pieces_of(in_block(join(["<think>", trace("x", 1)]), 7)) == (("<think>", None, 7), ("x", 1, 7))


def test_plain_text_belongs_to_the_template_and_empty_text_to_nobody():
    assert pieces_of("ab") == (("ab", None, 0),)
    assert pieces_of("") == ()
    assert type(join(["a", "b"])) is str


def test_a_traced_string_pickles_with_its_sources():
    text = join(["a", trace("b", 2)])
    assert pieces_of(pickle.loads(pickle.dumps(text))) == pieces_of(text)
