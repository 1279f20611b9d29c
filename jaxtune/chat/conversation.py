"""Conversations: messages in order, before any template or tokenizer has seen them."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.errors import UserError
from jaxtune.storage.documents import is_deeper

MOST_NESTED = 100
"""Most objects and lists in one another in tools and the arguments of calls, as in records: templates recurse."""
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
    """Calls an assistant makes: `{"function": {"name", "arguments"}}` or `{"name", "arguments"}`. `arguments` is an
    object or its JSON text; templates see it in the form that they want."""
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

    def __post_init__(self) -> None:
        if not isinstance(self.messages, list | tuple):
            raise UserError(f"messages is a {type(self.messages).__name__}; it must be a list or tuple of Message(...)")
        for i, message in enumerate(self.messages):
            if not isinstance(message, Message):
                kind = type(message).__name__
                raise UserError(f"messages[{i}] is a {kind}; it must be a Message(role, content)")
        tools = () if self.tools is None else self.tools
        if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
            raise UserError("tools must be a list of objects (JSON schemas), or None")


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


def call_name(call: Mapping[str, Any]) -> str:
    """The name of the function that a tool call calls."""
    return str(call.get("function", call).get("name", ""))


def plain_chat(conversation: Conversation) -> PlainChat:
    """Messages and tools as templates see them: fields that are not given are absent."""
    if is_deeper(list(conversation.tools or ()), MOST_NESTED):
        raise UserError(f"the tools are nested more than {MOST_NESTED} deep. Write the deep part as a string.")
    return PlainChat([plain_message(message) for message in conversation.messages], conversation.tools)


def plain_message(message: Message) -> dict[str, Any]:
    """The message as templates see it; the arguments of its calls are objects."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning is not None:
        plain |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls is not None:
        plain["tool_calls"] = [_with_arguments(call, _as_object) for call in message.tool_calls]
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    return plain


def calls_as_text(message: PlainMessage) -> PlainMessage:
    """The message with the arguments of its calls as JSON text, for templates that want them so."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_arguments(call, _as_text) for call in message["tool_calls"]]}


def without_blank_text(message: PlainMessage) -> PlainMessage:
    """The message with None for its text where it has calls and no text, for templates that look for that."""
    return {**message, "content": None} if message.get("tool_calls") and not message["content"].strip() else message


def _with_arguments(call: Mapping[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """The call with its arguments changed by a function of the arguments and the function's name."""
    function = call.get("function", call)
    if "arguments" not in function:
        return dict(call)
    changed = {**function, "arguments": change(function["arguments"], call_name(call))}
    return {**call, "function": changed} if "function" in call else changed


def _as_text(arguments: Any, name: str) -> str:
    """The arguments of a call as JSON text."""
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the arguments of the call of {name!r} cannot be written as JSON: {error}") from error


def _as_object(arguments: Any, name: str) -> Any:
    """The arguments of a call, which may be JSON text, as an object."""
    if is_deeper(arguments, MOST_NESTED):
        raise UserError(
            f"the arguments of the call of {name!r} are nested more than {MOST_NESTED} deep. Write the deep part as a "
            "string."
        )
    if not isinstance(arguments, str):
        return arguments
    try:
        value = _parse_strictly(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the arguments of the call of {name!r} are text that is not valid JSON ({error}): {arguments[:80]!r}. "
            "Give an object, or its JSON text."
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"the arguments of the call of {name!r} are the JSON of no object: {arguments[:80]!r}. Give an object."
        )
    return _as_object(value, name)


def _parse_strictly(text: str) -> Any:
    """A JSON value as a reader of records takes it; ValueError for a key twice, half a character, no finite number."""
    value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_key_once)
    json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is larger than any number of 64 bits")
    return number


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found
