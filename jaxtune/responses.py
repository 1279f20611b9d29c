"""Where the assistant's responses stand in a rendered chat, which characters are control tokens, and how the text is cut.

Works on one template with one tokenizer. Knows messages as plain dicts; `chat` gives them their types.
"""

import bisect
import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune import jinja
from jaxtune.errors import UserError
from jaxtune.provenance import OTHER, Piece, trace_all
from jaxtune.tokenizer import After, Tokenizer

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_BUILT_IN = "Add `{% generation %}` marks around what the assistant says, or use a built-in template."

PlainMessage = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Response:
    """Characters `start` to `stop` of the text are what the assistant says in message `message`, terminator included."""

    start: int
    stop: int
    message: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the text that is tokenised on its own, or one control token."""

    start: int
    text: str
    """What is tokenised; empty for a control token."""
    control: int | None
    after: After
    fixed: bool
    """Written by the template alone, so worth keeping once tokenised."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rendered chat, taken apart."""

    text: str
    responses: tuple[Response, ...]
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class _Control:
    start: int
    stop: int
    string: str


class Renderer:
    """Renders chats with one template for one tokenizer."""

    def __init__(
        self,
        name: str,
        source: str,
        tokenizer: Tokenizer,
        *,
        variables: Mapping[str, Any],
        today: datetime.date,
        exact_marks: bool,
    ):
        self.name = name
        self._today = today
        self._controls = tokenizer.controls
        self._template = jinja.compile_template(source, name)
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._variables = {key: tokenizer.piece(token) for key, token in ids.items() if token is not None}
        self._variables |= {key: trace_all(value, OTHER) for key, value in variables.items()}
        self._marked = _MARKS.search(source) is not None
        self._exact = exact_marks and self._marked
        self._header = ""
        self._terminators: tuple[str, ...] = ()
        self._probe()

    @property
    def terminator(self) -> str:
        """The control token that ends the last assistant message."""
        return self._terminators[0]

    def layout(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> Layout:
        """Render `messages` and take the text apart. Raises `UserError` where responses can't be found and verified."""
        rendered = self._render(messages, tools, generation_prompt)
        self._require_complete(rendered.pieces, messages, tools)
        controls = self._find_controls(rendered, messages, tools)
        responses = self._find_responses(rendered, controls, messages, tools)
        cuts = {edge for response in responses for edge in (response.start, response.stop)}
        return Layout(rendered.text, tuple(responses), tuple(self._cut(rendered, controls, cuts)))

    def _render(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] | None, generation_prompt: bool
    ) -> jinja.Rendered:
        traced = [
            {key: value if key == "role" else trace_all(value, i) for key, value in message.items()}
            for i, message in enumerate(messages)
        ]
        variables = self._variables | {
            "messages": traced,
            "tools": None if tools is None else trace_all(tools, OTHER),
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        given = sum(len(message["content"]) for message in messages)
        return jinja.render(self._template, self.name, variables, today=self._today, given_chars=given)

    def _probe(self) -> None:
        """Learn the end-of-turn tokens, and what of the generation prompt the marks enclose, from two short chats."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        terminators: list[str] = []
        for messages in (chat, chat + chat):
            rendered = self._render(messages, None, False)
            controls = self._find_controls(rendered, messages, None)
            _, end = _extent(rendered.pieces, 1)
            found = next((control.string for control in controls if control.start >= end > 0), None)
            if found is None:
                raise UserError(
                    f"chat template {self.name!r}: no control token of this tokenizer follows the assistant's text, so the "
                    "model could never learn to stop. Use the tokenizer that belongs to the template, or another template."
                )
            terminators.append(found)
        self._terminators = tuple(dict.fromkeys(terminators))
        rendered = self._render(chat, None, False)
        blocks = _blocks(rendered.pieces)
        if self._marked and not self._exact and blocks:
            prompt = self._render(chat[:1], None, True).text
            if rendered.text.startswith(prompt):
                self._header = rendered.text[blocks[0].start : len(prompt)]

    def _require_complete(
        self, pieces: Sequence[Piece], messages: Sequence[PlainMessage], tools: Sequence[Any] | None
    ) -> None:
        """Refuse a template that leaves out a message, a tool call or the tools."""
        written: dict[int, list[str]] = {}
        for text, source, _ in pieces:
            if source is not None:
                written.setdefault(source, []).append(text)
        for i, message in enumerate(messages):
            text = "".join(written.get(i, []))
            calls = [_call_name(call) for call in message.get("tool_calls") or []]
            if (message["content"].strip() and not text) or not all(call in text for call in calls):
                part = "the tool calls of " if text or not message["content"].strip() else ""
                raise UserError(
                    f"chat template {self.name!r} leaves out {part}message {i} (role {message['role']}). "
                    "Remove it from the conversation, or use a template that has a place for it."
                )
        if tools and OTHER not in written:
            raise UserError(
                f"chat template {self.name!r} has no place for tool declarations. "
                "Remove `tools` from the conversation, or use a template for tools."
            )

    def _find_controls(
        self, rendered: jinja.Rendered, messages: Sequence[PlainMessage], tools: Sequence[Any] | None
    ) -> list[_Control]:
        """Control tokens in the text of the template."""
        found: list[_Control] = []
        start = run = 0  # `run`: where the current stretch of template text begins
        for text, source, _ in [*rendered.pieces, ("", OTHER, 0)]:
            if source is not None:
                found += [_Control(*m.span(), m[0]) for m in self._controls.pattern.finditer(rendered.text, run, start)]
                run = start + len(text)
                if text and (match := self._controls.pattern.search(text)):
                    self._require_given(match[0], messages, tools)
            start += len(text)
        return found

    def _require_given(self, control: str, messages: Sequence[PlainMessage], tools: Sequence[Any] | None) -> None:
        """A control string in user text must come from the user: else a string operation blurred the sources."""
        if not any(control in text for text in _strings([messages, tools, self._variables])):
            raise UserError(
                f"chat template {self.name!r} mixes its control token {control!r} with text of the conversation before it "
                "changes the text, so the two can't be told apart. Apply filters to the messages' texts alone."
            )

    def _find_responses(
        self,
        rendered: jinja.Rendered,
        controls: list[_Control],
        messages: Sequence[PlainMessage],
        tools: Sequence[Any] | None,
    ) -> list[Response]:
        speakers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._marked:
            found = self._marked_responses(rendered, controls, speakers)
        else:
            found = [self._derived_response(rendered, controls, messages, tools, i) for i in speakers]
        for before, after in zip(found, found[1:], strict=False):
            if before.stop > after.start:
                raise UserError(
                    f"chat template {self.name!r}: the responses of messages {before.message} and {after.message} overlap. "
                    + _BUILT_IN
                )
        return found

    def _marked_responses(
        self, rendered: jinja.Rendered, controls: list[_Control], speakers: list[int]
    ) -> list[Response]:
        """The responses as the template marks them; each assistant message must have one."""
        blocks = _blocks(rendered.pieces)
        owners = [min(block.sources, default=None) for block in blocks]
        strangers = [source for block in blocks for source in block.sources if source not in speakers]
        if strangers or any(len(block.sources) > 1 for block in blocks) or len(blocks) != len(speakers):
            raise UserError(
                f"chat template {self.name!r} marks {len(blocks)} generation blocks for {len(speakers)} assistant messages, "
                "or encloses text of other messages. Put one block around the text of each assistant message."
            )
        if any(owner not in (None, speaker) for owner, speaker in zip(owners, speakers, strict=True)):
            raise UserError(f"chat template {self.name!r} changes the order of messages. Use another template.")
        if self._exact:
            return [Response(b.start, b.stop, i) for b, i in zip(blocks, speakers, strict=True)]
        return [self._trim(rendered, controls, b, i) for b, i in zip(blocks, speakers, strict=True)]

    def _trim(self, rendered: jinja.Rendered, controls: list[_Control], block: "_Block", message: int) -> Response:
        """The marked text without the generation prompt, up to and with the end-of-turn token."""
        inside = rendered.text.startswith(self._header, block.start)
        start = block.start + (len(self._header) if inside else 0)
        end = self._terminator_after(controls, max(start, block.last))
        if end is None or end.start > block.stop:
            raise UserError(
                f"chat template {self.name!r}: no end-of-turn token ({' or '.join(self._terminators)}) in or right after the "
                f"generation block of message {message}, so the model could never learn to stop. Put it inside the block."
            )
        return Response(start, end.stop, message)

    def _derived_response(
        self,
        rendered: jinja.Rendered,
        controls: list[_Control],
        messages: Sequence[PlainMessage],
        tools: Sequence[Any] | None,
        message: int,
    ) -> Response:
        """The response of a template without marks: from the end of the generation prompt to the end-of-turn token."""
        prompt = self._render(messages[:message], tools, True)
        first, last = _extent(rendered.pieces, message)
        start = _after_prompt(rendered, prompt, first)
        if start is None:
            raise UserError(
                f"chat template {self.name!r} has no generation marks, and the text before message {message} differs from the "
                f"prompt that a model would be given there, so what it should say can't be told. {_BUILT_IN}"
            )
        end = self._terminator_after(controls, max(start, last))
        later = min((e for i in range(message + 1, len(messages)) if (e := _extent(rendered.pieces, i)[0]) > 0), default=None)
        if end is None or (later is not None and end.start >= later):
            raise UserError(
                f"chat template {self.name!r} has no generation marks, and no end-of-turn token "
                f"({' or '.join(self._terminators)}) follows message {message}. {_BUILT_IN}"
            )
        return Response(start, end.stop, message)

    def _terminator_after(self, controls: list[_Control], position: int) -> _Control | None:
        following = bisect.bisect_left(controls, position, key=lambda control: control.start)
        return next((control for control in controls[following:] if control.string in self._terminators), None)

    def _cut(self, rendered: jinja.Rendered, controls: list[_Control], cuts: set[int]) -> list[Segment]:
        """Control tokens, and the text between them cut at `cuts`."""
        segments: list[Segment] = []
        user_text = _user_text(rendered.pieces)
        edges = sorted(cuts)
        begin, after, eat = 0, After.NOTHING, False
        for control in [*controls, None]:
            end = control.start if control else len(rendered.text)
            inner = edges[bisect.bisect_right(edges, begin) : bisect.bisect_left(edges, end)]
            for low, high in zip([begin, *inner], [*inner, end], strict=True):
                text = rendered.text[low:high]
                text = text.lstrip() if eat else text
                if control and high == end and control.string in self._controls.eats_left:
                    text = text.rstrip()
                if text:
                    segments.append(Segment(low, text, None, after, not user_text.overlaps(low, high)))
                    after = After.TEXT
                eat = False
            if control:
                segments.append(Segment(control.start, "", self._controls.ids[control.string], after, True))
                begin, after, eat = control.stop, After.CONTROL, control.string in self._controls.eats_right
        return segments


@dataclasses.dataclass
class _Block:
    """A generation block: its characters, the messages in it, and where the last character of a message ends."""

    start: int
    stop: int
    sources: set[int]
    last: int


def _blocks(pieces: Sequence[Piece]) -> list[_Block]:
    """Generation blocks in order. One that touches the block before it and holds no message belongs to that one."""
    found: list[_Block] = []
    start, previous = 0, 0
    for text, source, block in pieces:
        stop = start + len(text)
        if block:
            if block != previous:
                found.append(_Block(start, stop, set(), 0))
            found[-1].stop = stop
            if source is not None and source != OTHER:
                found[-1].sources.add(source)
                found[-1].last = stop
        start, previous = stop, block
    merged: list[_Block] = []
    for block in found:
        if merged and not block.sources and merged[-1].stop == block.start:
            merged[-1].stop = block.stop
        else:
            merged.append(block)
    return merged


def _extent(pieces: Sequence[Piece], message: int) -> tuple[int, int]:
    """Where the first character of a message stands, and where its last one ends; (-1, -1) if it has none."""
    start, first, last = 0, -1, -1
    for text, source, _ in pieces:
        if source == message and text:
            first = start if first < 0 else first
            last = start + len(text)
        start += len(text)
    return first, last


def _after_prompt(rendered: jinja.Rendered, prompt: jinja.Rendered, first: int) -> int | None:
    """Where the text goes on after the generation prompt; `first` is where the message's own text begins.

    A template may move text (a system message, say) when messages are added. Then only what stands between the last user
    text before the message and the message is compared.
    """
    if rendered.text.startswith(prompt.text):
        return len(prompt.text)
    if first < 0:
        return None
    before = max((stop for stop in _user_text(rendered.pieces).stops if stop <= first), default=0)
    tail = prompt.text[max(_user_text(prompt.pieces).stops, default=0) :]
    return before + len(tail) if rendered.text[before:first].startswith(tail) else None


@dataclasses.dataclass(frozen=True)
class _Intervals:
    starts: list[int]
    stops: list[int]

    def overlaps(self, low: int, high: int) -> bool:
        i = bisect.bisect_right(self.stops, low)
        return i < len(self.starts) and self.starts[i] < high


def _user_text(pieces: Sequence[Piece]) -> _Intervals:
    starts: list[int] = []
    stops: list[int] = []
    start = 0
    for text, source, _ in pieces:
        if source is not None and text:
            starts.append(start)
            stops.append(start + len(text))
        start += len(text)
    return _Intervals(starts, stops)


def _call_name(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    return str(function.get("name", ""))


def _strings(value: Any) -> list[str]:
    """All strings in plain data, keys included, and each container's own text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []
