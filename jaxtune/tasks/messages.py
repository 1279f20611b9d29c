"""Messages in OpenAI's spelling: what is wrong with them, and the conversation that they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.chat import ROLES, Conversation, Message
from jaxtune.tasks.marks import (
    MARKS,
    check_marks,
    given_marks,
    meant_as_mark,
    sounds_like_mark,
    switches_inside,
    weight_of,
)
from jaxtune.tasks.problems import Finding
from jaxtune.tasks.values import type_name

REASONING_FIELDS = (
    *("reasoning", "reasoning_content", "thinking"),
    *("thinking_content", "thought", "thoughts", "chain_of_thought", "cot"),
)
"""Message fields that hold the text a model thinks before its answer; the first present is used."""

MESSAGE_FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "from", "value", *MARKS, *REASONING_FIELDS)
)
"""Message fields that are read."""

UNREAD = {
    "function_call": "call it tool_calls, a list of {function: {name, arguments}}",
    "functions": "call it tools",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text is read"),
}
"""Fields of messages and records that say something, in forms that are not read: to pass over them would be to train on
another conversation."""

HUGE_ANSWER = 100_000
"""Characters (about 25,000 tokens) above which an assistant message is reported as `huge-answer`."""


def conversation_of(messages: Sequence[Mapping[str, Any]], *, id: str | None, tools: Any = None) -> Conversation:
    """A conversation of messages in OpenAI's spelling that `check_messages` found free of errors."""
    return Conversation(messages=tuple(map(_message, messages)), id=id, tools=tools or None)


def _message(raw: Mapping[str, Any]) -> Message:
    reasoning = next((raw[field] for field in REASONING_FIELDS if raw.get(field) is not None), None)
    return Message(
        role=raw["role"],
        content=raw.get("content") if raw.get("tool_calls") else raw.get("content") or "",
        weight=weight_of(raw) if raw["role"] == "assistant" else None,
        tool_calls=raw.get("tool_calls") or None,
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
        reasoning=reasoning,
    )


def scaled(messages: Sequence[Mapping[str, Any]], weight: float | None) -> Sequence[Mapping[str, Any]]:
    """Messages whose answers weigh `weight` times what they state themselves; None changes nothing."""
    if weight is None:
        return messages
    return [_scaled(message, weight) if message.get("role") == "assistant" else message for message in messages]


def _scaled(message: Mapping[str, Any], weight: float) -> Mapping[str, Any]:
    own = weight_of(message)
    rest = {key: value for key, value in message.items() if key not in MARKS}
    return {**rest, "weight": weight * (1.0 if own is None else own)}


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Everything that is wrong with a list of messages: fields, types, order of roles, nothing to train on."""
    findings = [finding for i, message in enumerate(messages) for finding in _check_message(message, i)]
    if not all(message.get("role") in ROLES for message in messages):
        return findings
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return [*findings, ("no-assistant", f"the roles are {', '.join(roles) or 'none'}")]
    findings += check_roles(roles)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(map(_trains, answers)):
        findings.append(("no-trained-token", "every assistant message has weight 0"))
    return findings


def check_roles(roles: Sequence[str]) -> list[Finding]:
    """Problems in the order of the roles of one conversation that has an assistant message.

    Two turns of one role in a row are a warning and not an error: people do send two messages before an answer comes,
    and every answer still has what it answers before it. A chat template that cannot write them refuses the record,
    and that is an error in `validate` and in `train` alike. An answer to nobody, a message that nobody answers, and a
    system message in the middle are errors: whatever a template makes of them, it is not what was said.
    """
    wrong: list[str] = []
    repeated: list[Finding] = []
    turns = list(enumerate(roles))
    if roles[0] in ("system", "developer"):
        turns = turns[1:]
    previous = "start"
    for i, role in turns:
        if role in ("system", "developer"):
            wrong.append(f"{role} at message {i + 1} (it must come first)")
        elif role == previous and role != "tool":
            repeated.append(("repeated-role", f"messages {i} and {i + 1} are both {role}"))
        elif previous not in _MAY_FOLLOW[role]:
            wrong.append(f"{role} after {previous} at message {i + 1}")
        previous = role if role in _MAY_FOLLOW else previous
    if roles[-1] != "assistant":
        wrong.append(f"the last message is {roles[-1]}, which nothing answers")
    return ([("role-order", "; ".join(wrong))] if wrong else []) + repeated


_MAY_FOLLOW = {
    "user": ("start", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""By role: the roles that it may follow."""


def _check_message(message: Mapping[str, Any], i: int) -> list[Finding]:
    """Findings of one message by itself."""
    role = message.get("role")
    if role is None:
        return [("missing-field", f"messages[{i}] has no role; it has {sorted(message)}")]
    if role not in ROLES:
        return [("unknown-role", f"messages[{i}] has the role {role!r}")]
    findings = _check_extras(message, i) + _check_tool_calls(message.get("tool_calls"), i)
    content = message.get("content")
    speaks = role == "assistant" and bool(
        message.get("tool_calls") or any(message.get(field) for field in REASONING_FIELDS)
    )
    if content is None:
        if not speaks:
            findings.append(("missing-field", f"messages[{i}] ({role}) has no content"))
    elif isinstance(content, list):
        findings.append(("nested-content", f"messages[{i}].content is a list of parts"))
    elif not isinstance(content, str):
        findings.append(("wrong-type", f"messages[{i}].content is {type_name(content)}; it must be a string"))
    else:
        findings += _check_text(content, i, role, speaks=speaks, trains=_trains(message))
    return findings


def _trains(message: Mapping[str, Any]) -> bool:
    return bool(check_marks(message, "")) or weight_of(message) != 0


def _check_text(content: str, i: int, role: str, *, speaks: bool, trains: bool) -> list[Finding]:
    findings: list[Finding] = []
    if not speaks and (not content or content.isspace()):
        if role == "assistant" and trains:
            findings.append(("empty-assistant", f"messages[{i}] (assistant) is empty"))
        elif role != "tool":
            findings.append(("empty-message", f"messages[{i}] ({role}) is empty"))
    if role == "assistant" and len(content) > HUGE_ANSWER:
        findings.append(("huge-answer", f"messages[{i}] has {len(content):,} characters"))
    return findings + control_characters(content, f"messages[{i}].content")


def control_characters(text: str, where: str) -> list[Finding]:
    """A finding when text holds a control character other than tab, line feed and carriage return."""
    found = sorted(_CONTROLS.intersection(text))
    return [("control-character", f"{where} holds {', '.join(f'U+{ord(c):04X}' for c in found)}")] if found else []


_CONTROLS = frozenset(map(chr, [*range(32), 127])) - frozenset("\t\n\r")


def check_unread(holder: Mapping[str, Any], where: str) -> list[Finding]:
    """A finding for each field of a message or record, called `where`, whose content would be lost."""
    return [("unread-content", f"{where}{name}: {why}") for name, why in UNREAD.items() if holder.get(name)]


def _check_extras(message: Mapping[str, Any], i: int) -> list[Finding]:
    findings = check_marks(message, f"messages[{i}].") + check_unread(message, f"messages[{i}].")
    known = MESSAGE_FIELDS.union(UNREAD)
    unknown = sorted(key for key in message if key not in known and message[key] is not None)
    marks = [key for key in unknown if sounds_like_mark(key) or meant_as_mark(key, message[key])]
    inside = [] if given_marks(message) else [path for key in unknown for path in switches_inside(key, message[key])]
    findings += [("unknown-mark", f"messages[{i}].{key} sounds like a mark of what trains") for key in marks + inside]
    if others := sorted(set(unknown) - set(marks)):
        findings.append(("unknown-message-field", f"messages[{i}] has {', '.join(others)}"))
    if not findings and message.get("role") != "assistant" and weight_of(message):
        stated = ", ".join(f"{name} {value!r}" for name, value in given_marks(message).items())
        findings.append(("bad-weight", f"messages[{i}] ({message['role']}) has {stated}; only answers train"))
    for field in ("name", "tool_call_id", *REASONING_FIELDS):
        if message.get(field) is not None and not isinstance(message[field], str):
            what = type_name(message[field])
            findings.append(("wrong-type", f"messages[{i}].{field} is {what}; it must be a string"))
    return findings


def _check_tool_calls(calls: Any, i: int) -> list[Finding]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        return [("wrong-type", f"messages[{i}].tool_calls is {type_name(calls)}; it must be a list")]
    for k, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return [("missing-field", f"messages[{i}].tool_calls[{k}] has no function name")]
        if "arguments" not in function:
            return [("missing-field", f"messages[{i}].tool_calls[{k}] has no arguments; {{}} says that there are none")]
        if not isinstance(function["arguments"], dict | str):
            return [("wrong-type", f"messages[{i}].tool_calls[{k}]: arguments must be an object or a string")]
    return []
