"""Exemplars of few-shot prompts: which records are drawn for an example, and how they stand before it."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from jaxtune.chat import Conversation, Message
from jaxtune.errors import UserError
from jaxtune.storage.fingerprints import hash64
from jaxtune.tasks.wording import FewShot, FewShotStyle

MOST_DRAWS = 1000
"""Records that are looked at in the search for one example's exemplars."""


def draws(key: bytes, n: int) -> Iterator[int]:
    """Distinct numbers below n in an order that `key` decides; ends when a long search found no new ones."""
    seen: set[int] = set()
    for k in itertools.count():
        if len(seen) == n or k > 64 * (len(seen) + 16):
            return
        i = hash64(key + k.to_bytes(8, "little")) % n
        if i not in seen:
            seen.add(i)
            yield i


def question(conversation: Conversation) -> tuple[str, ...]:
    """Question of a conversation: the text of all messages but the last."""
    return tuple(message.content or "" for message in conversation.messages[:-1] if message.role != "system")


def joined(exemplars: Sequence[Conversation], plain: Conversation, few_shot: FewShot) -> Conversation:
    """The conversation with its exemplars before it."""
    head = [message for message in plain.messages if message.role == "system"]
    turns = [message for message in plain.messages if message.role != "system"]
    if few_shot.style is FewShotStyle.TURNS:
        shown = [
            dataclasses.replace(message, weight=0.0) if message.role == "assistant" else message
            for exemplar in exemplars
            for message in exemplar.messages
            if message.role != "system"
        ]
        return dataclasses.replace(plain, messages=(*head, *shown, *turns))
    blocks = [few_shot.answer_separator.join(_pair(exemplar)) for exemplar in exemplars]
    asked = Message(role="user", content=few_shot.separator.join([*blocks, _pair(plain)[0]]))
    return dataclasses.replace(plain, messages=(*head, asked, turns[-1]))


def _pair(conversation: Conversation) -> tuple[str, str]:
    turns = [message for message in conversation.messages if message.role != "system"]
    if [message.role for message in turns] != ["user", "assistant"]:
        raise UserError("few_shot style `text` needs conversations of one question and one answer; use style `turns`")
    return turns[0].content or "", turns[1].content or ""
