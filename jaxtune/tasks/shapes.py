"""Record shapes: telling them apart, checking a record, and turning it into a `Conversation` or an `Example`."""

import collections
import enum
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.batch import Example
from jaxtune.chat import ROLES, Conversation, Message
from jaxtune.errors import UserError
from jaxtune.tasks.problems import RULES, Finding, Problem, RecordError, Severity
from jaxtune.tasks.sources.base import RecordSource
from jaxtune.tasks.values import type_name

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's `from` by role."""

REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")
"""Message fields that hold the text a model thinks before its answer; the first present is used."""

MESSAGE_FIELDS = frozenset(
    ("role", "content", "weight", "name", "tool_calls", "tool_call_id", "from", "value", *REASONING_FIELDS)
)
"""Message fields that are read."""

WEIGHT_FIELDS = ("loss_weights", "weights", "loss_mask", "labels")
"""Fields with one number per token; in `labels`, -100 is weight 0 and everything else weight 1."""

HUGE_ANSWER = 100_000
"""Characters (about 25,000 tokens) above which an assistant message is reported as `huge-answer`."""


class Shape(enum.Enum):
    """How a record spells a conversation."""

    MESSAGES = "messages"
    """{"messages": [{"role": ..., "content": ...}, ...]}, or the same under `conversations`"""
    SHAREGPT = "sharegpt"
    """{"conversations": [{"from": "human", "value": ...}, ...]}"""
    ALPACA = "alpaca"
    """{"instruction": ..., "input": ..., "output": ...}; `input`, `system` and `history` may be absent"""
    PROMPT_COMPLETION = "prompt_completion"
    """{"prompt": ..., "completion": ...}: two strings, or two lists of messages; `system` may be given"""
    TOKENS = "tokens"
    """{"tokens": [...], "loss_weights": [...]}: ids that are trained as they are"""
    FIELDS = "fields"
    """Named fields that the task's templates turn into a conversation"""


CANONICAL_FIELDS = frozenset(
    ("id", "messages", "conversations", "instruction", "input", "output", "history", "prompt", "completion")
    + ("system", "tools", "tokens", *WEIGHT_FIELDS)
)
"""Names that a column map may give to columns."""


def shape_of(record: Mapping[str, Any]) -> Shape | None:
    """The shape that a record's field names show; None when they show none."""
    if "messages" in record:
        return Shape.MESSAGES
    if "conversations" in record:
        turns = untransposed(record["conversations"])
        openai = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]
        return Shape.MESSAGES if openai else Shape.SHAREGPT
    if "tokens" in record or "input_ids" in record:
        return Shape.TOKENS
    if "instruction" in record and "output" in record:
        return Shape.ALPACA
    if "prompt" in record and ("completion" in record or "response" in record):
        return Shape.PROMPT_COMPLETION
    return None


def detect(source: RecordSource, columns: Mapping[str, str] | None = None, *, sample: int = 100) -> Shape:
    """The shape of most of a source's first `sample` readable records; raises when none has a known shape."""
    unreadable: list[Problem] = []
    records: list[Mapping[str, Any]] = []
    for i in range(min(sample, len(source))):
        try:
            records.append(source[i])
        except RecordError as error:
            unreadable.extend(error.problems)
    if unreadable and not records:
        raise RecordError(unreadable[:20])
    return majority(records, source.name, columns)


def majority(records: Sequence[Mapping[str, Any]], name: str, columns: Mapping[str, str] | None = None) -> Shape:
    """The shape of most of some records; raises `RecordError` about the file `name` when none has a known one."""
    if not records:
        raise RecordError([Problem(rule="empty-file", message="there is no record", file=name)])
    seen = collections.Counter(shape_of(rename(record, columns)[0]) for record in records)
    known = [shape for shape, _ in seen.most_common() if shape is not None]
    if known:
        return known[0]
    fields = sorted(set(itertools.chain.from_iterable(records)))
    message = f"no record shape is known with the fields {fields}"
    raise RecordError([Problem(rule="unknown-shape", message=message, file=name)])


def rename(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> tuple[Mapping[str, Any], list[Finding]]:
    """The record with canonical field names: `columns` maps canonical name -> column; a.b reaches into objects."""
    if not columns:
        return record, []
    found: dict[str, Any] = {}
    findings: list[Finding] = []
    for field, column in columns.items():
        try:
            found[field] = look_up(record, column)
        except KeyError:
            findings.append(("missing-field", f"no column {column!r} (mapped to {field}); it has {sorted(record)}"))
    return {**record, **found}, findings


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Raises `UserError` when a column map names a field that no shape has."""
    unknown = sorted(set(columns or ()) - CANONICAL_FIELDS)
    if unknown:
        raise UserError(
            f"columns= maps {unknown}, which no record shape has; its keys are among {sorted(CANONICAL_FIELDS)}, "
            "its values are your columns"
        )


def look_up(record: Mapping[str, Any], path: str) -> Any:
    """The value at a field name, or at a dotted path of them; raises KeyError. A name with a dot in it comes first."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def check_record(record: Any, shape: Shape, columns: Mapping[str, str] | None = None) -> list[Finding]:
    """Everything that is wrong with one record of a file of this shape, errors and warnings, in no great hurry."""
    return read_record(record, shape, columns)[1]


def record_id(record: Any, columns: Mapping[str, str] | None = None) -> str | None:
    """The record's id as text, where it has a usable one."""
    if not isinstance(record, Mapping):
        return None
    try:
        value = look_up(record, (columns or {}).get("id", "id"))
    except KeyError:
        return None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def to_conversation(
    record: Mapping[str, Any],
    shape: Shape,
    columns: Mapping[str, str] | None = None,
    *,
    file: str = "",
    line: int | None = None,
) -> Conversation:
    """The conversation that a record spells; raises `RecordError` with every error in it. Warnings pass."""
    messages, findings = read_record(record, shape, columns)
    raise_errors(findings, file=file, line=line, id=record_id(record, columns))
    renamed, _ = rename(record, columns)
    return conversation_of(messages, id=record_id(record, columns), tools=renamed.get("tools"))


def to_example(
    record: Mapping[str, Any], columns: Mapping[str, str] | None = None, *, file: str = "", line: int | None = None
) -> Example:
    """Pre-tokenised ids and their weights, as they are; raises `RecordError` with every error in the record."""
    raise_errors(check_record(record, Shape.TOKENS, columns), file=file, line=line, id=record_id(record, columns))
    renamed, _ = rename(record, columns)
    field = next(field for field in WEIGHT_FIELDS if renamed.get(field) is not None)
    weights = np.asarray(renamed[field], np.float32)
    if field == "labels":
        weights = (weights != -100).astype(np.float32)
    return Example(tokens=np.asarray(_tokens(renamed), np.int32), loss_weights=weights)


def raise_errors(findings: Sequence[Finding], *, file: str, line: int | None, id: str | None) -> None:
    """Raises `RecordError` when there is an error among the findings of one record."""
    errors = [finding for finding in findings if RULES[finding[0]].severity is Severity.ERROR]
    if errors:
        raise RecordError(Problem(rule=r, message=m, file=file, line=line, id=id) for r, m in errors)


def conversation_of(messages: Sequence[Mapping[str, Any]], *, id: str | None, tools: Any = None) -> Conversation:
    """A conversation of messages in OpenAI's spelling that `check_messages` found free of errors."""
    return Conversation(messages=tuple(map(_message, messages)), id=id, tools=tools or None)


def _message(raw: Mapping[str, Any]) -> Message:
    reasoning = next((raw[field] for field in REASONING_FIELDS if raw.get(field) is not None), None)
    return Message(
        role=raw["role"],
        content=raw.get("content") if raw.get("tool_calls") else raw.get("content") or "",
        weight=float(raw["weight"]) if raw["role"] == "assistant" and raw.get("weight") is not None else None,
        tool_calls=raw.get("tool_calls") or None,
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
        reasoning=reasoning,
    )


# One reader per shape: a renamed record -> messages in OpenAI's spelling, and findings.


def read_record(
    record: Any, shape: Shape, columns: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """A record's messages in OpenAI's spelling (none for tokens and fields), and everything that is wrong with it."""
    if not isinstance(record, Mapping):
        return [], [("not-an-object", f"the record is {type_name(record)}")]
    renamed, findings = rename(record, columns)
    findings += _check_id(renamed.get("id"))
    own = shape_of(renamed)
    if shape is Shape.FIELDS or findings and findings[0][0] == "missing-field":
        return [], findings
    if own is not shape:
        return [], [*findings, _stranger(renamed, own, shape)]
    if shape is Shape.TOKENS:
        return [], findings + _check_tokens(renamed)
    messages, found = _READERS[shape](renamed)
    findings += found
    if not found:
        findings += check_messages(messages)
    tools = renamed.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        findings.append(("wrong-type", f"tools is {type_name(tools)}; it must be a list of objects"))
    return messages, findings


def messages_of(
    record: Mapping[str, Any], shape: Shape, columns: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The messages, in OpenAI's spelling, of a record that `check_record` found free of errors."""
    return _READERS[shape](rename(record, columns)[0])[0]


def _stranger(record: Mapping[str, Any], own: Shape | None, shape: Shape) -> Finding:
    if own is not None:
        return "mixed-shapes", f"this record has the shape {own.value}, the file's other records are {shape.value}"
    wanted = {
        Shape.MESSAGES: "messages",
        Shape.SHAREGPT: "conversations",
        Shape.ALPACA: "instruction and output",
        Shape.PROMPT_COMPLETION: "prompt and completion",
        Shape.TOKENS: "tokens",
    }[shape]
    return "missing-field", f"no field {wanted}; it has {sorted(record)}"


def _check_id(value: Any) -> list[Finding]:
    if value is None or isinstance(value, str | int) and not isinstance(value, bool):
        return []
    return [("bad-id", f"the id is {type_name(value)}")]


def _read_messages(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    field = "messages" if "messages" in record else "conversations"
    return _message_list(record[field], field)


def _message_list(value: Any, field: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    value = untransposed(value)
    if not isinstance(value, list):
        return [], [("wrong-type", f"{field} is {type_name(value)}; it must be a list of messages")]
    wrong = [i for i, message in enumerate(value) if not isinstance(message, dict)]
    if wrong:
        what = type_name(value[wrong[0]])
        return [], [("wrong-type", f"{field}[{wrong[0]}] is {what}; a message is an object with role and content")]
    return value, []


def untransposed(value: Any) -> Any:
    """{"role": [a, b], "content": [c, d]}, as TFDS and Arrow store a list of objects, as that list of objects."""
    columns = isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values())
    if not columns or len({len(column) for column in value.values()}) != 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _read_sharegpt(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    turns, findings = _message_list(record["conversations"], "conversations")
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(turns):
        speaker = turn.get("from")
        if speaker is None or "value" not in turn:
            missing = "from" if speaker is None else "value"
            findings.append(("missing-field", f"conversations[{i}] has no field {missing}; it has {sorted(turn)}"))
        elif not isinstance(speaker, str) or speaker not in SPEAKERS:
            findings.append(("unknown-role", f"conversations[{i}] is from {speaker!r}; known: {sorted(SPEAKERS)}"))
        else:
            rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
            messages.append({**rest, "role": SPEAKERS[speaker], "content": turn["value"]})
    system = record.get("system")
    if system is not None and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return messages, findings


def _strings(record: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> list[Finding]:
    """Findings for fields that must be strings."""
    named = [*required, *(field for field in optional if record.get(field) is not None)]
    return [
        ("wrong-type", f"{field} is {type_name(record.get(field))}; it must be a string")
        for field in named
        if not isinstance(record.get(field), str)
    ]


def _system(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": record["system"]}] if record.get("system") else []


def _read_alpaca(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    findings = _strings(record, ("instruction", "output"), ("input", "system"))
    history = record.get("history") or []
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not pairs:
        findings.append(("wrong-type", "history must be a list of [instruction, output] pairs of strings"))
    if findings:
        return [], findings
    prompt = "\n\n".join(text for text in (record["instruction"], record.get("input")) if text)
    texts = [*itertools.chain.from_iterable(history), prompt, record["output"]]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return _system(record) + turns, []


def _read_prompt_completion(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    answer = "completion" if "completion" in record else "response"
    if isinstance(record["prompt"], list) and isinstance(record[answer], list):
        prompt, findings = _message_list(record["prompt"], "prompt")
        completion, more = _message_list(record[answer], answer)
        context = [{**turn, "weight": 0.0} if turn.get("role") == "assistant" else turn for turn in prompt]
        return _system(record) + context + completion, findings + more
    findings = _strings(record, ("prompt", answer), ("system",))
    if findings:
        return [], findings
    turns = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record[answer]}]
    return _system(record) + turns, []


_READERS = {
    Shape.MESSAGES: _read_messages,
    Shape.SHAREGPT: _read_sharegpt,
    Shape.ALPACA: _read_alpaca,
    Shape.PROMPT_COMPLETION: _read_prompt_completion,
}


def _tokens(record: Mapping[str, Any]) -> Any:
    return record["tokens"] if "tokens" in record else record["input_ids"]


def _check_tokens(record: Mapping[str, Any]) -> list[Finding]:
    tokens = _tokens(record)
    field = next((field for field in WEIGHT_FIELDS if record.get(field) is not None), None)
    if field is None:
        return [("missing-field", f"tokens without weights; give one of {', '.join(WEIGHT_FIELDS)}")]
    weights = record[field]
    if not isinstance(tokens, list) or not isinstance(weights, list):
        return [("wrong-type", f"tokens and {field} must be lists of numbers")]
    if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        return [("bad-tokens", "a token is not an integer from 0 to 2^31 - 1")]
    if len(tokens) != len(weights):
        return [("bad-tokens", f"{len(tokens)} tokens, but {len(weights)} numbers in {field}")]
    if field == "labels":
        wrong = [(t, w) for t, w in zip(tokens, weights, strict=True) if w != -100 and w != t]
        if wrong:
            return [("bad-tokens", f"label {wrong[0][1]} stands at token {wrong[0][0]}; labels are the tokens or -100")]
        weights = [float(label != -100) for label in weights]
    if not all(_is_weight(weight) for weight in weights):
        return [("bad-weight", f"{field} holds a number that is not finite, or is below 0")]
    if not any(weights[1:]):
        return [("no-trained-token", "no token after the first has a weight above 0")]
    return []


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


# Messages in OpenAI's spelling.


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
    if all(message.get("weight") == 0 for message in answers):
        findings.append(("no-trained-token", "every assistant message has weight 0"))
    return findings


def check_roles(roles: Sequence[str]) -> list[Finding]:
    """What is wrong with the order of the roles of one conversation that has an assistant message."""
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
        findings += _check_text(content, i, role, speaks=speaks, weight=message.get("weight"))
    return findings


def _check_text(content: str, i: int, role: str, *, speaks: bool, weight: Any) -> list[Finding]:
    findings: list[Finding] = []
    if not speaks and (not content or content.isspace()):
        if role == "assistant" and weight != 0:
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


def _check_extras(message: Mapping[str, Any], i: int) -> list[Finding]:
    findings: list[Finding] = []
    unknown = sorted(key for key in message if key not in MESSAGE_FIELDS and message[key] is not None)
    if unknown:
        findings.append(("unknown-message-field", f"messages[{i}] has {', '.join(unknown)}"))
    weight = message.get("weight")
    if weight is not None and not (_is_weight(weight) and not isinstance(weight, bool)):
        findings.append(("bad-weight", f"messages[{i}].weight is {weight!r}"))
    elif weight and message.get("role") != "assistant":
        findings.append(("bad-weight", f"messages[{i}] ({message['role']}) has the weight {weight}"))
    for field in ("name", "tool_call_id", *REASONING_FIELDS):
        if message.get(field) is not None and not isinstance(message[field], str):
            findings.append(
                ("wrong-type", f"messages[{i}].{field} is {type_name(message[field])}; it must be a string")
            )
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
        if not isinstance(function.get("arguments", {}), dict | str):
            return [("wrong-type", f"messages[{i}].tool_calls[{k}]: arguments must be an object or a string")]
    return []
