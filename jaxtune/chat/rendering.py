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

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.batch import Example
from jaxtune.chat import thinking
from jaxtune.chat.conversation import Conversation, plain_chat
from jaxtune.chat.layout import ChatLayout, Renderer
from jaxtune.chat.responses import Aside
from jaxtune.chat.template import ChatTemplate, Reasoning
from jaxtune.chat.tokenizer import Tokenizer
from jaxtune.chat.weights import MaskPolicy, segment_weights, stated_weight
from jaxtune.errors import UserError


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
    renderer = renderer_of(template, tokenizer)
    return [
        result if isinstance(result, UserError) else result.example
        for result in encode_each(renderer, conversations, policy, prompt_loss_weight)
    ]


class RenderedExample(NamedTuple):
    """A conversation with its example, and the layout that the example was made from."""

    conversation: Conversation
    """As the template saw it: without reasoning, where that is taken out."""
    layout: ChatLayout
    example: Example


def encode_each(
    renderer: Renderer, conversations: Iterable[Conversation], policy: MaskPolicy, prompt_loss_weight: float
) -> list[RenderedExample | UserError]:
    """Lay out, tokenise and weigh conversations, all texts in one call; errors stand in their places."""
    if not 0 <= prompt_loss_weight < float("inf"):
        raise UserError(f"prompt_loss_weight is {prompt_loss_weight}; it must be a finite number of at least 0.")
    taken = [as_taken(conversation, renderer.template) for conversation in conversations]
    layouts = [_layout(renderer, conversation, policy) for conversation in taken]
    encoded = iter(renderer.encode([layout.segments for layout in layouts if isinstance(layout, ChatLayout)]))
    results: list[RenderedExample | UserError] = []
    for conversation, layout in zip(taken, layouts, strict=True):
        if isinstance(layout, UserError):
            results.append(layout)
            continue
        weights = segment_weights(layout, conversation.messages, policy, prompt_loss_weight)
        results.append(RenderedExample(conversation, layout, _assemble(next(encoded), weights)))
    return results


def as_taken(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """The conversation as the template is to see it."""
    return thinking.without_reasoning(conversation) if template.reasoning is Reasoning.DROP else conversation


def render_prompt(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """Ids up to and with the generation prompt; a last assistant message is left off.

    For a conversation that ends with an assistant message they are exactly the first ids of `render`.
    """
    messages = list(as_taken(conversation, template).messages)
    if messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages:
        raise UserError("a conversation needs a message before the answer. Add the user's message.")
    renderer = renderer_of(template, tokenizer)
    layout = renderer.layout(plain_chat(dataclasses.replace(conversation, messages=messages)), generation_prompt=True)
    return [token for ids in renderer.encode([layout.segments])[0] for token in ids]


def prompt_text(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The text of the conversation up to and with the generation prompt, as the template writes it."""
    plain = plain_chat(as_taken(conversation, template))
    return renderer_of(template, tokenizer).layout(plain, generation_prompt=True).text


def render_text(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The text of the whole conversation as the template writes it."""
    return renderer_of(template, tokenizer).layout(plain_chat(as_taken(conversation, template))).text


def terminator_id(template: ChatTemplate, tokenizer: Tokenizer) -> int:
    """The (last) token that ends an answer: the `eos_token_id` of an exported model."""
    return tokenizer.controls.ids[renderer_of(template, tokenizer).learned.terminators[0][-1]]


def stop_ids(template: ChatTemplate, tokenizer: Tokenizer, named: Iterable[int] = ()) -> frozenset[int]:
    """Tokens at which generation stops.

    They are all that end a last turn in training, the tokenizer's own end of text, and those that a model folder's
    generation settings `named`: a base model that ends texts otherwise than chats would not stop at the others.
    """
    ends = {tokenizer.controls.ids[strings[-1]] for strings in renderer_of(template, tokenizer).learned.last}
    return frozenset(i for i in (*ends, tokenizer.eos_id, *named) if i is not None)


@functools.lru_cache(maxsize=64)
def renderer_of(template: ChatTemplate, tokenizer: Tokenizer) -> Renderer:
    """The renderer of a template with a tokenizer, made once a process."""
    return Renderer(template, tokenizer)


def _layout(renderer: Renderer, conversation: Conversation, policy: MaskPolicy) -> ChatLayout | UserError:
    try:
        if not conversation.messages:
            raise UserError("the conversation has no messages. Remove the record.")
        if policy is not MaskPolicy.ALL and not any(m.role == "assistant" for m in conversation.messages):
            raise UserError(
                "the conversation has no assistant message, so nothing trains. Add the answer, or remove it."
            )
        layout = renderer.layout(plain_chat(conversation))
        _require_reasoning(layout, conversation, renderer.template)
        return layout
    except UserError as error:
        return UserError(f"conversation {conversation.id!r}: {error}") if conversation.id else error


def _require_reasoning(layout: ChatLayout, conversation: Conversation, template: ChatTemplate) -> None:
    """Refuse a conversation whose last turn, or, where all reasoning is to be kept, any turn would be untrue.

    Other turns are only set aside; of the last one no prompt could make up for what is missing.
    """
    for response in layout.responses:
        last = response.message == len(conversation.messages) - 1
        if response.aside is None or stated_weight(conversation.messages[response.message]) == 0:
            continue
        if last and response.aside is Aside.TEXT:
            raise UserError(
                f"chat template {template.name!r}: it leaves out the text before the calls of message "
                f"{response.message}. Use a template that shows it, or remove that text."
            )
        kept = template.reasoning is Reasoning.KEEP and response.aside is Aside.REASONING
        if last or kept:
            found = "leaves out" if response.aside is Aside.REASONING else "has no place for"
            raise UserError(
                f"chat template {template.name!r}: it {found} the reasoning of message {response.message}. Use a "
                "template that shows it, let this one think (its variables, e.g. `enable_thinking`), or train on "
                + ("answers alone with --data.reasoning drop." if last else "what is shown with --data.reasoning last.")
            )


def _assemble(encoded: Sequence[Sequence[int]], weights: Sequence[float]) -> Example:
    tokens = np.array([token for ids in encoded for token in ids], np.int32)
    loss_weights = np.repeat(np.array(weights, np.float32), [len(ids) for ids in encoded])
    loss_weights[:1] = 0.0
    return Example(tokens=tokens, loss_weights=loss_weights)
