"""A mask in a page: trained tokens and control tokens are marked, and nothing in a message becomes markup."""

import html.parser

from chats import TURNS

from jaxtune.chat import TEMPLATES, Conversation, Message, render
from jaxtune.chat.mask_view import shown_tokens
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.reports.page import tokens

BYTES = ByteTokenizer()
CHATML = TEMPLATES["chatml"]


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.spans, self.tags, self.text, self.open = [], [], "", 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "span":
            self.spans.append(({"class": "", **dict(attrs)}, ""))
            self.open += 1

    def handle_endtag(self, tag):
        self.open -= tag == "span"

    def handle_data(self, data):
        self.text += data
        if self.open:
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def read(fragment):
    reader = Reader()
    reader.feed(fragment)
    return reader


def picture(conversation):
    shown = shown_tokens(render(conversation, CHATML, BYTES), BYTES)
    columns = zip(*((token.text, token.weight, token.control) for token in shown), strict=True)
    return str(tokens(*columns))


def test_html_shows_every_token_with_its_class_and_weight():
    reader = read(picture(TURNS))
    trained = "".join(text for attrs, text in reader.spans if "w" in attrs["class"].split())
    assert trained == "4<|im_end|>Vier.Ja, vier ✓<|im_end|>", "line breaks are drawn by spans of their own"
    controls = [text for attrs, text in reader.spans if "control" in attrs["class"].split()]
    assert controls == ["<|im_start|>", "<|im_end|>"] * 5
    assert {attrs["title"] for attrs, _ in reader.spans if "title" in attrs} == {"weight 0", "weight 1"}


def test_control_characters_are_shown_as_escapes():
    odd = Conversation([Message("user", "a\x1b[31m\tb\x00"), Message("assistant", "c\r")])
    assert "a\\x1b[31m\tb\\x00" in read(picture(odd)).text and "\\r" in read(picture(odd)).text


def test_markup_in_a_message_is_escaped():
    """Prevents a data set from running scripts in the report."""
    attack = "<script>alert('x')</script> & \"</div>"
    hostile = Conversation([Message("user", attack), Message("assistant", attack)])
    fragment = picture(hostile)
    assert "<script" not in fragment
    reader = read(fragment)
    assert set(reader.tags) == {"div", "span"} and reader.tags.count("div") == 1
    assert reader.text.count(attack) == 2
