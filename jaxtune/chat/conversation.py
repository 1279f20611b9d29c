"""Conversations: messages in order, before any template or tokenizer has seen them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    """One of `ROLES`."""
    content: str | None = ""
    """The text; None (no text) is for assistant messages with tool calls."""
    _: dataclasses.KW_ONLY
    weight: float | int | None = None
    """Loss weight of an assistant message, at least 0; None means 1."""
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    """Calls an assistant makes, in the form the template expects; passed on unchanged."""
    name: str | None = None
    reasoning: str | None = None
    """What the assistant thinks before it answers; templates see it as `reasoning_content`."""
    tool_call_id: str | None = None
    """The call that a tool message answers."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"unknown role {self.role!r}; allowed: {', '.join(ROLES)}. Map or correct the role.")
        if self.content is None and not self.tool_calls:
            raise UserError(f"a {self.role} message has no content. Give it text, or remove it.")
        if self.weight is not None and not (self.role == "assistant" and 0 <= self.weight < float("inf")):
            raise UserError(
                f"weight {self.weight} on a {self.role} message; only assistant messages carry a weight, a finite "
                "number of at least 0. To train on prompts, use `prompt_loss_weight`."
            )


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools on offer."""

    messages: Sequence[Message]
    id: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool declarations (JSON schemas), passed on unchanged."""


PlainMessage = Mapping[str, Any]
"""A message as templates see it: `role`, `content`, and the further fields that are given."""


class PlainChat(NamedTuple):
    """A conversation as templates see it."""

    messages: Sequence[PlainMessage]
    tools: Sequence[Any] | None = None

    @property
    def speakers(self) -> list[int]:
        """The numbers of the assistant messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def before(self, message: int) -> "PlainChat":
        """The chat up to, and without, a message."""
        return PlainChat(self.messages[:message], self.tools)


def plain_chat(conversation: Conversation) -> PlainChat:
    """Messages and tools as templates see them: fields that are not given are absent."""
    return PlainChat([_plain_message(message) for message in conversation.messages], conversation.tools)


def _plain_message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning is not None:
        plain |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    for name in ("tool_calls", "name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    return plain
