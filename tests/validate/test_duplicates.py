import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxtune.validate import duplicates
from jaxtune.validate.duplicates import DTYPE, MESSAGE, RECORD, THRESHOLD, Sketches, Words, similarity, sketch, words


def rows_of(texts: list[str]) -> np.ndarray:
    result = sketch(RECORD.join(texts).encode(), len(texts), sum(text.count(MESSAGE) + 1 for text in texts))
    assert result.plain
    return result.rows


def alike(left: str, right: str) -> float:
    return similarity(Words.of(left), Words.of(right))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=30)
WORDS = ("a", "b", "cd", "efg", "12", "über", "你")
CHATS = st.lists(st.lists(TEXT, min_size=1, max_size=3).map(MESSAGE.join), min_size=1, max_size=8)


@given(texts=CHATS)
@example(texts=["a b c" + MESSAGE + "?", "d e f"])
@settings(max_examples=60, deadline=None)
def test_a_texts_row_does_not_depend_on_its_neighbours(texts):
    together = rows_of(texts)
    assert (together == np.concatenate([rows_of([text]) for text in texts])).all()


@given(texts=CHATS)
@settings(max_examples=60, deadline=None)
def test_texts_of_the_same_words_share_their_hashes(texts):
    upper = {ord(c): c.upper() for c in "abcdefghijklmnopqrstuvwxyz"}
    loud = [text.translate(upper).replace(" ", " - ") + "!" for text in texts]
    assert [words(text) for text in loud] == [words(text) for text in texts]
    assert (rows_of(loud) == rows_of(texts)).all()


@given(texts=st.lists(st.lists(st.sampled_from(WORDS)).map(" ".join), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_texts_of_other_words_have_other_hashes(texts):
    bags = [sorted(words(text)) for text in texts]
    hashes = rows_of(texts)["text"].tolist()
    for bag, value in zip(bags, hashes, strict=True):
        assert [other == bag for other in bags] == [other == value for other in hashes]


def test_a_text_without_words_has_nothing_to_compare():
    assert not rows_of(["", "?!", MESSAGE]).tobytes().strip(b"\0")


def test_the_prompt_is_all_but_the_last_message():
    texts = ["a b" + MESSAGE + "c", "a b" + MESSAGE + "d e", "a" + MESSAGE + "b" + MESSAGE + "f", "a b c"]
    prompts = rows_of(texts)["prompt"]
    assert prompts[0] == prompts[1] == prompts[2] != 0
    assert prompts[3] == 0


def test_control_characters_are_noticed():
    assert not sketch(b"a\x07b", 1, 1).plain
    assert not sketch(b"a\x7fb", 1, 1).plain
    assert not sketch(f"a{RECORD}b".encode(), 1, 1).plain
    assert not sketch(f"a{MESSAGE}b".encode(), 1, 1).plain
    assert sketch(b"a\tb\r\n", 1, 1).plain


def mutated(text: str, changes: int, rng: random.Random) -> str:
    changed = text.split()
    for _ in range(changes):
        changed[rng.randrange(len(changed))] = f"new{rng.randrange(10_000)}"
    return " ".join(changed)


def test_nearly_all_near_duplicates_share_a_band_and_few_others_do():
    rng = random.Random(0)
    originals = [" ".join(f"w{rng.randrange(3000)}" for _ in range(80)) + MESSAGE + "yes indeed" for _ in range(600)]
    copies = [
        mutated(text.split(MESSAGE)[0], i % 6 + 1, rng) + MESSAGE + "yes indeed" for i, text in enumerate(originals)
    ]
    with Sketches() as sketches:
        sketches.add(rows_of(originals))
        sketches.add(rows_of(copies))
        found = {tuple(pair) for pair in sketches.pairs().tolist()}
    likeness = {(i, i + 600): alike(originals[i], copies[i]) for i in range(600)}
    near = [pair for pair, value in likeness.items() if value >= THRESHOLD]
    assert len(near) > 200
    assert sum(pair in found for pair in near) > 0.95 * len(near)
    assert len(found - likeness.keys()) < 20


def test_near_duplicates_are_found_among_many_texts_that_share_half_their_words():
    rng = random.Random(1)
    form = " ".join(f"form{i}" for i in range(40))
    originals = [
        f"{form} " + " ".join(f"w{rng.randrange(3000)}" for _ in range(40)) + MESSAGE + "yes" for _ in range(800)
    ]
    copies = [text.replace(MESSAGE, " indeed" + MESSAGE) for text in originals[:200]]
    with Sketches() as sketches:
        sketches.add(rows_of(originals + copies))
        found = {tuple(pair) for pair in sketches.pairs().tolist()}
    assert sum((i, i + 800) in found for i in range(200)) > 190
    assert len(found) < 4 * 1000


def test_groups_hold_the_texts_that_share_a_value(monkeypatch):
    rows = np.zeros(9, DTYPE)
    rows["text"] = [5, 0, 7, 5, 0, 9, 7, 5, 1]
    monkeypatch.setattr(duplicates, "BANDS", 0)
    with Sketches() as sketches:
        for part in np.split(rows, 3):
            sketches.add(part)
        assert len(sketches) == 9
        assert [group.tolist() for group in sketches.groups("text")] == [[0, 3, 7], [2, 6]]
        assert list(sketches.groups("id")) == []


def test_characters_of_scripts_without_spaces_are_words():
    assert len(words("你好世界")) == 4
    assert len(words("Grüße, Åsa!")) == 2
    assert alike(
        "今天天气很好我们去公园散步吧" + MESSAGE + "好", "今天天气很好我们去公园散步吗" + MESSAGE + "好"
    ) == pytest.approx(11 / 15)


def test_similarity_is_the_share_of_common_shingles():
    assert alike("a b c d e", "a b c d e") == 1
    assert alike("A, b c d e!", "a b c d e") == 1
    assert alike("a b c d e" + MESSAGE + "x", "a b c d f" + MESSAGE + "x") == pytest.approx(2 / 6)
    assert alike("a b c d e" + MESSAGE + "x", "a b c d e" + MESSAGE + "y") == 0
