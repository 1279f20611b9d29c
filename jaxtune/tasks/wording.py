"""Instruction templates: a record's fields worded as a prompt and its response, in FLAN's manner."""

import dataclasses
import enum
import functools
import string
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.chat import Conversation
from jaxtune.errors import UserError
from jaxtune.tasks.messages import check_messages
from jaxtune.tasks.problems import INTERRUPTS, Finding, place_of, said_by
from jaxtune.tasks.shapes import look_up
from jaxtune.tasks.values import type_name

Builder = Callable[[Mapping[str, Any]], Conversation]
"""A template as code: record -> conversation. A module-level function, so that worker processes can import it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """One wording of a task.

    `{name}` stands for a field of the record, `{a.b}` for a field of an object; `{{` and `}}` are braces. With the
    record {"en": "house", "de": "Haus"}, the prompt "German for {en}?" and the response "{de}" give
    user: "German for house?", assistant: "Haus".
    """

    prompt: str
    response: str
    system: str | None = None
    cluster: str | None = None
    """Cluster of what this wording trains, where it is not the task's (inverted question answering is question
    generation); holding that cluster out removes the template."""
    shots: int | None = None
    """Exemplars before the prompt; None takes the task's `few_shot.count`."""

    def __post_init__(self):
        for name in ("prompt", "response", "system"):
            text = getattr(self, name)
            if text is not None:
                parse(text)
        if self.shots is not None and self.shots < 0:
            raise UserError(f"template {self.prompt!r}: shots must be 0 or more, got {self.shots}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that it needs."""
        texts = (self.prompt, self.response, self.system or "")
        return tuple(dict.fromkeys(field for text in texts for _, field in parse(text) if field is not None))


class FewShotStyle(enum.Enum):
    """Place of exemplars in a conversation."""

    TURNS = "turns"
    """As earlier user and assistant turns of weight 0."""
    TEXT = "text"
    """Inside the prompt, each exemplar's prompt and response one after the other (FLAN's manner)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """Exemplars from the same task's train split, chosen by a hash of the record: the same on every run and host."""

    count: int
    """Exemplars before each prompt."""
    style: FewShotStyle = FewShotStyle.TURNS
    seed: int = 0
    """Another seed chooses other exemplars."""
    answer_separator: str = "\n"
    """Between an exemplar's prompt and its response, in the style `text`."""
    separator: str = "\n\n"
    """Between exemplars, in the style `text`."""

    def __post_init__(self):
        if self.count < 0:
            raise UserError(f"few_shot.count must be 0 or more, got {self.count}")


@functools.lru_cache(maxsize=65536)
def parse(text: str) -> tuple[tuple[str, str | None], ...]:
    """A template as (literal, field) pairs; the last field may be None. Raises `UserError` on all but `{field}`."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"template {text!r}: {error}; write {{{{ and }}}} for braces") from error
    for _, field, spec, conversion in parts:
        if field is not None and (not field or "[" in field or spec or conversion):
            shown = f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            raise UserError(f"template {text!r}: {shown} is not a field name; write {{name}}, or pass a function")
    return tuple((literal, field) for literal, field, _, _ in parts)


def fill(text: str, record: Mapping[str, Any]) -> tuple[str, list[Finding]]:
    """The template with the record's values, and what is wrong with those."""
    pieces: list[str] = []
    findings: list[Finding] = []
    for literal, field in parse(text):
        pieces.append(literal)
        if field is None:
            continue
        try:
            value = look_up(record, field)
        except KeyError:
            findings.append(("missing-field", f"the template needs {field!r}; the record has {sorted(record)}"))
            continue
        if isinstance(value, str | int | float):
            pieces.append(str(value))
        else:
            findings.append(("wrong-type", f"{field} is {type_name(value)}; a template needs text or a number"))
    return "".join(pieces), findings


def fill_messages(template: Template, record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The template's messages in OpenAI's spelling."""
    messages, findings = [], []
    for role, text in (("system", template.system), ("user", template.prompt), ("assistant", template.response)):
        if text is not None:
            content, wrong = fill(text, record)
            messages.append({"role": role, "content": content})
            findings += wrong
    return messages, findings


def call_builder(builder: Builder, record: Mapping[str, Any]) -> tuple[Conversation | None, list[Finding]]:
    """The conversation that a template function makes of a record; None, and what it said, where it fails."""
    try:
        built = builder(record)
    except UserError as error:
        return None, [("template-failed", f"{error}{place_of(error)}")]
    except INTERRUPTS:
        raise
    except BaseException as error:  # a user's function may raise anything, and all of it is about this record
        if isinstance(error, KeyError) and error.args and error.args[0] not in list(record):
            needs = f"the template function needs {error}{place_of(error)}; the record has {sorted(record)}"
            return None, [("missing-field", needs)]
        return None, [("template-failed", said_by(error))]
    if not isinstance(built, Conversation):
        return None, [("template-failed", f"the template function returned {type_name(built)}, not a Conversation")]
    return built, check_messages([vars(message) for message in built.messages])
