"""The proof of supervision: what an example trains on is what the assistant's messages say, and nothing else."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxtune.batch import Example
from jaxtune.chat.conversation import Conversation, Message, plain_chat
from jaxtune.chat.layout import Renderer
from jaxtune.chat.rendering import render_prompt, renderer_of
from jaxtune.chat.template import ChatTemplate
from jaxtune.chat.tokenizer import After, Tokenizer
from jaxtune.chat.weights import MaskPolicy, trained_messages


@dataclasses.dataclass(frozen=True)
class Violation:
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
) -> list[Violation]:
    """Prove the supervision of a rendered example from its tokens and weights alone; empty if all holds.

    Rules: BOS is not doubled; the tokens decode to one full render of the conversation; and, where responses train,
    there is one run of trained tokens for each message that trains, which decodes to what the message says and ends
    with an end-of-turn token; what stands before the last one is the prompt that a model is given. The whole text is
    compared without white space and Unicode normal forms, which tokenizers change. Under `exact_marks` the runs are the
    template author's choice and are not compared with the messages.

    Give it the example as rendered, before a length policy cuts it.
    """
    renderer = renderer_of(template, tokenizer)
    plain = plain_chat(conversation)
    tokens = example.tokens.tolist()
    problems: list[Violation] = []
    if tokenizer.bos_id is not None and tokens[:2] == [tokenizer.bos_id] * 2:
        problems.append(Violation("double-bos", "two BOS tokens begin the example", "write BOS once in the template"))
    ends = [tokenizer.controls.ids[strings[-1]] for strings in renderer.learned.terminators]
    runs = _runs(example, prompt_loss_weight, ends)
    edges = [0, *(edge for run in runs for edge in run), len(tokens)]
    parts = [tokenizer.decode(tokens[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    decoded, text = "".join(parts), renderer.text(plain)
    if decoded != text and _squash(decoded) != _squash(text):
        remedy = "use a tokenizer that can spell this text"
        problems.append(Violation("text", "the tokens do not decode to the rendered conversation", remedy))
    if policy in (MaskPolicy.COMPLETION, MaskPolicy.ALL) or template.exact_marks:
        return problems
    trained = trained_messages(conversation.messages, policy, prompt_loss_weight)
    if len(runs) != len(trained):
        found = f"{len(runs)} runs of trained tokens for {len(trained)} assistant messages"
        return [*problems, Violation("responses", found, "correct the generation marks of the template")]
    for (start, stop), said, index in zip(runs, parts[1::2], trained, strict=True):
        message, weights = conversation.messages[index], example.loss_weights[start:stop]
        problems += _check_response(tokens[start:stop], weights, said, index, message, renderer, tokenizer)
    if trained and trained[-1] == len(plain.messages) - 1:
        prompt = renderer.text(plain.before(len(plain.messages) - 1), generation_prompt=True)
        shown, before = "".join(parts[: 2 * len(runs) - 1]), tokens[: runs[-1][0]]
        if shown != prompt and before != render_prompt(conversation, template, tokenizer):
            found = "the text before the last response is not the prompt that a model is given"
            problems.append(Violation("prompt", found, "correct the template's generation prompt or its marks"))
    return problems


def _check_response(
    tokens: list[int],
    weights: Float[np.ndarray, " length"],
    said: str,
    index: int,
    message: Message,
    renderer: Renderer,
    tokenizer: Tokenizer,
) -> list[Violation]:
    """The rules for one run of trained tokens, which decodes to `said`, and the message it stands for."""
    problems: list[Violation] = []
    if tokenizer.piece(tokens[-1]) not in [strings[-1] for strings in renderer.learned.terminators]:
        remedy = "put the end-of-turn token into the generation block"
        problems.append(Violation("end-of-turn", f"message {index} does not end with an end-of-turn token", remedy))
    stated = 1.0 if message.weight is None else message.weight
    if (weights != np.float32(stated)).any():
        found = f"message {index} does not weigh {stated:g} throughout"
        problems.append(Violation("weight", found, "render it again"))
    if not _says(tokens, said, renderer, message, tokenizer):
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


def _says(tokens: list[int], said: str, renderer: Renderer, message: Message, tokenizer: Tokenizer) -> bool:
    """Whether a run of tokens, which decodes to `said`, is what a message says, and its end.

    A template may trim the text and write something before it. Reasoning and tool calls, which templates write in their
    own forms, must be there; their form is not compared. Ids are compared where decoding changes white space.
    """
    for strings in renderer.learned.terminators:
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
