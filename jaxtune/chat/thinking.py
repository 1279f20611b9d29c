"""Reasoning in chats: where templates open and close it, whether a message's reasoning is shown, and leaving it out."""

import dataclasses
import re

from jaxtune.chat.conversation import Conversation, Message, PlainMessage, call_name

_CLOSED_BY = {
    f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "reason", "seed:think")
} | {
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|think_start|>": "<|think_end|>",
}
"""What opens a block of reasoning -> what closes it."""
_OPEN, _CLOSE = ("|".join(map(re.escape, tags)) for tags in (_CLOSED_BY, _CLOSED_BY.values()))
_PROMPT_END = re.compile(rf"(?:(?:{_OPEN})\s*)?(?:(?:{_CLOSE})\s*)?\Z")
_TAGS = re.compile(rf"\s*(?:(?:{_OPEN})\s*)?(?:(?:{_CLOSE})\s*)?")
_OPENED = re.compile(rf"({_OPEN})(\s*)\Z")
_BLOCK_END = re.compile(rf"(?:{_OPEN}|{_CLOSE})\s*\Z")
_OPENS = re.compile(rf"\s*(?:{_OPEN})")
_EMPTY_THEN_OPENS = re.compile(rf"\s*(?:(?:{_OPEN})\s*)?(?:{_CLOSE})\s*(?:{_OPEN})")
_BLOCK = re.compile(rf"\s*(?:{_OPEN})(?P<reasoning>.*?)(?:{_CLOSE})", re.DOTALL)
_INLINE = re.compile(rf"\s*(?:{_OPEN})?(?P<reasoning>.*?)(?:{_CLOSE})", re.DOTALL)


def thinking_part(prompt: str) -> str:
    """The end of a generation prompt that opens (and perhaps closes) a block of reasoning; empty without one."""
    match = _PROMPT_END.search(prompt)
    assert match is not None  # it can match nothing
    return match[0]


def is_opened(part: str) -> bool:
    """Whether a `thinking_part` leaves the block of reasoning open."""
    return _OPENED.search(part) is not None


def is_closed(text: str) -> bool:
    """Whether `text`, which begins with a `thinking_part`, ends with the block of reasoning closed."""
    return re.search(rf"(?:{_CLOSE})\s*\Z", text) is not None


def closing_of(part: str) -> str:
    """Tag that closes the block which `part` opens, with mirrored white space: `<think>\\n` is closed by
    `\\n</think>\\n\\n`, `<think>` by `</think>`."""
    match = _OPENED.search(part)
    if match is None:
        return ""
    line = "\n" if "\n" in match[2] else ""
    return line + _CLOSED_BY[match[1]] + 2 * line


def begins_with_block(text: str) -> bool:
    """Whether a text begins with a whole block of reasoning that is not empty."""
    block = _BLOCK.match(text)
    return block is not None and not block["reasoning"].isspace() and block["reasoning"] != ""


def is_doubled(before: str, said: str) -> bool:
    """Whether what is said opens a block of reasoning right after one that `before`, or it, opened or left empty."""
    again = _OPENS.match(said) is not None and _BLOCK_END.search(before) is not None
    return again or _EMPTY_THEN_OPENS.match(said) is not None


def skip_tags(text: str, start: int, stop: int) -> int:
    """Position after an empty block of reasoning, or after the tag that opens a block, at `start`."""
    match = _TAGS.match(text, start, stop)
    return start if match is None else match.end()


def reasoning_of(message: PlainMessage) -> str:
    """The reasoning of a message, from its own field or from the block before its answer; empty without any."""
    field = message.get("reasoning_content")
    if field is not None:
        return str(field)
    inline = _INLINE.match(message["content"]) if message["role"] == "assistant" else None
    return "" if inline is None else inline["reasoning"]


def answer_of(message: PlainMessage) -> str:
    """The text of a message without the reasoning that its content begins with."""
    content = message["content"]
    inline = _INLINE.match(content) if message["role"] == "assistant" else None
    return content if inline is None else content[inline.end() :]


def is_shown(message: PlainMessage, written: str) -> bool:
    """Whether the text that a template wrote of a message holds its reasoning, if any, before its answer and calls."""
    reasoning, text = squash(reasoning_of(message)), squash(written)
    if not reasoning:
        return True
    start = text.find(reasoning)
    names = [call_name(call) for call in message.get("tool_calls") or ()]
    return start >= 0 and all(
        squash(part) in text[start + len(reasoning) :] for part in (answer_of(message).strip(), *names)
    )


def leaves_out_text(message: PlainMessage, written: str) -> bool:
    """Whether the text that a template wrote of a message with calls lacks what the message says before them."""
    return bool(message.get("tool_calls")) and squash(answer_of(message)) not in squash(written)


def without_reasoning(conversation: Conversation) -> Conversation:
    """The conversation with the reasoning of every assistant message taken out."""
    return dataclasses.replace(conversation, messages=[_without(message) for message in conversation.messages])


def _without(message: Message) -> Message:
    if message.role != "assistant":
        return message
    inline = None if message.content is None else _INLINE.match(message.content)
    content = message.content if inline is None else str(message.content)[inline.end() :].lstrip("\n")
    return dataclasses.replace(message, content=content, reasoning=None)


def squash(text: str) -> str:
    """Text without white space, which templates trim and add."""
    return "".join(text.split())
