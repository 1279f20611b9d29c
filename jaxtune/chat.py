"""Conversations and chat templates: from messages to token ids with a loss weight for each.

A template is rendered once over the whole conversation, with the source of every character known. Then:

1. The *response* of an assistant message is what follows the generation prompt up to and with the end-of-turn token. It is
   found by the template's `{% generation %}` marks, else by rendering the messages before it with a generation prompt.
2. Control strings that the template wrote become control tokens; the same characters in a user's text stay text.
3. The text between control tokens is tokenised, cut at the ends of responses. So no token holds both prompt and response,
   and `render_prompt` is an exact prefix of `render`. Where one token of the uncut text would straddle the cut (the prompt
   ends in a newline and the response begins with one), the ids differ from those of the uncut text, on purpose: at
   generation the prompt is tokenised alone, too.
"""

import dataclasses
import datetime
import enum
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.errors import UserError
from jaxtune.packing import Example
from jaxtune.responses import Renderer, Response
from jaxtune.tokenizer import After, Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    """One of `ROLES`."""
    content: str | None = ""
    """The text; None (no text) is for assistant messages with tool calls."""
    _: dataclasses.KW_ONLY
    weight: float | None = None
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
                f"weight {self.weight} on a {self.role} message; only assistant messages carry a weight, a finite number "
                "of at least 0. To train on prompts, use `prompt_loss_weight`."
            )


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools on offer."""

    messages: Sequence[Message]
    id: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool declarations (JSON schemas), passed on unchanged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja chat template in the dialect of Hugging Face `transformers`."""

    name: str
    source: str
    variables: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    """Further variables the template sees, e.g. `{"enable_thinking": False}`; kept as sorted pairs."""
    today: datetime.date = datetime.date(2024, 7, 26)
    """The date that `strftime_now` tells. Fixed, so that the same data give the same tokens on every day."""
    exact_marks: bool = False
    """Train on exactly what `{% generation %}` encloses. By default the generation prompt, and anything after the
    end-of-turn token, is left out even where the marks enclose it, and an end-of-turn token right after them is taken in."""

    def __post_init__(self) -> None:
        pairs = self.variables.items() if isinstance(self.variables, Mapping) else self.variables
        object.__setattr__(self, "variables", tuple(sorted(pairs)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides a render."""
        facts = (self.source, self.variables, self.today.isoformat(), self.exact_marks)
        return hashlib.sha256(repr(facts).encode()).hexdigest()


class MaskPolicy(enum.Enum):
    """Which tokens train with weight 1 (times the message's own weight). All others carry `prompt_loss_weight`."""

    ASSISTANT = "assistant"  # every assistant response with its end-of-turn token
    LAST_ASSISTANT = "last_assistant"  # the last assistant response only
    COMPLETION = "completion"  # all text from the response to the last user message on, tool results included
    ALL = "all"  # every token


class LengthPolicy(enum.Enum):
    """What happens to an example that is longer than a row."""

    ERROR = "error"
    DROP = "drop"
    TRUNCATE_PROMPT = "truncate_prompt"  # from the left; BOS is kept
    TRUNCATE_RESPONSE = "truncate_response"  # from the right; the end-of-turn token goes with the cut text


class Outcome(enum.Enum):
    """What the length policy did to an example; the value is the reason to report."""

    KEPT = "kept"
    PROMPT_TRUNCATED = "prompt truncated from the left"
    RESPONSE_TRUNCATED = "response truncated"
    TOO_LONG = "dropped: longer than the maximum length"
    RESPONSE_TOO_LONG = "dropped: the response alone is longer than the maximum length"
    NOTHING_TRAINS = "dropped: no token carries loss weight"
    NOTHING_TRAINS_AFTER_CUT = "dropped: the response begins beyond the maximum length"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An example after the length policy; None where it was dropped."""

    example: Example | None
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Problem:
    """A broken rule of supervision."""

    rule: str
    message: str
    remedy: str


def render(
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> Example:
    """Token ids and loss weights of a conversation.

    The first token is nobody's target and weighs 0. Raises `UserError` where the template can't render the conversation, or
    where the responses can't be found and verified.
    """
    result = render_each([conversation], template, tokenizer, policy, prompt_loss_weight)[0]
    if isinstance(result, UserError):
        raise result
    return result


def render_batch(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> list[Example]:
    """`render` of each conversation, faster: all texts are tokenised in one call. Raises the first error."""
    results = render_each(conversations, template, tokenizer, policy, prompt_loss_weight)
    for result in results:
        if isinstance(result, UserError):
            raise result
    return [result for result in results if isinstance(result, Example)]


def render_each(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> list[Example | UserError]:
    """`render_batch`, with the error in the place of each conversation that can't be rendered."""
    renderer = _renderer(template, tokenizer)
    results: list[Layout | UserError] = []
    for conversation in conversations:
        try:
            _require_answer(conversation, policy)
            results.append(renderer.layout(_plain(conversation.messages), conversation.tools))
        except UserError as error:
            results.append(UserError(f"conversation {conversation.id!r}: {error}") if conversation.id else error)
    ...
