"""The way a template writes turns, learned by rendering short chats with it."""

import os.path
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxtune.chat import thinking
from jaxtune.chat.conversation import PlainChat, PlainMessage, calls_as_text, without_blank_text
from jaxtune.chat.cutting import Control
from jaxtune.chat.responses import Learned, blocks_of, extent, text_end
from jaxtune.chat.traced import Piece
from jaxtune.errors import UserError

if TYPE_CHECKING:
    from jaxtune.chat.layout import Renderer

_USER, _ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PROBE = PlainChat([_USER, _ASSISTANT])
LONG_PROBE = PlainChat([_USER, _ASSISTANT, _USER, _ASSISTANT])
_THOUGHTFUL = PlainChat([_USER, {"role": "assistant", "content": "b", "reasoning_content": "c", "thinking": "c"}])

_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "lookup", "arguments": {"key": "value"}}}
_TOOLS = [{"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {"type": "object"}}}]
_CALLING = PlainChat([_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], _TOOLS)

_ANSWERED = PlainChat(
    [
        _USER,
        {"role": "assistant", "content": "", "reasoning_content": "c", "thinking": "c", "tool_calls": [_CALL]},
        {"role": "tool", "content": "d", "name": "lookup", "tool_call_id": "abcdefghi"},
        _ASSISTANT,
    ],
    _TOOLS,
)


def wants_none(renderer: "Renderer") -> bool:
    """Whether a template writes the calls of messages alone whose text is None; "" is text to it."""
    plain, none = ([change(message) for message in _CALLING.messages] for change in (dict, without_blank_text))
    return not _writes_call(renderer, plain) and _writes_call(renderer, none)


def _writes_call(renderer: "Renderer", messages: Sequence[PlainMessage]) -> bool:
    for spelled in (messages, [calls_as_text(message) for message in messages]):
        try:
            if "lookup" in renderer.render(PlainChat(spelled)).text:
                return True
        except UserError:  # it wants arguments of the other form, or has no place for calls
            continue
    return False


def takes_text(renderer: "Renderer") -> bool:
    """Whether a template wants the arguments of calls as JSON text: objects come out as Python, or fail."""
    try:
        return "{'key'" in renderer.render(_CALLING).text
    except UserError:
        pass
    try:
        as_text = [calls_as_text(message) for message in _CALLING.messages]
        return '"key"' in renderer.render(PlainChat(as_text, _TOOLS)).text
    except UserError:  # a template without a place for calls
        return False


def learn(renderer: "Renderer") -> Learned:
    """End-of-turn tokens and the end of the generation prompt, as short chats show them."""
    last, middle = (_tail(renderer, chat) for chat in (PROBE, LONG_PROBE))
    if not last:
        raise renderer.error(
            "no control token of this tokenizer follows the assistant's text, so the model could never learn "
            "to stop. Use the tokenizer that belongs to the template, or another template."
        )
    common = os.path.commonprefix([last, middle])
    ends = [tuple(common or last[:1])]  # at the end of the text, tokens may follow that end no turn
    if (call := _call_end(renderer, ends[0])) is not None:
        ends.append(call)
    # a single control token in a middle turn would be the header of the next turn
    others = [tuple(middle[:1])] if middle and not common and len(middle) > 1 else []
    part = thinking.thinking_part(renderer.text(PROBE.before(1), generation_prompt=True))
    return Learned(
        terminators=(*ends, *others),
        num_last=len(ends),
        header=_header(renderer),
        thinking=part,
        closing=_closing(renderer, part) if thinking.is_opened(part) else "",
        revises=_revises(renderer),
    )


def _tail(renderer: "Renderer", chat: PlainChat) -> list[str]:
    """The control tokens that follow the first assistant message, as far as they touch each other."""
    rendered = renderer.render(chat)
    end = text_end(rendered.pieces, 1, chat.messages[1])
    limit = extent(rendered.pieces, 2)[0] if len(chat.messages) > 2 else len(rendered.text)
    tail: list[Control] = []
    for control in renderer.find_controls(rendered, chat):
        if 0 < end <= control.start < limit and (not tail or tail[-1].stop == control.start):
            tail.append(control)
    return [control.string for control in tail]


def _call_end(renderer: "Renderer", end: tuple[str, ...]) -> tuple[str, ...] | None:
    """The control tokens that end a turn with calls, where it does not end as other turns do."""
    try:
        rendered = renderer.render(_CALLING)
        after = rendered.text[text_end(rendered.pieces, 1, _CALLING.messages[1]) :]
        tail = _tail(renderer, _CALLING)
    except UserError:  # a template without a place for calls
        return None
    return None if "".join(end) in after or not tail else tuple(tail)


def _revises(renderer: "Renderer") -> bool:
    """Whether the text of an answered chat does not begin with the prompt for that answer."""
    try:
        prompt = renderer.text(_ANSWERED.before(3), generation_prompt=True)
        return not renderer.text(_ANSWERED).startswith(prompt)
    except UserError:  # a template without a place for calls, or for messages of tools
        return False


def _header(renderer: "Renderer") -> str:
    """What of the generation prompt the marks enclose."""
    rendered = renderer.render(PROBE)
    blocks = blocks_of(rendered.pieces)
    if not renderer.marked or renderer.exact or not blocks:
        return ""
    prompt = renderer.text(PROBE.before(1), generation_prompt=True)
    return rendered.text[blocks[0].start : len(prompt)] if rendered.text.startswith(prompt) else ""


def _closing(renderer: "Renderer", part: str) -> str:
    """What ends a block of reasoning: as the template writes it, else the mirror of how it opens one."""
    rendered = renderer.render(_THOUGHTFUL)
    spoken = [(text, start) for text, source, start in _placed(rendered.pieces) if source == 1]
    if [text for text, _ in spoken] == ["c", "b"]:
        return rendered.text[spoken[0][1] + 1 : spoken[1][1]]
    return thinking.closing_of(part)


def _placed(pieces: Sequence[Piece]) -> Iterator[tuple[str, int | None, int]]:
    """Each piece's text and source, and where it begins."""
    start = 0
    for text, source, _ in pieces:
        yield text, source, start
        start += len(text)
