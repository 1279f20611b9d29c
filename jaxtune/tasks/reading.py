"""Reading records of each shape: as messages in OpenAI's spelling, as a `Conversation`, or as an `Example`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.batch import Example
from jaxtune.chat import Conversation
from jaxtune.tasks.marks import check_marks, check_unknown, given_marks, weight_of
from jaxtune.tasks.messages import check_messages, check_unread, conversation_of, scaled
from jaxtune.tasks.problems import Finding, raise_errors
from jaxtune.tasks.shapes import Shape, record_id, rename, shape_of, untransposed
from jaxtune.tasks.token_records import WEIGHT_FIELDS, check_tokens, example_of
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


def check_record(record: Any, shape: Shape, columns: Mapping[str, str] | None = None) -> list[Finding]:
    """Everything that is wrong with one record of a file of this shape, errors and warnings, in no great hurry."""
    return read_record(record, shape, columns)[1]


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
    """Pre-tokenised ids and their weights, without padding; raises `RecordError` with every error in the record."""
    raise_errors(check_record(record, Shape.TOKENS, columns), file=file, line=line, id=record_id(record, columns))
    return example_of(rename(record, columns)[0])


def read_record(
    record: Any, shape: Shape, columns: Mapping[str, str] | None = None
) -> tuple[Sequence[Mapping[str, Any]], list[Finding]]:
    """A record's messages in OpenAI's spelling (none for tokens and fields), and everything that is wrong with it.

    A mark on the whole record is in the weights of the messages.
    """
    if not isinstance(record, Mapping):
        return [], [("not-an-object", f"the record is {type_name(record)}")]
    renamed, findings = rename(record, columns)
    findings += _check_id(renamed.get("id"))
    own = shape_of(renamed)
    if shape is Shape.FIELDS or findings and findings[0][0] == "missing-field":
        return [], findings
    if own is not shape:
        return [], [*findings, _stranger(renamed, own, shape)]
    known = WEIGHT_FIELDS if shape is Shape.TOKENS else ()
    renamed = _without_mapped(renamed, columns)
    findings += check_unknown(renamed, known)
    if shape is Shape.TOKENS:
        return [], findings + check_tokens(renamed)
    messages, more = _messages(renamed, shape)
    return messages, findings + more


def _messages(record: Mapping[str, Any], shape: Shape) -> tuple[Sequence[Mapping[str, Any]], list[Finding]]:
    messages, findings = _READERS[shape](record)
    findings += check_marks(record, "") + check_unread(record, "")
    if not findings:
        findings += check_messages(messages)
        messages = scaled(messages, weight_of(record))
        if weight_of(record) == 0:
            findings.append(("no-trained-token", f"the record is marked not to train: {given_marks(record)}"))
    tools = record.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        findings.append(("wrong-type", f"tools is {type_name(tools)}; it must be a list of objects"))
    return messages, findings


def _without_mapped(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> Mapping[str, Any]:
    """A renamed record without the columns that were given another name, so that they are read as that alone."""
    mapped = set((columns or {}).values()) - set(columns or {})
    return {name: value for name, value in record.items() if name not in mapped} if mapped else record


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
    messages, findings = _message_list(record[field], field)
    return ([], findings) if findings else _with_system(record, messages)


def _with_system(
    record: Mapping[str, Any], messages: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The messages after the system message that stands in a field beside them, if one does."""
    system = record.get("system")
    if system is None or system == "":
        return messages, []
    if not isinstance(system, str):
        return messages, [("wrong-type", f"system is {type_name(system)}; it must be a string")]
    if messages and messages[0].get("role") == "system":
        same = messages[0].get("content") == system
        return messages, [] if same else [("role-order", "system and the first message are two system messages")]
    return [{"role": "system", "content": system}, *messages], []


def _message_list(value: Any, field: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    value = untransposed(value)
    if not isinstance(value, list):
        return [], [("wrong-type", f"{field} is {type_name(value)}; it must be a list of messages")]
    wrong = [i for i, message in enumerate(value) if not isinstance(message, dict)]
    if wrong:
        what = type_name(value[wrong[0]])
        return [], [("wrong-type", f"{field}[{wrong[0]}] is {what}; a message is an object with role and content")]
    return value, []


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
    messages, more = _with_system(record, messages)
    return messages, findings + more


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
        context = scaled(prompt, 0.0)
        return [*_system(record), *map(dict, context), *completion], findings + more
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
