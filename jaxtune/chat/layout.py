"""One template with one tokenizer: chats rendered and taken apart into responses and segments.

Knows messages as plain dicts; `conversation` gives them their types.
"""

import functools
import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.chat import sandbox
from jaxtune.chat.conversation import PlainChat
from jaxtune.chat.cutting import Blurred, Control, Segment, SegmentEncoder, cut, find_controls
from jaxtune.chat.responses import (
    Learned,
    NotFound,
    Response,
    blocks_of,
    derived_response,
    extent,
    marked_responses,
    require_apart,
)
from jaxtune.chat.template import ChatTemplate
from jaxtune.chat.tokenizer import Tokenizer, require_encodable
from jaxtune.chat.traced import OTHER, Piece, trace_all
from jaxtune.errors import UserError

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_USER, _ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_PROBE = PlainChat([_USER, _ASSISTANT])
_LONG_PROBE = PlainChat([_USER, _ASSISTANT, _USER, _ASSISTANT])


class Layout(NamedTuple):
    """A rendered chat, taken apart."""

    text: str
    responses: tuple[Response, ...]
    segments: tuple[Segment, ...]


class Renderer:
    """Renders chats with one template for one tokenizer. Raises `UserError` for a pair that can't work together."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer):
        self._name, self._today = template.name, template.today
        self._controls = tokenizer.controls
        self._template = sandbox.compile_template(template.source, template.name)
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._special = {key: tokenizer.piece(token) for key, token in ids.items() if token is not None}
        self._variables = dict(template.variables)
        self._marked = _MARKS.search(template.source) is not None
        self._exact = template.exact_marks and self._marked
        self._encoder = SegmentEncoder(tokenizer)
        self.learned = self._learn()

    def layout(self, chat: PlainChat, *, generation_prompt: bool = False) -> Layout:
        """Render a chat and take the text apart. Raises `UserError` where responses can't be found and verified."""
        rendered = self._render(chat, generation_prompt)
        require_encodable(rendered.text)
        self._require_complete(rendered.pieces, chat)
        controls = self._find_controls(rendered, chat)
        responses = self._find_responses(rendered, controls, chat)
        edges = {edge for response in responses for edge in (response.start, response.stop)}
        return Layout(rendered.text, tuple(responses), tuple(cut(rendered, controls, self._controls, edges)))

    def text(self, chat: PlainChat, *, generation_prompt: bool = False) -> str:
        """The rendered text alone, without any tracing."""
        variables = self._special | self._variables | {"messages": chat.messages, "tools": chat.tools}
        return self._run(variables, chat, generation_prompt).text

    def encode(self, chats: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
        """For each chat, the ids of each of its segments."""
        return self._encoder.encode(chats)

    @functools.cached_property
    def openings(self) -> tuple[str, ...]:
        """Texts that the template itself may write between the generation prompt and the text of a message."""
        found = {""}
        for chat in (_PROBE, _LONG_PROBE):
            layout = self.layout(chat)
            pieces = self._render(chat).pieces
            found |= {layout.text[r.start : extent(pieces, r.message)[0]] for r in layout.responses}
        return tuple(sorted(found, key=len, reverse=True))

    def _render(self, chat: PlainChat, generation_prompt: bool = False) -> sandbox.Rendered:
        traced = [
            {key: value if key == "role" else trace_all(value, i) for key, value in message.items()}
            for i, message in enumerate(chat.messages)
        ]
        variables = self._special | {key: trace_all(value, OTHER) for key, value in self._variables.items()}
        variables |= {"messages": traced, "tools": None if chat.tools is None else trace_all(chat.tools, OTHER)}
        return self._run(variables, chat, generation_prompt)

    def _run(self, variables: Mapping[str, Any], chat: PlainChat, generation_prompt: bool) -> sandbox.Rendered:
        given = sum(len(message["content"]) for message in chat.messages)
        seen = {**variables, "documents": None, "add_generation_prompt": generation_prompt}
        return sandbox.render(self._template, self._name, seen, today=self._today, given_chars=given)

    def _error(self, text: object) -> UserError:
        return UserError(f"chat template {self._name!r}: {text}")

    def _learn(self) -> Learned:
        """What two short chats show: the end-of-turn tokens, and what of the generation prompt the marks enclose."""
        last, middle = (self._tail(chat) for chat in (_PROBE, _LONG_PROBE))
        if not last:
            raise self._error(
                "no control token of this tokenizer follows the assistant's text, so the model could never learn "
                "to stop. Use the tokenizer that belongs to the template, or another template."
            )
        common = os.path.commonprefix([last, middle])
        if common or not middle:  # at the end of the text, tokens may follow that end no turn
            terminators = [tuple(common or last[:1])]
        else:  # a single control token in a middle turn would be the header of the next turn
            terminators = [tuple(last[:1]), *([tuple(middle[:1])] if len(middle) > 1 else [])]
        return Learned(tuple(terminators), self._header())

    def _header(self) -> str:
        rendered = self._render(_PROBE)
        blocks = blocks_of(rendered.pieces)
        if not self._marked or self._exact or not blocks:
            return ""
        prompt = self._render(_PROBE.before(1), True).text
        return rendered.text[blocks[0].start : len(prompt)] if rendered.text.startswith(prompt) else ""

    def _tail(self, chat: PlainChat) -> list[str]:
        """The control tokens that follow the first assistant message, as far as they touch each other."""
        rendered = self._render(chat)
        _, end = extent(rendered.pieces, 1)
        limit = extent(rendered.pieces, 2)[0] if len(chat.messages) > 2 else len(rendered.text)
        tail: list[Control] = []
        for control in self._find_controls(rendered, chat):
            if 0 < end <= control.start < limit and (not tail or tail[-1].stop == control.start):
                tail.append(control)
        return [control.string for control in tail]

    def _require_complete(self, pieces: Sequence[Piece], chat: PlainChat) -> None:
        """Refuse a template that leaves out a message, a tool call or the tools."""
        written: dict[int, list[str]] = {}
        for text, source, _ in pieces:
            if source is not None:
                written.setdefault(source, []).append(text)
        for i, message in enumerate(chat.messages):
            text = "".join(written.get(i, []))
            calls = [_call_name(call) for call in message.get("tool_calls") or []]
            if (message["content"].strip() and not text) or not all(call in text for call in calls):
                part = "the tool calls of " if text or not message["content"].strip() else ""
                raise self._error(
                    f"it leaves out {part}message {i} (role {message['role']}). Remove it from the conversation, or "
                    "use a template that has a place for it."
                )
        if chat.tools and OTHER not in written:
            raise self._error(
                "it has no place for tool declarations. Remove `tools` from the conversation, or use a template that "
                "has one."
            )

    def _find_controls(self, rendered: sandbox.Rendered, chat: PlainChat) -> list[Control]:
        try:
            return find_controls(rendered, self._controls, [*chat, self._variables])
        except Blurred as error:
            raise self._error(
                f"it joins its control token {error.args[0]!r} to text of the conversation and then changes the whole, "
                "so the two can't be told apart. Apply filters to the messages' texts alone."
            ) from error

    def _find_responses(
        self, rendered: sandbox.Rendered, controls: Sequence[Control], chat: PlainChat
    ) -> list[Response]:
        prompt = functools.partial(self._render, generation_prompt=True)
        try:
            if self._marked:
                found = marked_responses(rendered, controls, chat, self.learned, exact=self._exact)
            else:
                found = [derived_response(rendered, controls, chat, i, self.learned, prompt) for i in chat.speakers]
            require_apart(found)
        except NotFound as error:
            raise self._error(error) from error
        return found


def _call_name(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    return str(function.get("name", ""))
