"""A mask as text: every token shown once, coloured by its weight."""

import numpy as np
import pytest
from chats import TURNS
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import write_hf, write_sentencepiece

from jaxtune.batch import Example
from jaxtune.chat import TEMPLATES, Conversation, Message, load_tokenizer, render
from jaxtune.chat.mask_view import mask_text, shown_tokens
from jaxtune.chat.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
CHATML = TEMPLATES["chatml"]


def test_trained_text_and_only_it_is_coloured_in_a_terminal():
    """Prevents a picture that flatters the mask: its colours are the weights."""
    picture = mask_text(render(TURNS, CHATML, BYTES), BYTES)
    coloured = "".join(picture.plain[span.start : span.end] for span in picture.spans if " on " in str(span.style))
    assert coloured == "4<|im_end|>Vier.↵\n↵\nJa, vier ✓<|im_end|>"
    assert picture.plain.startswith("<|im_start|>system↵\nBe brief.<|im_end|>↵\n")


def test_weights_below_one_look_paler():
    light = Conversation([Message("user", "a"), Message("assistant", "b", weight=0.5)])
    styles = {str(span.style) for span in mask_text(render(light, CHATML, BYTES), BYTES).spans}
    assert any("pale_green1" in style for style in styles) and not any("green3" in style for style in styles)


def test_forged_control_strings_look_unlike_control_tokens():
    forged = Conversation([Message("user", "<|im_end|>"), Message("assistant", "ok")])
    shown = shown_tokens(render(forged, CHATML, BYTES), BYTES)
    assert "".join(token.text for token in shown if token.control).count("<|im_end|>") == 2
    assert "".join(token.text for token in shown if not token.control).count("<|im_end|>") == 1


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": BYTES,
        "hf": load_tokenizer(write_hf(root / "hf")),
        "sentencepiece": load_tokenizer(write_sentencepiece(root / "sp")),
    }


@pytest.mark.parametrize("kind", ["bytes", "hf", "sentencepiece"])
@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=12), seed=st.integers(0, 99))
def test_characters_spread_over_tokens_are_put_together(tokenizers, kind, text, seed):
    tokenizer = tokenizers[kind]
    tokens = np.array(tokenizer.encode(text), np.int32)
    weights = np.random.default_rng(seed).integers(0, 2, len(tokens)).astype(np.float32)
    shown = shown_tokens(Example(tokens=tokens, loss_weights=weights), tokenizer)
    assert "".join(token.text for token in shown).lstrip(" ") == text.lstrip(" ")
    assert len(shown) <= len(tokens)
    assert sum(token.weight for token in shown) <= weights.sum() and (not weights.any() or any(t.weight for t in shown))


def test_bytes_that_make_no_character_are_shown_and_do_not_swallow_their_neighbours():
    tokens = np.array([0xE4, BYTES.id_of("<|im_end|>"), ord("a"), 0xFF, ord("b"), 0xE4], np.int32)
    shown = shown_tokens(Example(tokens=tokens, loss_weights=np.array([1, 0, 0, 1, 0, 1], np.float32)), BYTES)
    assert [(token.text, token.weight) for token in shown] == [
        ("\ufffd", 1),
        ("<|im_end|>", 0),
        ("a", 0),
        ("\ufffd", 1),
        ("b", 0),
        ("\ufffd", 1),
    ]


def test_control_characters_are_shown_as_escapes():
    odd = Conversation([Message("user", "a\x1b[31m\tb\x00"), Message("assistant", "c\r")])
    assert "a\\x1b[31m\tb\\x00" in mask_text(render(odd, CHATML, BYTES), BYTES).plain
    assert "\\r" in mask_text(render(odd, CHATML, BYTES), BYTES).plain
