"""The proof of supervision: what an example trains on is what the assistant's messages say, and nothing else."""

import dataclasses
import os.path
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.batch import Example
from jaxtune.chat import thinking
from jaxtune.chat.conversation import Conversation, Message, call_name, plain_chat, plain_message
from jaxtune.chat.layout import Renderer
from jaxtune.chat.rendering import RenderedExample, as_taken, encode_each, render_prompt, renderer_of
from jaxtune.chat.responses import Response
from jaxtune.chat.template import Bos, ChatTemplate
from jaxtune.chat.tokenizer import After, Tokenizer
from jaxtune.chat.weights import MaskPolicy, stated_weight, trained_messages
from jaxtune.errors import UserError


@dataclasses.dataclass(frozen=True)
class Violation:
    """A broken rule of supervision."""

    rule: str
    message: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Proven:
    """An example whose supervision was checked."""

    example: Example
    violations: tuple[Violation, ...]
    """Broken rules; an example with any must not be trained on."""
    aside: tuple[Response, ...]
    """Responses that carry no weight, because to learn them would be to learn something untrue."""


def render_proven(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> list[Proven | UserError]:
    """`render_each` and `check` in one, each chat laid out once; errors stand in their places."""
    renderer = renderer_of(template, tokenizer)
    results: list[Proven | UserError] = []
    for one in encode_each(renderer, conversations, policy, prompt_loss_weight):
        if isinstance(one, UserError):
            results.append(one)
            continue
        violations = _violations(one, renderer, policy, prompt_loss_weight)
        aside = tuple(response for response in one.layout.responses if response.aside)
        results.append(Proven(one.example, tuple(violations), aside))
    return results


def check(
    example: Example,
    conversation: Conversation,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    policy: MaskPolicy = MaskPolicy.ASSISTANT,
    prompt_loss_weight: float = 0.0,
) -> list[Violation]:
    """Prove the supervision of a rendered example from its tokens and weights; empty if all holds.

    Rules: BOS stands once, where the tokenizer's model wants one; the tokens decode to one full render of the
    conversation; and, where responses train, there is one run of trained tokens for each message that trains, which
    decodes to what the message says and ends with an end-of-turn token; what stands before the last one is the prompt
    that a model is given; no answer begins a second block of reasoning. The whole text is compared without white space
    and Unicode normal forms, which tokenizers change. Under `exact_marks` the runs are the template author's choice and
    are not compared with the messages. Responses that are set aside must not train.

    Give it the example as rendered, before a length policy cuts it. Raises `UserError` as `render` does.
    """
    renderer = renderer_of(template, tokenizer)
    taken = as_taken(conversation, template)
    return _violations(
        RenderedExample(taken, renderer.layout(plain_chat(taken)), example), renderer, policy, prompt_loss_weight
    )


def _violations(
    one: RenderedExample, renderer: Renderer, policy: MaskPolicy, prompt_loss_weight: float
) -> list[Violation]:
    tokenizer, messages = renderer.tokenizer, one.conversation.messages
    tokens = one.example.tokens.tolist()
    trained = trained_messages(one.layout.responses, messages, policy, prompt_loss_weight)
    ends = [tokenizer.controls.ids[strings[-1]] for strings in renderer.learned.terminators]
    runs = _join(_runs(one.example, prompt_loss_weight, ends), [messages[i] for i in trained])
    edges = [0, *(edge for run in runs for edge in run), len(tokens)]
    parts = [tokenizer.decode(tokens[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    problems = [*_check_bos(tokens, renderer), *_check_text("".join(parts), one.layout.text)]
    if policy in (MaskPolicy.COMPLETION, MaskPolicy.ALL) or renderer.exact:
        return problems
    if len(runs) != len(trained):
        found = f"{len(runs)} runs of trained tokens for {len(trained)} assistant messages"
        return [*problems, Violation("responses", found, "correct the generation marks of the template")]
    for (start, stop), before, said, index in zip(runs, parts[:-1:2], parts[1::2], trained, strict=True):
        weights = one.example.loss_weights[start:stop]
        problems += _check_reasoning(before, said, (index, messages[index]))
        problems += _check_response(tokens[start:stop], weights, said, (index, messages[index]), renderer)
    if trained and trained[-1] == len(messages) - 1:
        problems += _check_prompt("".join(parts[: 2 * len(runs) - 1]), tokens[: runs[-1][0]], one, renderer)
    return problems


def _check_bos(tokens: Sequence[int], renderer: Renderer) -> Iterator[Violation]:
    bos = renderer.tokenizer.bos_id
    if bos is None:
        return
    if list(tokens[:2]) == [bos, bos]:
        yield Violation("double-bos", "two BOS tokens begin the example", "write BOS once in the template")
    if renderer.tokenizer.adds_bos and renderer.template.bos is Bos.TEMPLATE and list(tokens[:1]) != [bos]:
        found = (
            f"no BOS begins the example: the template {renderer.template.name!r} writes none, and this tokenizer puts "
            f"{renderer.tokenizer.piece(bos)} before every text"
        )
        yield Violation("no-bos", found, "set --model.bos to `add`, or to `none` if it is meant")


def _check_text(decoded: str, text: str) -> Iterator[Violation]:
    if decoded == text or (wanted := _squash(text)) == (found := _squash(decoded)):
        return
    at = len(os.path.commonprefix([wanted, found]))
    lost, got = wanted[at : at + 8], found[at : at + 8]
    yield Violation(
        "text",
        f"the tokens do not decode to the rendered conversation: {lost!r} becomes {got!r}",
        "remove or replace these characters, or use a tokenizer that can spell them",
    )


def _check_reasoning(before: str, said: str, numbered: tuple[int, Message]) -> Iterator[Violation]:
    """The rule against a second block: a message whose text begins with one, where the template wrote one already."""
    index, message = numbered
    if thinking.begins_with_block(message.content or "") and thinking.is_doubled(before, said):
        yield Violation(
            "double-reasoning",
            f"message {index} begins a block of reasoning after the one that the template writes",
            "give its reasoning in a field (reasoning_content), or use a template that reads it from the text",
        )


def _check_prompt(shown: str, before: list[int], one: RenderedExample, renderer: Renderer) -> Iterator[Violation]:
    """The text `shown`, of tokens `before`, is the prompt for the last message.

    Where marks leave out a block of reasoning that the prompt opens, the block may follow it.
    """
    chat = plain_chat(one.conversation)
    prompt = renderer.text(chat.before(len(chat.messages) - 1), generation_prompt=True)
    if shown == prompt or (renderer.learned.closing and shown.startswith(prompt) and thinking.is_closed(shown)):
        return
    if before != render_prompt(one.conversation, renderer.template, renderer.tokenizer):
        found = "the text before the last response is not the prompt that a model is given"
        yield Violation("prompt", found, "correct the template's generation prompt or its marks")


def _check_response(
    tokens: list[int],
    weights: Float[np.ndarray, " length"],
    said: str,
    numbered: tuple[int, Message],
    renderer: Renderer,
) -> list[Violation]:
    """The rules for one run of trained tokens, which decodes to `said`, and the message it stands for."""
    problems: list[Violation] = []
    index, message = numbered
    tokenizer = renderer.tokenizer
    if tokenizer.piece(tokens[-1]) not in [strings[-1] for strings in renderer.learned.terminators]:
        remedy = "put the end-of-turn token into the generation block"
        problems.append(Violation("end-of-turn", f"message {index} does not end with an end-of-turn token", remedy))
    stated = stated_weight(message)
    if (weights != np.float32(stated)).any():
        found = f"message {index} does not weigh {stated:g} throughout"
        problems.append(Violation("weight", found, "render it again"))
    if not _says(tokens, said, renderer, message):
        remedy = "correct the generation marks of the template"
        problems.append(Violation("response-text", f"what trains is not what message {index} says", remedy))
    return problems


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


def _join(runs: list[tuple[int, int]], messages: Sequence[Message]) -> list[tuple[int, int]]:
    """The runs, one for each message as far as that goes.

    A message with reasoning or calls may have parts that end as turns do, so that its runs touch: they are joined, as
    long as there are more runs than messages.
    """
    excess = len(runs) - len(messages)
    joined: list[tuple[int, int]] = []
    left = list(reversed(runs))
    for message in messages:
        if not left:
            break
        start, stop = left.pop()
        in_parts = bool(message.tool_calls or thinking.reasoning_of(plain_message(message)))
        while in_parts and excess > 0 and left and left[-1][0] == stop:
            stop = left.pop()[1]
            excess -= 1
        joined.append((start, stop))
    return joined + left[::-1]


def _says(tokens: list[int], said: str, renderer: Renderer, message: Message) -> bool:
    """Whether a run of tokens, which decodes to `said`, is what a message says, and its end.

    A template may trim the text and write something before it. Reasoning and tool calls, which templates write in their
    own forms, must be there; their form is not compared. Ids are compared where decoding changes white space.
    """
    for strings in renderer.learned.terminators:
        if said.endswith("".join(strings)):
            said, tokens = said.removesuffix("".join(strings)), tokens[: -len(strings)]
    content, plain = message.content or "", plain_message(message)
    if message.tool_calls or thinking.reasoning_of(plain) or thinking.answer_of(plain) != content:
        names = [call_name(call) for call in message.tool_calls or ()]
        thoughts = () if renderer.marked else (thinking.reasoning_of(plain),)  # marks may leave them to the context
        wanted = (*thoughts, thinking.answer_of(plain), *names)
        return all(_squash(part) in _squash(said) for part in wanted)
    texts = [
        opening + text for opening in renderer.openings for text in (content, content.strip(), content.lstrip("\n"))
    ]
    return said in texts or any(
        tokens == renderer.tokenizer.encode(text, after=after)
        for text in texts
        for after in (After.TEXT, After.CONTROL)
    )


def _squash(text: str) -> str:
    """Text without what tokenizers may change: white space and Unicode normal forms."""
    return "".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).split())
