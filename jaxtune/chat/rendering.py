"""Conversations and chat templates: from messages to token ids with a loss weight for each.

A template is rendered once over the whole conversation, with the source of every character known. Then:

1. The *response* of an assistant message is what follows the generation prompt up to and with the end-of-turn token. It
   is found by the template's `{% generation %}` marks, else by rendering the messages before it with a generation
   prompt, and verified.
2. Control strings that the template wrote become control tokens; the same characters in a user's text stay text.
3. The text between control tokens is tokenised, cut at the ends of responses. So no token holds both prompt and
   response, and `render_prompt` is an exact prefix of `render`. Where one token of the uncut text would straddle the
   cut (the prompt ends in a newline and the response begins with one), the ids differ from those of the uncut text,
   on purpose: at generation the prompt is tokenised alone, too.
"""

import bisect
import dataclasses
import enum
import functools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune.batch import Example
from jaxtune.chat.layout import Layout, Renderer
from jaxtune.chat.template import TEMPLATES, ChatTemplate, load_template
from jaxtune.chat.tokenizer import After, Tokenizer
from jaxtune.errors import UserError

__all__ = [
    "ROLES",
    "TEMPLATES",
    "ChatTemplate",
    "Conversation",
    "MaskPolicy",
    "Message",
    "Problem",
    "check",
    "load_template",
    "render",
    "render_batch",
    "render_each",
    "render_prompt",
    "render_text",
    "terminator_id",
]

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


class MaskPolicy(enum.Enum):
    """Which tokens train with weight 1 (times the message's own weight). All others carry `prompt_loss_weight`."""

    ASSISTANT = "assistant"  # every assistant response with its end-of-turn token
    LAST_ASSISTANT = "last_assistant"  # the last assistant response only
    COMPLETION = "completion"  # all text from the response to the last user message on, tool results included
    ALL = "all"  # every token


def render(
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> Example:
    """Token ids and loss weights of a conversation.

    The first token is nobody's target and weighs 0. Raises `UserError` where the template can't render the
    conversation, or where the responses can't be found and verified.
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
    if not 0 <= prompt_loss_weight < float("inf"):
        raise UserError(f"prompt_loss_weight is {prompt_loss_weight}; it must be a finite number of at least 0.")
    renderer = _renderer(template, tokenizer)
    conversations = list(conversations)
    layouts = [_layout(renderer, conversation, policy) for conversation in conversations]
    encoded = iter(renderer.encode([layout.segments for layout in layouts if isinstance(layout, Layout)]))
    results: list[Example | UserError] = []
    for conversation, layout in zip(conversations, layouts, strict=True):
        if isinstance(layout, UserError):
            results.append(layout)
            continue
        weights = _segment_weights(layout, conversation.messages, policy, prompt_loss_weight)
        results.append(_assemble(next(encoded), weights))
    return results


def render_prompt(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """Ids up to and with the generation prompt; a last assistant message is left off.

    For a conversation that ends with an assistant message they are exactly the first ids of `render`.
    """
    messages = list(conversation.messages)
    if messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages:
        raise UserError("a conversation needs a message before the answer. Add the user's message.")
    renderer = _renderer(template, tokenizer)
    layout = renderer.layout(_plain(messages), conversation.tools, generation_prompt=True)
    return [token for ids in renderer.encode([layout.segments])[0] for token in ids]


def render_text(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The text of the whole conversation as the template writes it."""
    return _renderer(template, tokenizer).layout(_plain(conversation.messages), conversation.tools).text


def terminator_id(template: ChatTemplate, tokenizer: Tokenizer) -> int:
    """The (last) token that ends an answer: what generation stops at, and the `eos_token_id` of an exported model."""
    return tokenizer.controls.ids[_renderer(template, tokenizer).terminators[0][-1]]


@functools.lru_cache(maxsize=64)
def _renderer(template: ChatTemplate, tokenizer: Tokenizer) -> Renderer:
    return Renderer(
        template.name,
        template.source,
        tokenizer,
        variables=dict(template.variables),
        today=template.today,
        exact_marks=template.exact_marks,
    )


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates see them: fields that are not given are absent."""
    return [_plain_message(message) for message in messages]


def _plain_message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning is not None:
        plain |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    for name in ("tool_calls", "name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    return plain


def _layout(renderer: Renderer, conversation: Conversation, policy: MaskPolicy) -> Layout | UserError:
    try:
        if not conversation.messages:
            raise UserError("the conversation has no messages. Remove the record.")
        if policy is not MaskPolicy.ALL and not any(m.role == "assistant" for m in conversation.messages):
            raise UserError(
                "the conversation has no assistant message, so nothing trains. Add the answer, or remove it."
            )
        return renderer.layout(_plain(conversation.messages), conversation.tools)
    except UserError as error:
        return UserError(f"conversation {conversation.id!r}: {error}") if conversation.id else error


def _segment_weights(
    layout: Layout, messages: Sequence[Message], policy: MaskPolicy, prompt_loss_weight: float
) -> list[float]:
    """The loss weight of each segment; a segment lies wholly inside or outside a response."""
    weights = [1.0 if policy is MaskPolicy.ALL else prompt_loss_weight] * len(layout.segments)
    starts = [segment.start for segment in layout.segments]
    trained = layout.responses[-1:] if policy is MaskPolicy.LAST_ASSISTANT else layout.responses
    if policy is MaskPolicy.COMPLETION:
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        trained = tuple(response for response in layout.responses if response.message > last_user)
        if trained:
            low, high = bisect.bisect_left(starts, trained[0].start), bisect.bisect_left(starts, trained[-1].stop)
            weights[low:high] = [1.0] * (high - low)
    for response in trained:
        low, high = bisect.bisect_left(starts, response.start), bisect.bisect_left(starts, response.stop)
        weight = messages[response.message].weight
        weights[low:high] = [1.0 if weight is None else float(weight)] * (high - low)
    return weights


def _assemble(encoded: Sequence[Sequence[int]], weights: Sequence[float]) -> Example:
    tokens = np.array([token for ids in encoded for token in ids], np.int32)
    loss_weights = np.repeat(np.array(weights, np.float32), [len(ids) for ids in encoded])
    loss_weights[:1] = 0.0
    return Example(tokens=tokens, loss_weights=loss_weights)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A broken rule of supervision."""

    rule: str
    message: str
    remedy: str


def check(
    example: Example,
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> list[Problem]:
    """Prove the supervision of a rendered example from its tokens and weights alone; empty if all holds.

    Rules: BOS is not doubled; the tokens decode to one full render of the conversation; and, where responses train,
    there is one run of trained tokens for each message that trains, which decodes to what the message says and ends
    with an end-of-turn token; what stands before the last one is the prompt that a model is given. The whole text is
    compared without white space and Unicode normal forms, which tokenizers change. Under `exact_marks` the runs are the
    template author's choice and are not compared with the messages.

    Give it the example as rendered, before a length policy cuts it.
    """
    renderer = _renderer(template, tokenizer)
    plain = _plain(conversation.messages)
    tokens = example.tokens.tolist()
    problems: list[Problem] = []
    if tokenizer.bos_id is not None and tokens[:2] == [tokenizer.bos_id] * 2:
        problems.append(Problem("double-bos", "two BOS tokens begin the example", "write BOS once in the template"))
    ends = [tokenizer.controls.ids[strings[-1]] for strings in renderer.terminators]
    runs = _runs(example, prompt_loss_weight, ends)
    edges = [0, *(edge for run in runs for edge in run), len(tokens)]
    parts = [tokenizer.decode(tokens[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    decoded, text = "".join(parts), renderer.text(plain, conversation.tools)
    if decoded != text and _squash(decoded) != _squash(text):
        remedy = "use a tokenizer that can spell this text"
        problems.append(Problem("text", "the tokens do not decode to the rendered conversation", remedy))
    if policy in (MaskPolicy.COMPLETION, MaskPolicy.ALL) or template.exact_marks:
        return problems
    trained = _trained_messages(conversation.messages, policy, prompt_loss_weight)
    if len(runs) != len(trained):
        found = f"{len(runs)} runs of trained tokens for {len(trained)} assistant messages"
        return [*problems, Problem("responses", found, "correct the generation marks of the template")]
    for (start, stop), said, index in zip(runs, parts[1::2], trained, strict=True):
        message, weights = conversation.messages[index], example.loss_weights[start:stop]
        problems += _check_response(tokens[start:stop], weights, said, index, message, renderer, tokenizer)
    if trained and trained[-1] == len(plain) - 1:
        prompt = renderer.text(plain[:-1], conversation.tools, generation_prompt=True)
        shown, before = "".join(parts[: 2 * len(runs) - 1]), tokens[: runs[-1][0]]
        if shown != prompt and before != render_prompt(conversation, template, tokenizer):
            found = "the text before the last response is not the prompt that a model is given"
            problems.append(Problem("prompt", found, "correct the template's generation prompt or its marks"))
    return problems


def _check_response(
    tokens: list[int],
    weights: Float[np.ndarray, " length"],
    said: str,
    index: int,
    message: Message,
    renderer: Renderer,
    tokenizer: Tokenizer,
) -> list[Problem]:
    """The rules for one run of trained tokens, which decodes to `said`, and the message it stands for."""
    problems: list[Problem] = []
    if tokenizer.piece(tokens[-1]) not in [strings[-1] for strings in renderer.terminators]:
        remedy = "put the end-of-turn token into the generation block"
        problems.append(Problem("end-of-turn", f"message {index} does not end with an end-of-turn token", remedy))
    stated = 1.0 if message.weight is None else message.weight
    if (weights != np.float32(stated)).any():
        found = f"message {index} does not weigh {stated:g} throughout"
        problems.append(Problem("weight", found, "render it again"))
    if not _says(tokens, said, renderer, message, tokenizer):
        remedy = "correct the generation marks of the template"
        problems.append(Problem("response-text", f"what trains is not what message {index} says", remedy))
    return problems


def _trained_messages(messages: Sequence[Message], policy: MaskPolicy, prompt_loss_weight: float) -> list[int]:
    """Assistant messages whose tokens weigh other than prompts do."""
    speakers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    speakers = speakers[-1:] if policy is MaskPolicy.LAST_ASSISTANT else speakers
    return [i for i in speakers if (1.0 if messages[i].weight is None else messages[i].weight) != prompt_loss_weight]


def _runs(example: Example, prompt_loss_weight: float, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Stretches of tokens that weigh other than prompts do; a stretch also ends after an end-of-turn token."""
    trained = np.zeros(len(example.tokens) + 2, bool)  # with a gap at either end
    trained[2:-1] = example.loss_weights[1:] != np.float32(prompt_loss_weight)
    ended = np.zeros(len(trained), bool)
    for end in ends:
        ended[2:-1] |= example.tokens[:-1] == end
    starts = np.flatnonzero(trained[1:] & (~trained[:-1] | ended[1:]))
    stops = np.flatnonzero(trained[:-1] & (~trained[1:] | ended[1:]))
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _says(tokens: list[int], said: str, renderer: Renderer, message: Message, tokenizer: Tokenizer) -> bool:
    """Whether a run of tokens, which decodes to `said`, is what a message says, and its end.

    A template may trim the text and write something before it. Reasoning and tool calls, which templates write in their
    own forms, must be there; their form is not compared. Ids are compared where decoding changes white space.
    """
    for strings in renderer.terminators:
        if said.endswith("".join(strings)):
            said, tokens = said.removesuffix("".join(strings)), tokens[: -len(strings)]
    content = message.content or ""
    if message.reasoning is not None or message.tool_calls or "</think>" in content:
        shown = content.split("</think>")[-1]  # templates drop the reasoning of earlier turns
        names = [str(call.get("function", call).get("name", "")) for call in message.tool_calls or ()]
        return all(_squash(part) in _squash(said) for part in (shown, *names))
    texts = [
        opening + text for opening in renderer.openings for text in (content, content.strip(), content.lstrip("\n"))
    ]
    return said in texts or any(
        tokens == tokenizer.encode(text, after=after) for text in texts for after in (After.TEXT, After.CONTROL)
    )


def _squash(text: str) -> str:
    """Text without what tokenizers may change: white space and Unicode normal forms."""
    return "".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).split())
