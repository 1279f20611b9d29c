"""One template with one tokenizer: chats rendered and taken apart into responses and segments.

Knows messages as plain dicts; `conversation` gives them their types.
"""

import functools
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.chat import sandbox, thinking
from jaxtune.chat.conversation import PlainChat, PlainMessage, calls_as_text, without_blank_text
from jaxtune.chat.cutting import Blurred, Control, Segment, SegmentEncoder, cut, find_controls
from jaxtune.chat.probing import LONG_PROBE, PROBE, learn, takes_text, wants_none
from jaxtune.chat.responses import (
    Aside,
    NotFound,
    Response,
    derived_response,
    extent,
    marked_responses,
    pieces_from,
    prompt_end,
    require_apart,
    require_complete,
    turn_start,
)
from jaxtune.chat.template import Bos, ChatTemplate
from jaxtune.chat.tokenizer import Tokenizer, require_encodable
from jaxtune.chat.traced import OTHER, Piece, trace_all
from jaxtune.errors import UserError

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


SLOW_SECONDS, SLOW_RENDER = 60.0, 0.05
"""Processor seconds that all renders of a process may take: so many, and so many more for each."""


class ChatLayout(NamedTuple):
    """A rendered chat, taken apart."""

    text: str
    responses: tuple[Response, ...]
    segments: tuple[Segment, ...]
    openings: tuple[str, ...]
    """For each response, what the template itself wrote between the prompt and the text of the message."""


class Renderer:
    """Renders chats with one template for one tokenizer. Raises `UserError` for a pair that can't work together."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer):
        self.template, self.tokenizer = template, tokenizer
        self._controls = tokenizer.controls
        self._compiled = sandbox.compile_template(template.source, template.name)
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._special = {key: tokenizer.piece(token) for key, token in ids.items() if token is not None}
        self._prefix = self._special.get("bos_token", "") if template.bos is Bos.ADD else ""
        self._variables = dict(template.variables)
        self.marked = _MARKS.search(template.source) is not None
        self.exact = template.exact_marks and self.marked
        self._encoder = SegmentEncoder(tokenizer)
        self._seconds, self._renders = 0.0, 0
        self._calls_as_text = self._wants_none = False
        self._wants_none = wants_none(self)
        self._calls_as_text = takes_text(self)
        self.learned = learn(self)

    def layout(self, chat: PlainChat, *, generation_prompt: bool = False) -> ChatLayout:
        """Render a chat and take the text apart. Raises `UserError` where responses can't be found and verified."""
        rendered = self.render(chat, generation_prompt)
        after_prompt = (self.learned.thinking or self.learned.revises) and not self.exact
        if after_prompt and chat.speakers[-1:] == [len(chat.messages) - 1]:
            rendered = self._after_prompt(rendered, chat)
        require_encodable(rendered.text)
        controls = self.find_controls(rendered, chat)
        try:
            require_complete(rendered.pieces, chat)
            responses = self._find_responses(rendered, controls, chat)
        except NotFound as error:
            raise self.error(error) from error
        edges = {edge for response in responses for edge in (response.start, response.stop)}
        openings = [rendered.text[r.start : extent(rendered.pieces, r.message)[0]] for r in responses]
        segments = cut(rendered, controls, self._controls, edges)
        return ChatLayout(rendered.text, tuple(responses), tuple(segments), tuple(openings))

    def text(self, chat: PlainChat, *, generation_prompt: bool = False) -> str:
        """The rendered text alone, without any tracing."""
        variables = self._special | self._variables | {"messages": self._messages(chat), "tools": chat.tools}
        return self._run(variables, chat, generation_prompt).text

    def encode(self, chats: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
        """For each chat, the ids of each of its segments."""
        return self._encoder.encode(chats)

    @functools.cached_property
    def openings(self) -> tuple[str, ...]:
        """Texts that the template itself may write between the generation prompt and the text of a message."""
        found = {""}
        for chat in (PROBE, LONG_PROBE):
            try:
                layout = self.layout(chat)
            except UserError:  # a template that cannot write the probe may write the chat that is checked
                continue
            pairs = zip(layout.responses, layout.openings, strict=True)
            found |= {text for response, text in pairs if not response.aside}
        return tuple(sorted(found, key=len, reverse=True))

    def render(self, chat: PlainChat, generation_prompt: bool = False) -> sandbox.Rendered:
        """The text of a chat with the source of every character."""
        traced = [
            {key: value if key == "role" else trace_all(value, i) for key, value in message.items()}
            for i, message in enumerate(self._messages(chat))
        ]
        variables = self._special | {key: trace_all(value, OTHER) for key, value in self._variables.items()}
        variables |= {"messages": traced, "tools": None if chat.tools is None else trace_all(chat.tools, OTHER)}
        return self._run(variables, chat, generation_prompt)

    def find_controls(self, rendered: sandbox.Rendered, chat: PlainChat) -> list[Control]:
        """Control tokens that the template wrote."""
        try:
            return find_controls(rendered, self._controls, [*chat, self._variables])
        except Blurred as error:
            raise self.error(
                f"it joins its control token {error.args[0]!r} to text of the conversation and then changes the whole, "
                "so the two can't be told apart. Apply filters to the messages' texts alone."
            ) from error

    def error(self, text: object) -> UserError:
        """An error that names the template."""
        return UserError(f"chat template {self.template.name!r}: {text}")

    def _messages(self, chat: PlainChat) -> Sequence[Mapping[str, Any]]:
        messages: Sequence[Mapping[str, Any]] = chat.messages
        if self._wants_none:
            messages = [without_blank_text(message) for message in messages]
        return [calls_as_text(message) for message in messages] if self._calls_as_text else messages

    def _run(self, variables: Mapping[str, Any], chat: PlainChat, generation_prompt: bool) -> sandbox.Rendered:
        self._require_time()
        started = time.thread_time()
        given = sum(
            len(message["content"] or "") + len(message.get("reasoning_content") or "") for message in chat.messages
        )
        seen = {**variables, "documents": None, "add_generation_prompt": generation_prompt}
        name, today = self.template.name, self.template.today
        try:
            rendered = sandbox.render(self._compiled, name, seen, today=today, given_chars=given)
        finally:
            self._seconds += time.thread_time() - started
            self._renders += 1
        if not self._prefix or rendered.text.startswith(self._prefix):
            return rendered
        return sandbox.Rendered(self._prefix + rendered.text, ((self._prefix, None, 0), *rendered.pieces))

    def _require_time(self) -> None:
        """Refuse to go on with a template that is so slow that a data set would take hours."""
        if self._seconds > SLOW_SECONDS + SLOW_RENDER * self._renders:
            raise self.error(
                f"stopped: {self._renders:,} renders took {self._seconds:,.0f} seconds, where {SLOW_RENDER:g} seconds "
                "each would be many. Use another template."
            )

    def _after_prompt(self, rendered: sandbox.Rendered, chat: PlainChat) -> sandbox.Rendered:
        """The chat with its last message put after the generation prompt, where it does not stand after it already.

        A template may show earlier turns otherwise once the last one is said, or not repeat the block of reasoning that
        the prompt opens. So what trains is what a model says after the prompt that it is given: its reasoning, which
        the template may leave out of finished turns, or none; the end of the block; the answer.
        """
        last = len(chat.messages) - 1
        prompt = self.render(chat.before(last), True)
        first, stop = extent(rendered.pieces, last)
        if rendered.text.startswith(prompt.text):
            return rendered
        start = prompt_end(rendered, prompt, first)
        if start is not None:
            return _joined(*prompt.pieces, *pieces_from(rendered.pieces, start))
        start = turn_start(rendered, prompt, first)
        if start is None or not self.learned.closing:
            return rendered
        tail = thinking.skip_tags(rendered.text, start, first if first >= 0 else len(rendered.text))
        written = "".join(text for text, source, _ in rendered.pieces if source == last)
        block = max((block for _, source, block in rendered.pieces if source == last), default=0)
        said: list[Piece] = []
        reasoning = thinking.reasoning_of(chat.messages[last]).strip()
        if not reasoning or not thinking.is_shown(chat.messages[last], written):
            said = [(reasoning, last, block), (self.learned.closing, None, block)]
        return _joined(*prompt.pieces, *said, *pieces_from(rendered.pieces, tail))

    def _find_responses(
        self, rendered: sandbox.Rendered, controls: Sequence[Control], chat: PlainChat
    ) -> list[Response]:
        prompt = functools.partial(self.render, generation_prompt=True)
        if self.marked:
            found = marked_responses(rendered, controls, chat, self.learned, exact=self.exact)
        else:
            found = [derived_response(rendered, controls, chat, i, self.learned, prompt) for i in chat.speakers]
        require_apart(found)
        written = dict[int, str]()
        for text, source, _ in rendered.pieces:
            if source is not None:
                written[source] = written.get(source, "") + text
        return [_judged(one, chat.messages[one.message], written.get(one.message, "")) for one in found]


def _judged(response: Response, message: PlainMessage, written: str) -> Response:
    """A response, set aside where what the template wrote of its message is not all that the message says."""
    if not thinking.is_shown(message, written):
        return response._replace(aside=Aside.REASONING)
    return response._replace(aside=Aside.TEXT) if thinking.leaves_out_text(message, written) else response


def _joined(*pieces: Piece) -> sandbox.Rendered:
    kept = tuple(piece for piece in pieces if piece[0])
    return sandbox.Rendered("".join(text for text, _, _ in kept), kept)
