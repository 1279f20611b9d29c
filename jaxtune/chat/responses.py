"""Places of the responses in a rendered chat: by the template's generation marks, else by the prompts before them."""

import bisect
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxtune.chat import thinking
from jaxtune.chat.conversation import PlainChat, PlainMessage, call_name
from jaxtune.chat.cutting import Control
from jaxtune.chat.sandbox import Rendered
from jaxtune.chat.traced import OTHER, Piece

BUILT_IN = "Add `{% generation %}` marks around what the assistant says, or use a built-in template."


class Aside(enum.Enum):
    """Why a response is set aside: its tokens weigh what prompts do. The value completes "message 3 ..."."""

    REASONING = "is shown without its reasoning, so training on it would teach to answer without thinking"
    TEXT = "is shown without the text before its calls, so training on it would teach to leave that out"
    PROMPT = "is not shown as it would be generated, after a prompt that opens or closes a block of reasoning"


class Response(NamedTuple):
    """Characters `start` to `stop` are what the assistant says in message `message`, end-of-turn token included."""

    start: int
    stop: int
    message: int
    aside: Aside | None = None
    """Why nothing is to be learned from it."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """A template's way of writing turns, found by rendering short chats with it."""

    terminators: tuple[tuple[str, ...], ...]
    """End-of-turn sequences, each a run of control tokens, e.g. `("<|im_end|>",)`. The first ends the last turn; a
    second entry exists only where middle turns end differently."""
    header: str = ""
    """What of the generation prompt the template's marks enclose."""
    thinking: str = ""
    """The end of the generation prompt that opens, or opens and closes, a block of reasoning, e.g. `<think>\\n`."""
    closing: str = ""
    """What ends a block of reasoning that the generation prompt opens."""
    revises: bool = False
    """Whether it shows finished turns with calls otherwise than in the prompt for the answer after them."""
    num_last: int = 1
    """The first so many `terminators` end a last turn, and so a generated answer."""

    @property
    def last(self) -> tuple[tuple[str, ...], ...]:
        """The sequences that end a last turn."""
        return self.terminators[: self.num_last]

    @property
    def spelled(self) -> str:
        """The end-of-turn sequences, for messages."""
        return " or ".join(map("".join, self.terminators))


class NotFound(ValueError):
    """The responses of a chat cannot be told; the argument says why, and what to do."""


def marked_responses(
    rendered: Rendered, controls: Sequence[Control], chat: PlainChat, learned: Learned, *, exact: bool
) -> list[Response]:
    """The responses as the template marks them; each assistant message must have one. Raises `NotFound`."""
    speakers = chat.speakers
    blocks = blocks_of(rendered.pieces)
    owners = [min(block.sources, default=None) for block in blocks]
    strangers = [source for block in blocks for source in block.sources if source not in speakers]
    if strangers or any(len(block.sources) > 1 for block in blocks) or len(blocks) != len(speakers):
        raise NotFound(
            f"it marks {len(blocks)} generation blocks for {len(speakers)} assistant messages, or encloses text of "
            "other messages. Put one block around the text of each assistant message."
        )
    if any(owner not in (None, speaker) for owner, speaker in zip(owners, speakers, strict=True)):
        raise NotFound("it changes the order of the assistant messages. Use another template.")
    if exact:
        return [Response(b.start, b.stop, i) for b, i in zip(blocks, speakers, strict=True)]
    return [_trim(rendered, controls, b, i, learned) for b, i in zip(blocks, speakers, strict=True)]


def _trim(
    rendered: Rendered, controls: Sequence[Control], block: "GenerationBlock", message: int, learned: Learned
) -> Response:
    """The marked text without the generation prompt, up to and with the end-of-turn token.

    Set aside where the prompt's block of reasoning stands neither right before it nor, closed, somewhere before it.
    """
    inside = rendered.text.startswith(learned.header, block.start)
    start = block.start + (len(learned.header) if inside else 0)
    end = terminator_after(controls, max(start, block.last), learned)
    if end is None or end.start > block.stop:
        raise NotFound(
            f"no end-of-turn token ({learned.spelled}) stands in or right after the generation block "
            f"of message {message}, so the model could never learn to stop. Put it inside the block."
        )
    before = rendered.text[:start]
    as_asked = before.endswith(learned.thinking) or (learned.closing and thinking.is_closed(before))
    return Response(start, end.stop, message, None if as_asked else Aside.PROMPT)


def derived_response(
    rendered: Rendered,
    controls: Sequence[Control],
    chat: PlainChat,
    message: int,
    learned: Learned,
    prompt: Callable[[PlainChat], Rendered],
) -> Response:
    """The response of a template without marks: from the end of the generation prompt to the end-of-turn token.

    `prompt` renders a chat with a generation prompt. Raises `NotFound`.
    """
    first, _ = extent(rendered.pieces, message)
    last = text_end(rendered.pieces, message, chat.messages[message])
    before = prompt(chat.before(message))
    start, aside = prompt_end(rendered, before, first), None
    if start is None and learned.thinking:
        start, aside = turn_start(rendered, before, first), Aside.PROMPT
    if start is None:
        raise NotFound(
            f"it has no generation marks, and the text before message {message} differs from the prompt that a "
            f"model would be given there, so what it should say can't be told. {BUILT_IN}"
        )
    end = terminator_after(controls, max(start, last), learned)
    starts = (extent(rendered.pieces, i)[0] for i in range(message + 1, len(chat.messages)))
    later = min((start for start in starts if start > 0), default=None)
    if end is None or (later is not None and end.start >= later):
        after = rendered.text[max(start, last) : later].strip()[:40]
        found = f", but {after!r}: only a token of the tokenizer can end a turn" if after else ""
        raise NotFound(
            f"it has no generation marks, and no end-of-turn token ({learned.spelled}) follows "
            f"message {message}{found}. {BUILT_IN}"
        )
    return Response(start, end.stop, message, aside)


def require_complete(pieces: Sequence[Piece], chat: PlainChat) -> None:
    """Raise `NotFound` for a template that leaves out a message, a tool call or the tools."""
    written: dict[int, list[str]] = {}
    for text, source, _ in pieces:
        if source is not None:
            written.setdefault(source, []).append(text)
    for i, message in enumerate(chat.messages):
        text = "".join(written.get(i, []))
        calls = [call_name(call) for call in message.get("tool_calls") or []]
        if (message["content"].strip() and not text) or not all(call in text for call in calls):
            part = "the tool calls of " if text or not message["content"].strip() else ""
            raise NotFound(
                f"it leaves out {part}message {i} (role {message['role']}). Remove it from the conversation, or "
                "use a template that has a place for it."
            )
    if chat.tools and OTHER not in written:
        raise NotFound(
            "it has no place for tool declarations. Remove `tools` from the conversation, or use a template that "
            "has one."
        )


def require_apart(found: Sequence[Response]) -> None:
    """Raise `NotFound` for responses that share characters."""
    for before, after in zip(found, found[1:], strict=False):
        if before.stop > after.start:
            raise NotFound(f"the responses of messages {before.message} and {after.message} overlap. {BUILT_IN}")


def terminator_after(controls: Sequence[Control], position: int, learned: Learned) -> Control | None:
    """The first end-of-turn sequence at or after a character, as one stretch."""
    for i in range(bisect.bisect_left(controls, position, key=lambda control: control.start), len(controls)):
        for strings in learned.terminators:
            if tuple(control.string for control in controls[i : i + len(strings)]) == strings:
                return Control(controls[i].start, controls[i + len(strings) - 1].stop, "".join(strings))
    return None


@dataclasses.dataclass
class GenerationBlock:
    """A generation block: its characters, the messages in it, and where the last character of a message ends."""

    start: int
    stop: int
    sources: set[int]
    last: int


def blocks_of(pieces: Sequence[Piece]) -> list[GenerationBlock]:
    """Generation blocks in order. One that touches the block before it and holds no message belongs to that one."""
    found: list[GenerationBlock] = []
    start, previous = 0, 0
    for text, source, block in pieces:
        stop = start + len(text)
        if block:
            if block != previous:
                found.append(GenerationBlock(start, stop, set(), 0))
            found[-1].stop = stop
            if source is not None and source != OTHER:
                found[-1].sources.add(source)
                found[-1].last = stop
        start, previous = stop, block
    merged: list[GenerationBlock] = []
    for block in found:
        if merged and not block.sources and merged[-1].stop == block.start:
            merged[-1].stop = block.stop
        else:
            merged.append(block)
    return merged


def extent(pieces: Sequence[Piece], message: int) -> tuple[int, int]:
    """First character and end of a message's text; (-1, -1) if it has none."""
    start, first, last = 0, -1, -1
    for text, source, _ in pieces:
        if source == message and text:
            first = start if first < 0 else first
            last = start + len(text)
        start += len(text)
    return first, last


def text_end(pieces: Sequence[Piece], message: int, plain: PlainMessage) -> int:
    """End of a message's last character, or, in a message with calls, of the piece that completes them.

    A template may leave out the text before the calls, and may name a call's function once more, in the header of the
    tool's turn.
    """
    _, last = extent(pieces, message)
    whole = thinking.squash("".join(text for text, source, _ in pieces if source == message))
    wanted = [thinking.squash(text) for text in _call_texts(plain)] if plain.get("tool_calls") else []
    wanted = [text for text in wanted if text in whole]
    start, written = 0, ""
    for text, source, _ in pieces:
        start += len(text)
        if source == message and wanted:
            written += thinking.squash(text)
            if all(part in written for part in wanted):
                return start
    return last


def _call_texts(plain: PlainMessage) -> Iterator[str]:
    """The content of a message, the names of its calls, and the names of their arguments."""
    yield plain["content"]
    for call in plain["tool_calls"]:
        yield call_name(call)
        arguments = call.get("function", call).get("arguments")
        yield from arguments if isinstance(arguments, Mapping) else ()


def prompt_end(rendered: Rendered, prompt: Rendered, first: int) -> int | None:
    """Position after the generation prompt; `first` is where the message's own text begins.

    A template may move text (a system message, say) when messages are added, so that the prompt is no prefix. Then what
    stands between the last user text before the message and the message must begin with what ends the prompt.
    """
    if rendered.text.startswith(prompt.text):
        return len(prompt.text)
    if first < 0:
        return None
    before = max((stop for stop in _user_stops(rendered.pieces) if stop <= first), default=0)
    tail = prompt.text[max(_user_stops(prompt.pieces), default=0) :]
    return before + len(tail) if rendered.text[before:first].startswith(tail) else None


def turn_start(rendered: Rendered, prompt: Rendered, first: int) -> int | None:
    """`prompt_end` for a prompt whose block of reasoning the text does not repeat: where that block would stand."""
    part = thinking.thinking_part(prompt.text)
    if not part:
        return None
    head = Rendered(prompt.text[: -len(part)], pieces_before(prompt.pieces, len(prompt.text) - len(part)))
    return prompt_end(rendered, head, first)


def pieces_before(pieces: Sequence[Piece], stop: int) -> tuple[Piece, ...]:
    """The pieces of the first `stop` characters."""
    return _pieces_between(pieces, 0, stop)


def pieces_from(pieces: Sequence[Piece], start: int) -> tuple[Piece, ...]:
    """The pieces of the characters from `start` on."""
    return _pieces_between(pieces, start, sum(len(text) for text, _, _ in pieces))


def _pieces_between(pieces: Sequence[Piece], start: int, stop: int) -> tuple[Piece, ...]:
    kept: list[Piece] = []
    begin = 0
    for text, source, block in pieces:
        low, high = max(start - begin, 0), min(stop - begin, len(text))
        if low < high:
            kept.append((text[low:high], source, block))
        begin += len(text)
    return tuple(kept)


def _user_stops(pieces: Sequence[Piece]) -> list[int]:
    """Where each stretch of user text ends."""
    stops: list[int] = []
    start = 0
    for text, source, _ in pieces:
        start += len(text)
        if source is not None and text:
            stops.append(start)
    return stops
