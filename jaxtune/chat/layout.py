"""Where the responses stand in a rendered chat, which characters are control tokens, and how the text is cut.

Works on one template with one tokenizer. Knows messages as plain dicts; `chat` gives them their types.
"""

import bisect
import dataclasses
import datetime
import functools
import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.chat import sandbox as jinja
from jaxtune.chat.tokenizer import After, Tokenizer, require_encodable
from jaxtune.chat.traced import OTHER, Piece, trace_all
from jaxtune.errors import UserError

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_BUILT_IN = "Add `{% generation %}` marks around what the assistant says, or use a built-in template."

_SEEN, _SEEN_CHARS = 20_000, 100
"""How many short texts, and of what length, are kept with their ids: the template's own, mostly."""

PlainMessage = Mapping[str, Any]

_PROBE: list[PlainMessage] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Response(NamedTuple):
    """Characters `start` to `stop` are what the assistant says in message `message`, end-of-turn token included."""

    start: int
    stop: int
    message: int


class Segment(NamedTuple):
    """A stretch of the text that is tokenised on its own, or one control token."""

    start: int
    text: str
    """What is tokenised; empty for a control token."""
    control: int | None
    after: After


class Layout(NamedTuple):
    """A rendered chat, taken apart."""

    text: str
    responses: tuple[Response, ...]
    segments: tuple[Segment, ...]


class _Control(NamedTuple):
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
        self._tokenizer = tokenizer
        self._controls = tokenizer.controls
        self._template = jinja.compile_template(source, name)
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._special = {key: tokenizer.piece(token) for key, token in ids.items() if token is not None}
        self._given = variables
        self._marked = _MARKS.search(source) is not None
        self._exact = exact_marks and self._marked
        self._header = ""
        self.terminators: list[tuple[str, ...]] = []
        """What ends an assistant message: control tokens in a row. First, what ends the last one of a conversation."""
        self._seen: dict[tuple[After, str], list[int]] = {}
        self._probe()

    def layout(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> Layout:
        """Render `messages` and take the text apart. Raises `UserError` where responses can't be found and verified."""
        rendered = self._render(messages, tools, generation_prompt)
        require_encodable(rendered.text)
        self._require_complete(rendered.pieces, messages, tools)
        controls = self._find_controls(rendered, messages, tools)
        responses = self._find_responses(rendered, controls, messages, tools)
        cuts = {edge for response in responses for edge in (response.start, response.stop)}
        return Layout(rendered.text, tuple(responses), tuple(self._cut(rendered, controls, cuts)))

    def text(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> str:
        """The rendered text alone, without any tracing."""
        variables = self._special | dict(self._given) | {"messages": messages, "tools": tools, "documents": None}
        variables["add_generation_prompt"] = generation_prompt
        given = sum(len(message["content"]) for message in messages)
        return jinja.render(self._template, self.name, variables, today=self._today, given_chars=given).text

    def encode(self, chats: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
        """For each chat, the ids of each of its segments. Texts are tokenised once each, in one call per context."""
        if len(self._seen) > _SEEN:
            self._seen.clear()
        new: dict[After, list[tuple[str, list[int]]]] = {after: [] for after in After}
        seen = dict[tuple[After, str], list[int]]()
        result: list[list[list[int]]] = []
        for chat in chats:
            row: list[list[int]] = []
            for segment in chat:
                key = (segment.after, segment.text)
                if segment.control is not None:
                    ids = [segment.control]
                elif (ids := self._seen.get(key) or seen.get(key)) is None:  # filled below, wherever it is shared
                    ids = seen[key] = []
                    new[segment.after].append((segment.text, ids))
                row.append(ids)
            result.append(row)
        for after, texts in new.items():
            if texts:
                encoded = self._tokenizer.encode_batch([text for text, _ in texts], after=after)
                for (_, ids), found in zip(texts, encoded, strict=True):
                    ids += found
        self._seen |= {key: ids for key, ids in seen.items() if len(key[1]) <= _SEEN_CHARS}
        return result

    def _render(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] | None, generation_prompt: bool
    ) -> jinja.Rendered:
        traced = [
            {key: value if key == "role" else trace_all(value, i) for key, value in message.items()}
            for i, message in enumerate(messages)
        ]
        variables = self._special | {key: trace_all(value, OTHER) for key, value in self._given.items()}
        variables |= {
            "messages": traced,
            "tools": None if tools is None else trace_all(tools, OTHER),
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        given = sum(len(message["content"]) for message in messages)
        return jinja.render(self._template, self.name, variables, today=self._today, given_chars=given)

    def _spell_terminators(self) -> str:
        return " or ".join(map("".join, self.terminators))

    def _error(self, text: str) -> UserError:
        return UserError(f"chat template {self.name!r}: {text}")

    def _probe(self) -> None:
        """Learn the end-of-turn tokens, and what of the generation prompt the marks enclose, from two short chats."""
        last, middle = (self._tail(messages) for messages in (_PROBE, _PROBE + _PROBE))
        if not last:
            raise self._error(
                "no control token of this tokenizer follows the assistant's text, so the model could never learn "
                "to stop. Use the tokenizer that belongs to the template, or another template."
            )
        common = os.path.commonprefix([last, middle])
        if common or not middle:  # at the end of the text, tokens may follow that end no turn
            self.terminators = [tuple(common or last[:1])]
        else:  # a single control token in a middle turn would be the header of the next turn
            self.terminators = [tuple(last[:1]), *([tuple(middle[:1])] if len(middle) > 1 else [])]
        rendered = self._render(_PROBE, None, False)
        blocks = _blocks(rendered.pieces)
        if self._marked and not self._exact and blocks:
            prompt = self._render(_PROBE[:1], None, True).text
            if rendered.text.startswith(prompt):
                self._header = rendered.text[blocks[0].start : len(prompt)]

    def _tail(self, messages: list[PlainMessage]) -> list[str]:
        """The control tokens that follow the first assistant message, as far as they touch each other."""
        rendered = self._render(messages, None, False)
        _, end = _extent(rendered.pieces, 1)
        limit = _extent(rendered.pieces, 2)[0] if len(messages) > 2 else len(rendered.text)
        tail: list[_Control] = []
        for control in self._find_controls(rendered, messages, None):
            if 0 < end <= control.start < limit and (not tail or tail[-1].stop == control.start):
                tail.append(control)
        return [control.string for control in tail]

    @functools.cached_property
    def openings(self) -> tuple[str, ...]:
        """What the template itself may write between the generation prompt and the text of a message."""
        found = {""}
        for messages in (_PROBE, _PROBE + _PROBE):
            layout = self.layout(messages)
            pieces = self._render(messages, None, False).pieces
            found |= {layout.text[r.start : _extent(pieces, r.message)[0]] for r in layout.responses}
        return tuple(sorted(found, key=len, reverse=True))

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
                raise self._error(
                    f"it leaves out {part}message {i} (role {message['role']}). Remove it from the conversation, or "
                    "use a template that has a place for it."
                )
        if tools and OTHER not in written:
            raise self._error(
                "it has no place for tool declarations. Remove `tools` from the conversation, or use a template that "
                "has one."
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
        if not any(control in text for text in _strings([messages, tools, self._given])):
            raise self._error(
                f"it joins its control token {control!r} to text of the conversation and then changes the whole, so "
                "the two can't be told apart. Apply filters to the messages' texts alone."
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
                raise self._error(
                    f"the responses of messages {before.message} and {after.message} overlap. {_BUILT_IN}"
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
            raise self._error(
                f"it marks {len(blocks)} generation blocks for {len(speakers)} assistant messages, or encloses text of "
                "other messages. Put one block around the text of each assistant message."
            )
        if any(owner not in (None, speaker) for owner, speaker in zip(owners, speakers, strict=True)):
            raise self._error("it changes the order of the assistant messages. Use another template.")
        if self._exact:
            return [Response(b.start, b.stop, i) for b, i in zip(blocks, speakers, strict=True)]
        return [self._trim(rendered, controls, b, i) for b, i in zip(blocks, speakers, strict=True)]

    def _trim(self, rendered: jinja.Rendered, controls: list[_Control], block: "_Block", message: int) -> Response:
        """The marked text without the generation prompt, up to and with the end-of-turn token."""
        inside = rendered.text.startswith(self._header, block.start)
        start = block.start + (len(self._header) if inside else 0)
        end = self._terminator_after(controls, max(start, block.last))
        if end is None or end.start > block.stop:
            raise self._error(
                f"no end-of-turn token ({self._spell_terminators()}) stands in or right after the generation block "
                f"of message {message}, so the model could never learn to stop. Put it inside the block."
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
        first, last = _extent(rendered.pieces, message)
        prompt = self.text(messages[:message], tools, generation_prompt=True)
        if rendered.text.startswith(prompt):
            start = len(prompt)
        else:
            start = _after_moved_prompt(rendered, self._render(messages[:message], tools, True), first)
        if start is None:
            raise self._error(
                f"it has no generation marks, and the text before message {message} differs from the prompt that a "
                f"model would be given there, so what it should say can't be told. {_BUILT_IN}"
            )
        end = self._terminator_after(controls, max(start, last))
        later = min(
            (e for i in range(message + 1, len(messages)) if (e := _extent(rendered.pieces, i)[0]) > 0), default=None
        )
        if end is None or (later is not None and end.start >= later):
            raise self._error(
                f"it has no generation marks, and no end-of-turn token ({self._spell_terminators()}) follows "
                f"message {message}. {_BUILT_IN}"
            )
        return Response(start, end.stop, message)

    def _terminator_after(self, controls: list[_Control], position: int) -> _Control | None:
        for i in range(bisect.bisect_left(controls, position, key=lambda control: control.start), len(controls)):
            for strings in self.terminators:
                if tuple(control.string for control in controls[i : i + len(strings)]) == strings:
                    return _Control(controls[i].start, controls[i + len(strings) - 1].stop, "".join(strings))
        return None

    def _cut(self, rendered: jinja.Rendered, controls: list[_Control], cuts: set[int]) -> list[Segment]:
        """Control tokens, and the text between them cut at `cuts`."""
        segments: list[Segment] = []
        ids, eats_left, eats_right = self._controls.ids, self._controls.eats_left, self._controls.eats_right
        edges = sorted(cuts)
        begin, after, eat = 0, After.NOTHING, False
        for control in [*controls, _Control(len(rendered.text), 0, "")]:
            while begin < control.start:
                while edges and edges[0] <= begin:
                    edges.pop(0)
                end = min(edges[0], control.start) if edges else control.start
                text = rendered.text[begin:end]
                text = text.lstrip() if eat else text
                text = text.rstrip() if end == control.start and control.string in eats_left else text
                if text:
                    segments.append(Segment(begin, text, None, after))
                    after = After.TEXT
                begin, eat = end, False
            if control.string:
                segments.append(Segment(begin, "", ids[control.string], after))
                begin, after, eat = control.stop, After.CONTROL, control.string in eats_right
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


def _after_moved_prompt(rendered: jinja.Rendered, prompt: jinja.Rendered, first: int) -> int | None:
    """Where the text goes on after the generation prompt; `first` is where the message's own text begins.

    For a template that moves text (a system message, say) when messages are added, so that the prompt is no prefix.
    What stands between the last user text before the message and the message must begin with what ends the prompt.
    """
    if first < 0:
        return None
    before = max((stop for stop in _user_stops(rendered.pieces) if stop <= first), default=0)
    tail = prompt.text[max(_user_stops(prompt.pieces), default=0) :]
    return before + len(tail) if rendered.text[before:first].startswith(tail) else None


def _user_stops(pieces: Sequence[Piece]) -> list[int]:
    """Where each stretch of user text ends."""
    stops: list[int] = []
    start = 0
    for text, source, _ in pieces:
        start += len(text)
        if source is not None and text:
            stops.append(start)
    return stops


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
