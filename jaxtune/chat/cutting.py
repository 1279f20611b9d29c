"""Control tokens in a rendered chat, and the text between them cut into segments and tokenised."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.chat.sandbox import Rendered
from jaxtune.chat.tokenizer import After, Controls, Tokenizer
from jaxtune.chat.traced import OTHER

_SEEN, _SEEN_CHARS = 20_000, 100
"""How many short texts, and of what length, are kept with their ids: the template's own, mostly."""


class Control(NamedTuple):
    """A control token that the template wrote: characters `start` to `stop` of the rendered text."""

    start: int
    stop: int
    string: str


class Segment(NamedTuple):
    """A stretch of the text that is tokenised on its own, or one control token."""

    start: int
    text: str
    """What is tokenised; empty for a control token."""
    control: int | None
    after: After


class Blurred(ValueError):
    """A string operation of the template joined a control token to user text; the argument is the token's string."""


def find_controls(rendered: Rendered, controls: Controls, given: Sequence[Any]) -> list[Control]:
    """Control tokens in the text of the template, in order.

    `given` holds all that the user gave. A control string in user text must come from there: raises `Blurred` if not.
    """
    found: list[Control] = []
    start = run = 0  # `run`: where the current stretch of template text begins
    for text, source, _ in [*rendered.pieces, ("", OTHER, 0)]:
        if source is not None:
            found += [Control(*m.span(), m[0]) for m in controls.pattern.finditer(rendered.text, run, start)]
            run = start + len(text)
            match = controls.pattern.search(text)
            if match and not any(match[0] in string for string in _strings(given)):
                raise Blurred(match[0])
        start += len(text)
    return found


def cut(rendered: Rendered, found: Sequence[Control], controls: Controls, edges: set[int]) -> list[Segment]:
    """The control tokens `found`, and the text between them cut at the characters `edges`."""
    segments: list[Segment] = []
    ids, eats_left, eats_right = controls.ids, controls.eats_left, controls.eats_right
    ahead = sorted(edges)
    begin, after, eat = 0, After.NOTHING, False
    for control in [*found, Control(len(rendered.text), 0, "")]:
        while begin < control.start:
            while ahead and ahead[0] <= begin:
                ahead.pop(0)
            end = min(ahead[0], control.start) if ahead else control.start
            text = rendered.text[begin:end]
            text = text.lstrip() if eat else text
            text = text.rstrip() if end == control.start and control.string in eats_left else text
            if text:
                segments.append(Segment(begin, text, None, after))
                after = After.TEXT
            begin, eat = end, False
        if control.string:
            segments.append(Segment(begin, "", ids[control.string], after))
            begin, after, eat = control.stop, After.CONTROL, control.string in eats_right
    return segments


class SegmentEncoder:
    """Token ids of segments; short texts are tokenised once for all chats."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._seen: dict[tuple[After, str], list[int]] = {}

    def encode(self, chats: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
        """For each chat, the ids of each of its segments. Texts are tokenised once each, in one call per context."""
        if len(self._seen) > _SEEN:
            self._seen.clear()
        new: dict[After, list[tuple[str, list[int]]]] = {after: [] for after in After}
        seen = dict[tuple[After, str], list[int]]()
        result: list[list[list[int]]] = []
        for chat in chats:
            row: list[list[int]] = []
            for segment in chat:
                key = (segment.after, segment.text)
                if segment.control is not None:
                    ids = [segment.control]
                elif (ids := self._seen.get(key) or seen.get(key)) is None:  # filled below, wherever it is shared
                    ids = seen[key] = []
                    new[segment.after].append((segment.text, ids))
                row.append(ids)
            result.append(row)
        for after, texts in new.items():
            if texts:
                encoded = self._tokenizer.encode_batch([text for text, _ in texts], after=after)
                for (_, ids), found in zip(texts, encoded, strict=True):
                    ids += found
        self._seen |= {key: ids for key, ids in seen.items() if len(key[1]) <= _SEEN_CHARS}
        return result


def _strings(value: Any) -> list[str]:
    """All strings in plain data, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []
