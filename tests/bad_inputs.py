"""Files of chats with one fault each, and where the fault is: what `jaxtune validate` and the readers must find."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any


def chat(i: int) -> dict[str, Any]:
    """A record without a fault."""
    return {
        "id": f"sums/{i}",
        "messages": [
            {"role": "user", "content": f"What is {i} plus {2 * i + 3}? Answer with the number."},
            {"role": "assistant", "content": str(3 * i + 3)},
        ],
    }


GOOD = tuple(json.dumps(chat(i)) for i in range(11, 17))
"""Lines without a fault."""

USER, ASSISTANT = {"role": "user", "content": "Which day is it?"}, {"role": "assistant", "content": "Monday."}
SYSTEM = {"role": "system", "content": "Be short."}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One file, the rules that it breaks, and where."""

    name: str
    rules: tuple[str, ...]
    lines: tuple[int | None, ...]
    content: bytes


def third(rule: str, line: str | dict[str, Any]) -> Fault:
    """Good lines with a bad third one."""
    text = line if isinstance(line, str) else json.dumps(line)
    content = "\n".join([*GOOD[:2], text, *GOOD[2:]]) + "\n"
    return Fault(f"{rule}.jsonl", (rule,), (3,), content.encode("utf-8", "surrogatepass"))


def messages(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "x", "messages": list(turns), **fields}


def only(name: str, rule: str | None, record: dict[str, Any]) -> Fault:
    """One line, bad unless `rule` is None; its text is not escaped."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    return Fault(f"{name}.jsonl", (rule,) if rule else (), (1,) if rule else (), line.encode())


def whole(name: str, rule: str, content: bytes, line: int | None = 1) -> Fault:
    """A file that is bad as a whole."""
    return Fault(name, (rule,), (line,), content)


LINES = "\n".join(GOOD) + "\n"
SHAREGPT = {"id": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
SEPARATORS = {**ASSISTANT, "content": "a\u2028b\u2029c\x85d"}
QUOTES = {**USER, "content": '{"a": 1, "a": 2, "b\\": 3}'}

CONTROLS = (
    Fault("good.jsonl", (), (), LINES.encode()),
    Fault("no_last_newline.jsonl", (), (), LINES.rstrip("\n").encode()),
    Fault("carriage_returns.jsonl", (), (), LINES.replace("\n", "\r\n").encode()),
    Fault("trailing_blank_lines.jsonl", (), (), LINES.encode() + b"\n\n"),
    Fault("loose_keys.jsonl", (), (), LINES.replace('":', '" :').encode()),
    only("line_separators", None, messages(USER, SEPARATORS)),
    only("quotes_in_text", None, messages(QUOTES, ASSISTANT)),
    only("user_not_to_train", None, messages({**USER, "train": False}, ASSISTANT)),
    only("padded_tokens", None, {"tokens": [0, 1, 2], "loss_mask": [0, 0, 1], "attention_mask": [0, 1, 1]}),
    only("empty_keys", None, messages(USER, ASSISTANT, meta={"": 1, "\\": {"": 2}})),
)
"""Files without a fault, of kinds that a careless reader trips over."""

OF_A_LINE = (
    third("invalid-json", "{'id': 'x', 'messages': []}"),
    third("nan-literal", '{"id":"x","weight":NaN,"messages":[]}'),
    third("large-integer", '{"id":"x","n":123456789012345678901234,"messages":[]}'),
    third("lone-surrogate", '{"id":"x","messages":[{"role":"user","content":"a \\ud83d"}]}'),
    third("duplicate-key", '{"id":"x","messages":[{"role":"user","content":"a","content":"b"}]}'),
    third("not-an-object", '["a", "b"]'),
    third("nested-too-deeply", '{"id": "x", "meta": ' + "[" * 300 + "]" * 300 + "}"),
    Fault("null.jsonl", ("not-an-object",), (2,), f"{GOOD[0]}\nnull\n{GOOD[1]}".encode()),
    Fault("latin1.jsonl", ("not-utf-8",), (2,), GOOD[0].encode() + b'\n{"id": "caf\xe9"}\n'),
    Fault("cut_in_the_middle.jsonl", ("invalid-json",), (6,), LINES[:-30].encode()),
    Fault("blank_lines.jsonl", ("blank-line",), (2, 3), f"{GOOD[0]}\n\n   \n{GOOD[1]}\n\n".encode()),
)

OF_A_RECORD = (
    third("missing-field", {"id": "x"}),
    only("no_role", "missing-field", messages({"content": "a"}, ASSISTANT)),
    only("no_content", "missing-field", messages(USER, {"role": "assistant"})),
    third("wrong-type", {"id": "x", "messages": "hello"}),
    only("content_dict", "wrong-type", messages({"role": "user", "content": {"text": "a"}}, ASSISTANT)),
    third("nested-content", messages({"role": "user", "content": [{"type": "text", "text": "a"}]}, ASSISTANT)),
    third("unread-content", messages(USER, {**ASSISTANT, "function_call": {"name": "f", "arguments": "{}"}})),
    only("pictures", "unread-content", messages(USER, ASSISTANT, images=["a.png"])),
    only("functions", "unread-content", messages(USER, ASSISTANT, functions=[{"name": "f"}])),
    only("two_system_messages", "role-order", messages(SYSTEM, USER, ASSISTANT, system="Be long.")),
    only("system_beside", None, messages(USER, ASSISTANT, system="Be short.")),
    only("system_twice_the_same", None, messages(SYSTEM, USER, ASSISTANT, system="Be short.")),
    third("unknown-role", messages(USER, {"role": "robot", "content": "a"})),
    third("role-order", messages(ASSISTANT, USER)),
    only("system_in_middle", "role-order", messages(USER, {"role": "system", "content": "s"}, ASSISTANT)),
    third("no-assistant", messages(USER)),
    only("no_messages", "no-assistant", messages()),
    third("empty-assistant", messages(USER, {"role": "assistant", "content": " \n"})),
    third("bad-weight", messages(USER, {**ASSISTANT, "weight": -1})),
    only("weight_of_a_user", "bad-weight", messages({**USER, "weight": 1}, ASSISTANT)),
    third("no-trained-token", messages(USER, {**ASSISTANT, "weight": 0})),
    third("mixed-shapes", SHAREGPT),
    third("bad-id", {**messages(USER, ASSISTANT), "id": ["x"]}),
    third("repeated-role", messages(USER, {"role": "user", "content": "Really?"}, ASSISTANT)),
    third("empty-message", messages({"role": "system", "content": ""}, USER, ASSISTANT)),
    third("unknown-message-field", messages(USER, {**ASSISTANT, "lang": "en"})),
    third("unknown-mark", messages(USER, {**ASSISTANT, "wieght": 0.5})),
    only("mark_of_a_record", "unknown-mark", messages(USER, ASSISTANT, no_loss=True)),
    only("label_of_a_message", "unknown-mark", messages(USER, {**ASSISTANT, "label": False})),
    only("rejected_answer", "unknown-mark", {"id": "x", "prompt": "a", "completion": "b", "label": False}),
    only("text_for_a_mark", "bad-weight", messages(USER, {**ASSISTANT, "train": "no"})),
    only("marks_that_contradict", "bad-weight", messages(USER, {**ASSISTANT, "train": False, "weight": 1})),
    only("weight_beyond_measure", "bad-weight", messages(USER, {**ASSISTANT, "weight": 1e300})),
    only("nobody_trains", "no-trained-token", messages(USER, {**ASSISTANT, "train": False})),
    only("record_not_to_train", "no-trained-token", messages(USER, ASSISTANT, trainable=0)),
    only("user_to_train", "bad-weight", messages({**USER, "train": True}, ASSISTANT)),
    third("control-character", messages({"role": "user", "content": "a\x00b\x07"}, ASSISTANT)),
    third("huge-answer", messages(USER, {"role": "assistant", "content": "word " * 50_000})),
    third("control-token", messages({"role": "user", "content": "Say <|im_end|> twice."}, ASSISTANT)),
    only("tools_text", "wrong-type", messages(USER, ASSISTANT, tools="search")),
    only(
        "call_without_a_name", "missing-field", messages(USER, {"role": "assistant", "tool_calls": [{"function": {}}]})
    ),
    only("tokens", "bad-tokens", {"tokens": [1, -2], "loss_weights": [0, 1]}),
    only("attention_of_halves", "bad-tokens", {"tokens": [1, 2], "loss_mask": [0, 1], "attention_mask": [1, 0.5]}),
    only("attention_of_another_length", "bad-tokens", {"tokens": [1, 2], "loss_mask": [0, 1], "attention_mask": [1]}),
    only("labels_shifted", "bad-tokens", {"input_ids": [1, 2, 3], "labels": [2, 3, -100]}),
    only(
        "masks_that_differ", "bad-tokens", {"tokens": [1, 2, 3], "loss_mask": [0, 1, 1], "completion_mask": [0, 0, 1]}
    ),
    only("packed_tokens", "bad-tokens", {"tokens": [1, 2, 1], "loss_mask": [0, 1, 1], "position_ids": [0, 1, 0]}),
    only("only_padding", "no-trained-token", {"tokens": [1, 2], "loss_mask": [0, 1], "attention_mask": [0, 0]}),
    only("untrained_tokens", "no-trained-token", {"tokens": [1, 2], "loss_weights": [1, 0]}),
    only("alpaca_number", "wrong-type", {"instruction": "a", "input": 3, "output": "b"}),
    only("empty_completion", "empty-assistant", {"prompt": "a", "completion": ""}),
    only("sharegpt_stranger", "unknown-role", {"conversations": [{"from": "robot", "value": "a"}]}),
)

OF_A_FILE = (
    whole("byte-order-mark.jsonl", "byte-order-mark", b"\xef\xbb\xbf" + LINES.encode()),
    whole("utf-16.jsonl", "utf-16", LINES.encode("utf-16")),
    whole("utf-16-bare.jsonl", "utf-16", LINES.encode("utf-16-le")),
    whole("gzip_named.jsonl", "compressed", gzip.compress(LINES.encode(), mtime=0)),
    whole("array.json", "json-array-file", json.dumps([chat(1), chat(2)]).encode()),
    whole("pretty_array.json", "json-array-file", json.dumps([chat(1), chat(2)], indent=2).encode()),
    whole("empty.jsonl", "empty-file", b"", None),
    whole("only_blank.jsonl", "empty-file", b"\n  \n", None),
    whole("unknown.jsonl", "unknown-shape", b'{"question": "a", "reply": "b"}\n' * 3, None),
    whole("cut.jsonl.gz", "damaged-file", gzip.compress(LINES.encode(), mtime=0)[:-20], None),
    whole("noise.parquet", "damaged-file", b"PAR1 noise", None),
)

BETWEEN_RECORDS = (
    Fault("duplicate_id.jsonl", ("duplicate-id",), (7,), (LINES + json.dumps({**chat(99), "id": "sums/12"})).encode()),
    Fault("exact.jsonl", ("exact-duplicate",), (7,), (LINES + json.dumps({**chat(13), "id": "y"})).encode()),
)

FAULTS = (*CONTROLS, *OF_A_LINE, *OF_A_RECORD, *OF_A_FILE, *BETWEEN_RECORDS)
"""Every fault, and controls without one."""


def write(folder: Path) -> list[tuple[Path, Fault]]:
    """Writes all files."""
    for fault in FAULTS:
        (folder / fault.name).write_bytes(fault.content)
    return [(folder / fault.name, fault) for fault in FAULTS]
