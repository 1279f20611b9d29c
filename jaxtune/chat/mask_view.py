"""A loss mask as text: the tokens of an example, coloured by what they weigh."""

import codecs
import dataclasses

import rich.text

from jaxtune.batch import Example
from jaxtune.chat.tokenizer import Tokenizer
from jaxtune.errors import printable


@dataclasses.dataclass(frozen=True)
class ShownToken:
    """A token as people see it; several tokens where one character is spread over them."""

    text: str
    weight: float
    """The largest loss weight of its tokens."""
    control: bool
    """A control token, which text never produces."""


def shown_tokens(example: Example, tokenizer: Tokenizer) -> list[ShownToken]:
    """The tokens of an example as readable text, in order. Bytes that make no character show as U+FFFD."""
    shown: list[ShownToken] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending = 0.0
    for token, weight in zip(example.tokens.tolist(), example.loss_weights.tolist(), strict=True):
        control = tokenizer.is_control(token)
        if control:
            _append(shown, decoder.decode(b"", final=True), pending, False)
            decoder.reset()
            _append(shown, tokenizer.piece(token), weight, True)
            pending = 0.0
            continue
        pending = max(pending, weight)
        text = decoder.decode(tokenizer.token_bytes(token))
        if text:
            _append(shown, text, pending, False)
            held = bool(decoder.getstate()[0])
            pending = weight if held else 0.0
    _append(shown, decoder.decode(b"", final=True), pending, False)
    return shown


def _append(shown: list[ShownToken], text: str, weight: float, control: bool) -> None:
    if text:
        shown.append(ShownToken(text, weight, control))


def mask_text(example: Example, tokenizer: Tokenizer) -> rich.text.Text:
    """For a terminal: prompts dim, trained tokens on colour (paler for weights below 1), control tokens in italics.

    Newlines show as `↵` and break the line. Other control characters show as their escape.
    """
    picture = rich.text.Text()
    for token in shown_tokens(example, tokenizer):
        style = "dim" if token.weight <= 0 else "black on green3" if token.weight >= 1 else "black on pale_green1"
        picture.append(_printable(token.text), style=style + (" italic" if token.control else ""))
    return picture


def _printable(text: str) -> str:
    """`text` with newlines marked and other control characters as escapes; tabs stay."""
    return printable(text).replace("\n", "↵\n")
