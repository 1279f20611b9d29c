import numpy as np
import pytest
from bad_inputs import ASSISTANT, USER, messages

from jaxtune.chat import Conversation
from jaxtune.errors import UserError
from jaxtune.tasks import RecordError, Shape, Task, from_list
from jaxtune.tasks.messages import REASONING_FIELDS, check_messages
from jaxtune.tasks.reading import check_record, to_conversation, to_example
from jaxtune.tasks.shapes import detect, look_up, shape_of

EACH = {
    Shape.MESSAGES: {"id": 7, "messages": [USER, ASSISTANT]},
    Shape.SHAREGPT: {
        "id": "7",
        "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "gpt", "value": ASSISTANT["content"]},
        ],
    },
    Shape.ALPACA: {"id": "7", "instruction": "Which day is it?", "input": "", "output": "Monday."},
    Shape.PROMPT_COMPLETION: {"id": "7", "prompt": "Which day is it?", "completion": "Monday."},
}


def spoken(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize("shape", EACH)
def test_each_shape_is_detected_and_says_the_same(shape):
    record = EACH[shape]
    assert shape_of(record) is shape
    assert detect(from_list([record] * 3)) is shape
    conversation = to_conversation(record, shape)
    assert spoken(conversation) == [("user", "Which day is it?"), ("assistant", "Monday.")]
    assert conversation.id == "7"
    assert check_record(record, shape) == []


def test_openai_messages_under_the_name_conversations_are_messages():
    record = {"conversations": [USER, ASSISTANT]}
    assert shape_of(record) is Shape.MESSAGES
    assert spoken(to_conversation(record, Shape.MESSAGES))[1] == ("assistant", "Monday.")


def test_columns_of_lists_are_lists_of_objects():
    record = {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}
    assert spoken(to_conversation(record, Shape.MESSAGES)) == [("user", "a"), ("assistant", "b")]
    shared = {"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}
    assert shape_of(shared) is Shape.SHAREGPT
    assert spoken(to_conversation(shared, Shape.SHAREGPT)) == [("user", "a"), ("assistant", "b")]


def test_alpaca_joins_instruction_and_input_and_tells_the_history():
    record = {
        "system": "Be brief.",
        "history": [["Hello?", "Hello."]],
        "instruction": "Translate.",
        "input": "Haus",
        "output": "house",
    }
    assert spoken(to_conversation(record, Shape.ALPACA)) == [
        ("system", "Be brief."),
        ("user", "Hello?"),
        ("assistant", "Hello."),
        ("user", "Translate.\n\nHaus"),
        ("assistant", "house"),
    ]


def test_sharegpt_speakers_and_system_field_become_roles():
    record = {
        "system": "Be brief.",
        "conversations": [
            {"from": "user", "value": "a"},
            {"from": "function_call", "value": "f()"},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "b", "weight": 0.5},
        ],
    }
    conversation = to_conversation(record, Shape.SHAREGPT)
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[-1].weight == 0.5


def test_a_system_text_beside_messages_is_their_first_message():
    record = {
        "system": "Be short.",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    said = [(message.role, message.content) for message in to_conversation(record, Shape.MESSAGES).messages]
    assert said == [("system", "Be short."), ("user", "a"), ("assistant", "b")]
    assert [rule for rule, _ in check_record({**record, "system": {"os": "linux"}}, Shape.MESSAGES)] == ["wrong-type"]


@pytest.mark.parametrize("call", [{"name": "f"}, {"function": {"name": "f", "parameters": {"a": 1}}}])
def test_a_call_without_arguments_is_told_before_a_template_is(call):
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    record = {"messages": [{"role": "user", "content": "a"}, answer]}
    found = check_record(record, Shape.MESSAGES)
    assert found == [("missing-field", "messages[1].tool_calls[0] has no arguments; {} says that there are none")]


def test_a_prompt_of_messages_trains_the_completion_only():
    record = {"prompt": [USER, ASSISTANT, {"role": "user", "content": "Sure?"}], "completion": [ASSISTANT]}
    conversation = to_conversation(record, Shape.PROMPT_COMPLETION)
    assert [message.weight for message in conversation.messages] == [None, 0.0, None, None]


def test_a_column_map_gives_columns_their_names():
    record = {"uid": "q1", "question": "a", "answers": {"text": "b", "start": 3}, "a.b": "dotted"}
    columns = {"id": "uid", "prompt": "question", "completion": "answers.text"}
    task = Task(name="t", splits={"train": from_list([record])}, columns=columns)
    conversation = task.read("train", 0)
    assert isinstance(conversation, Conversation)
    assert (spoken(conversation), conversation.id) == ([("user", "a"), ("assistant", "b")], "q1")
    assert look_up(record, "a.b") == "dotted"


def test_a_column_map_with_a_wrong_name_is_refused():
    with pytest.raises(UserError, match=r"columns= maps \['questoin'\].*its keys are among"):
        Task(name="t", splits={"train": from_list([])}, columns={"questoin": "q"})


def test_a_missing_column_is_named_with_its_place():
    task = Task(
        name="t",
        splits={"train": from_list([{"q": "a", "a": "b"}, {"q": "a"}], name="data")},
        columns={"prompt": "q", "completion": "a"},
    )
    with pytest.raises(RecordError, match=r"data:2: missing-field: no column 'a' \(mapped to completion\)"):
        task.read("train", 1)


def test_tokens_are_taken_as_they_are_with_their_weights():
    example = to_example({"tokens": [5, 6, 7], "loss_weights": [0, 1, 0.5]})
    assert example.tokens.tolist() == [5, 6, 7]
    assert example.loss_weights.tolist() == [0, 1, 0.5]
    assert example.tokens.dtype == np.int32
    labelled = to_example({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]})
    assert labelled.loss_weights.tolist() == [0, 0, 1]
    task = Task(name="t", splits={"train": from_list([{"tokens": [5, 6], "loss_mask": [0, 1]}])})
    assert task.shape_in("train") is Shape.TOKENS
    assert task.read("train", 0).loss_weights.tolist() == [0, 1]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"tokens": [1, 2]}, "missing-field"),
        ({"tokens": [1, 2], "loss_weights": [1]}, "bad-tokens"),
        ({"tokens": [1, 2.5], "loss_weights": [0, 1]}, "bad-tokens"),
        ({"tokens": [1, 2**31], "loss_weights": [0, 1]}, "bad-tokens"),
        ({"tokens": [1, 2], "loss_weights": [0, -1]}, "bad-weight"),
        ({"tokens": [1, 2], "loss_weights": [0, float("inf")]}, "bad-weight"),
        ({"tokens": [1, 2], "loss_weights": [1, 0]}, "no-trained-token"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "bad-tokens"),
        ({"tokens": "1 2", "loss_weights": [0, 1]}, "wrong-type"),
    ],
)
def test_unusable_tokens_are_refused(record, rule):
    assert [found for found, _ in check_record(record, Shape.TOKENS)] == [rule]


def test_the_shape_of_most_records_is_the_files():
    stray = EACH[Shape.ALPACA]
    source = from_list([stray, *[EACH[Shape.MESSAGES]] * 3], name="data")
    assert detect(source) is Shape.MESSAGES
    task = Task(name="t", splits={"train": source})
    with pytest.raises(RecordError, match=r"data:1 \(id 7\): mixed-shapes: this record has the shape alpaca"):
        task.read("train", 0)


def test_each_split_has_its_own_shape():
    task = Task(
        name="t",
        splits={"train": from_list([EACH[Shape.ALPACA]]), "test": from_list([EACH[Shape.SHAREGPT]])},
    )
    assert (task.shape_in("train"), task.shape_in("test")) == (Shape.ALPACA, Shape.SHAREGPT)
    assert task.read("train", 0) == task.read("test", 0)


def roles(letters: str) -> list[str]:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
    return [names[letter] for letter in letters]


@pytest.mark.parametrize("letters", ["ua", "sua", "dua", "uaua", "uata", "uatta", "suatauata"])
def test_orders_of_roles_that_are_fine(letters):
    assert check_messages([{"role": role, "content": "x"} for role in roles(letters)]) == []


@pytest.mark.parametrize("letters", ["a", "au", "uau", "usa", "sa", "suasua", "uta", "tua", "uatua", "ssua", "uat"])
def test_orders_of_roles_that_are_errors(letters):
    found = [rule for rule, _ in check_messages([{"role": role, "content": "x"} for role in roles(letters)])]
    assert found == ["role-order"]


@pytest.mark.parametrize("letters", ["uua", "uaa", "suuaa"])
def test_two_turns_of_one_role_are_a_warning(letters):
    found = {rule for rule, _ in check_messages([{"role": role, "content": "x"} for role in roles(letters)])}
    assert found == {"repeated-role"}


def test_an_assistant_may_be_silent_where_it_calls_thinks_or_is_not_trained():
    call = {"function": {"name": "f", "arguments": {}}}
    quiet = [{"tool_calls": [call]}, {"content": "", "tool_calls": [call]}, {"content": "", "reasoning_content": "Hm."}]
    for fields in quiet:
        assert check_messages([USER, {"role": "assistant", **fields}]) == []
    untrained = [USER, {"role": "assistant", "content": "", "weight": 0}, USER, ASSISTANT]
    assert [rule for rule, _ in check_messages(untrained)] == ["empty-message"]


def test_reasoning_names_tools_and_weights_reach_the_conversation():
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    record = messages(
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0.5},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "Three.", "thinking": "Easy."},
        tools=tools,
    )
    conversation = to_conversation(record, Shape.MESSAGES)
    user, asks, tool, answer = conversation.messages
    assert conversation.tools == tools
    assert (user.name, asks.tool_calls, asks.weight, asks.content) == ("Ann", [call], 0.5, None)
    assert (tool.tool_call_id, tool.content) == ("c1", "3")
    assert (answer.reasoning, answer.weight) == ("Easy.", None)


@pytest.mark.parametrize("field", REASONING_FIELDS)
def test_reasoning_is_read_in_every_spelling(field):
    conversation = to_conversation(messages(USER, {**ASSISTANT, field: "Easy."}), Shape.MESSAGES)
    assert conversation.messages[-1].reasoning == "Easy."
    assert check_messages([USER, {"role": "assistant", "content": "", field: "Easy."}]) == []
    assert "wrong-type" in [rule for rule, _ in check_messages([USER, {**ASSISTANT, field: ["Easy."]}])]


def test_all_errors_of_a_record_come_at_once():
    record = messages({"role": "user", "content": 3}, {"role": "assistant", "content": ""}, tools="x")
    with pytest.raises(RecordError) as error:
        to_conversation(record, Shape.MESSAGES, file="a.jsonl", line=4)
    assert [(p.rule, p.place, p.id) for p in error.value.problems] == [
        ("wrong-type", "a.jsonl:4", "x"),
        ("empty-assistant", "a.jsonl:4", "x"),
        ("wrong-type", "a.jsonl:4", "x"),
    ]


def test_unknown_fields_are_listed_when_no_shape_fits():
    with pytest.raises(
        RecordError, match=r"unknown-shape: no record shape is known with the fields \['a', 'b'\].*columns="
    ):
        detect(from_list([{"a": 1}, {"b": 2}]))
    with pytest.raises(RecordError, match="empty-file"):
        detect(from_list([]))
