import json

import numpy as np
import pytest
from bad_inputs import ASSISTANT, USER, messages
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.batch import Example
from jaxtune.chat import Conversation
from jaxtune.tasks import RecordError, Shape, Task, Template, from_jsonl, from_list
from jaxtune.tasks.marks import MARKS, is_weight, sounds_like_mark
from jaxtune.tasks.reading import check_record, to_conversation, to_example
from jaxtune.tasks.shapes import shape_of
from jaxtune.tasks.token_records import WEIGHT_FIELDS
from jaxtune.validate import validate_files

OTHER = {"role": "assistant", "content": "Tuesday."}
SPELLINGS = {
    Shape.MESSAGES: lambda mark: messages(USER, {**ASSISTANT, **mark}, USER, OTHER),
    Shape.SHAREGPT: lambda mark: {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b", **mark},
            {"from": "human", "value": "c"},
            {"from": "gpt", "value": "d"},
        ]
    },
}
RECORDS = {
    Shape.MESSAGES: messages(USER, ASSISTANT, USER, {**OTHER, "weight": 0.5}),
    Shape.ALPACA: {"instruction": "a", "output": "b", "history": [["c", "d"]]},
    Shape.PROMPT_COMPLETION: {"prompt": "a", "completion": "b"},
}


def weights(record: dict) -> list[float | None]:
    shape = shape_of(record)
    assert shape is not None
    return [m.weight for m in to_conversation(record, shape).messages if m.role == "assistant"]


def rules(record: dict) -> list[str]:
    shape = shape_of(record)
    assert shape is not None
    return [rule for rule, _ in check_record(record, shape)]


@pytest.mark.parametrize("shape", SPELLINGS)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("value, weight", [(True, 1), (False, 0), (1, 1), (0, 0), (0.25, 0.25), (3, 3), (None, None)])
def test_every_mark_of_a_message_is_its_weight(shape, mark, value, weight):
    assert weights(SPELLINGS[shape]({mark: value})) == [weight, None]


@pytest.mark.parametrize("shape", RECORDS)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("value", [True, 1, 0.25, 3])
def test_a_mark_of_a_record_multiplies_the_weights_of_its_answers(shape, mark, value):
    plain = [1 if weight is None else weight for weight in weights(RECORDS[shape])]
    assert weights({**RECORDS[shape], mark: value}) == [float(value) * weight for weight in plain]


@pytest.mark.parametrize("shape", RECORDS)
@pytest.mark.parametrize("mark", MARKS)
def test_a_record_marked_not_to_train_is_an_error_that_says_so(shape, mark):
    assert "no-trained-token" in rules({**RECORDS[shape], mark: False})
    with pytest.raises(RecordError, match="no-trained-token"):
        weights({**RECORDS[shape], mark: 0})


@given(
    mark=st.sampled_from(MARKS),
    value=st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.floats() | st.integers(-3, 10**400),
    of_record=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_is_no_weight_is_an_error_and_what_is_one_is_taken(mark, value, of_record):
    record = messages(USER, ASSISTANT, **{mark: value}) if of_record else messages(USER, {**ASSISTANT, mark: value})
    if is_weight(value) and value > 0:
        assert rules(record) == []
        assert weights(record) == [float(value)]
        assert np.float32(float(value)) > 0
    elif is_weight(value):
        assert set(rules(record)) == {"no-trained-token"}
    else:
        assert "bad-weight" in rules(record)


SOUND_SO = (
    *("Train", "TRAIN", "trains", "trained", "training", "do_train", "doTrain", "do-train", "is_trained", "no_train"),
    *("learn", "Learn", "learnable", "should_learn", "no_loss", "noLoss", "compute_loss", "loss-mask", "lossMask"),
    *("LossMask", "loss_masks", "lossmask", "losses", "loss_weight", "loss_weights", "mask", "masked", "masks"),
    *("is_masked", "ignore", "ignored", "ignore_loss", "weights", "Weight", "sample_weight", "token_weights"),
    *("message weight", "supervise", "supervised", "untrainable", "train_on_this", "turn_mask", "exclude_from_loss"),
    *("train_detail", "calculate_loss", "eot_loss", "requires_grad", "skip", "skipped", "exclude", "excluded"),
    *("loss_scale", "lossScale", "loss_factor", "donottrain", "notrain", "noloss", "unmasked", "nontrainable"),
    *("maskloss", "reweight", "finetune", "finetuned", "ignored_tokens", "can_train", "allow_training", "no_role_loss"),
    *("learnt", "trainability", "backpropagate", "don't_train", "don\u2019t train", "\uff54rain", "tra\u200bin"),
)
SPEAK_OF_ELSE = (
    *("train_split", "training_set", "source_weight", "weight_kg", "ignore_case", "lang", "source", "trainer", "id"),
    *("retrained_model", "strained", "outweigh", "lossless", "tuner", "tunes_of_glory", "training_data", "stop_loss"),
    *("attention_mask", "special_tokens_mask", "model", "constraint", "strain", "unmasking_date", "gloss", "author"),
    *(
        "grade",
        "graded",
        "skip_connection",
        "excluded_by",
        "learner_name",
        "turns",
        "tokens",
        "answer",
        "message",
        "do",
        "",
        "7",
        "日本",
        *MARKS,
    ),
)


@pytest.mark.parametrize("name", SOUND_SO)
def test_a_field_that_sounds_like_a_mark_is_an_error_on_messages_and_records(name):
    assert sounds_like_mark(name)
    assert rules(messages(USER, {**ASSISTANT, name: False})) == ["unknown-mark"]
    assert rules(messages(USER, ASSISTANT, **{name: False})) == ["unknown-mark"]
    if name not in WEIGHT_FIELDS:
        assert rules({"tokens": [1, 2], "labels": [-100, 2], name: False}) == ["unknown-mark"]


@pytest.mark.parametrize("name", SPEAK_OF_ELSE)
def test_a_field_that_speaks_of_something_else_is_no_mark(name):
    assert not sounds_like_mark(name)
    assert "unknown-mark" not in rules(messages(USER, ASSISTANT, **{name: 1}))


@pytest.mark.parametrize(
    "name, value, wrong",
    [
        *(("wieght", 0.5, True), ("trian", False, True), ("wieght", "heavy", False)),
        *(("label", False, True), ("labels", -100, True), ("is_target", 0, True), ("isTarget", True, True)),
        *(
            ("mask_history", True, True),
            ("masked_input", "a", False),
            ("include", False, True),
            ("keep", 0, True),
            ("frozen", True, True),
            ("label", "greeting", False),
        ),
        *(("nll_mask", 0, True), ("roles_to_train", ["user"], True), ("step_weights", [0], True), ("sft", 0, True)),
        *(("stop_gradient", True, True), ("back_prop", False, True), ("rejected", True, True), ("scores", [1], False)),
        *(
            ("target", "user", False),
            ("target_year", 2020, False),
            ("labelled_by", 7, False),
            ("fine_tune", False, True),
        ),
    ],
)
def test_a_number_or_switch_with_the_name_of_a_mark_in_other_words_is_an_error(name, value, wrong):
    assert rules(messages(USER, {**ASSISTANT, name: value})) == ["unknown-mark" if wrong else "unknown-message-field"]


def test_a_very_long_name_takes_no_time():
    assert not sounds_like_mark("without" * 5000 + "train")


def test_of_a_record_only_a_switch_is_such_a_mark():
    assert rules({"prompt": "a", "completion": "b", "label": False}) == ["unknown-mark"]
    assert rules({"prompt": "a", "completion": "b", "label": 0}) == []
    assert rules(messages(USER, ASSISTANT, label="positive", target=3)) == []


@pytest.mark.parametrize(
    "name, value, wrong",
    [
        *(("label_mask", 0, True), ("target_mask", [0, 1], True), ("prompt_loss_weight", 0.5, True)),
        *(
            ("step_weights", [0], True),
            ("stop_gradient", True, True),
            ("rejected", True, True),
            ("chosen", False, True),
        ),
        *(("trian", False, True), ("wieght", 0, True), ("rtainable", 1, True), ("height", 180, False)),
        *(("rain", True, False), ("trait", True, False), ("labels", [1], False), ("rejected", "text", False)),
        *(("target_mask", "a", False), ("stop_loss", 0.9, False), ("weights_kg", [3], False), ("ce_coef", 1, False)),
    ],
)
@pytest.mark.parametrize("file", [False, True])
def test_a_field_of_a_record_is_a_mark_in_other_words_by_its_name_and_value(name, value, wrong, file, tmp_path):
    record = messages(USER, ASSISTANT, **{name: value})
    if not file:
        assert rules(record) == ["unknown-mark"] * wrong
        return
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    found = validate_files([tmp_path / "a.jsonl"]).problems
    assert [problem.rule for problem in found] == ["unknown-mark"] * wrong


def test_a_mark_hidden_in_an_object_is_an_error_unless_there_is_one_in_its_place():
    hidden = {"metadata": {"train": False, "split": "train"}}
    assert rules(messages(USER, ASSISTANT, **hidden)) == ["unknown-mark"]
    assert rules(messages(USER, {**ASSISTANT, **hidden})) == ["unknown-mark", "unknown-message-field"]
    assert rules(messages(USER, ASSISTANT, **hidden, train=True)) == []
    assert rules(messages(USER, ASSISTANT, metadata={"loss": 2.5, "split": "train", "fluent": False})) == []
    columns = {"train": "metadata.train"}
    with pytest.raises(RecordError, match="marked not to train"):
        to_conversation(messages(USER, ASSISTANT, **hidden), Shape.MESSAGES, columns)


def test_a_mark_of_another_name_is_read_where_columns_map_it():
    columns = {"weight": "loss_scale"}
    record = messages(USER, ASSISTANT, loss_scale=0.5)
    assert [m.weight for m in to_conversation(record, Shape.MESSAGES, columns).messages] == [None, 0.5]
    padded = {"ids": [0, 5, 6], "pad_mask": [0, 1, 1], "keep": [0, 0, 1]}
    columns = {"tokens": "ids", "attention_mask": "pad_mask", "loss_mask": "keep"}
    assert to_example(padded, columns).tokens.tolist() == [5, 6]


def test_a_message_not_to_train_is_zero_from_file_to_weights(tmp_path):
    record = messages(USER, {**ASSISTANT, "train": False}, USER, OTHER)
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    read = Task(name="t", splits={"train": from_jsonl(tmp_path / "a.jsonl")}).read("train", 0)
    assert isinstance(read, Conversation)
    assert [message.weight for message in read.messages] == [None, 0.0, None, None]


def test_records_of_fields_have_marks_where_no_template_words_them():
    def task(record: dict, prompt: str = "{q}") -> Task:
        return Task(
            name="t", splits={"train": from_list([record])}, templates=(Template(prompt=prompt, response="{a}"),)
        )

    def weight(task: Task) -> float | None:
        read = task.read("train", 0)
        assert isinstance(read, Conversation)
        return read.messages[-1].weight

    assert weight(task({"q": "a", "a": "b", "train": 0.5})) == 0.5
    assert weight(task({"q": "a", "a": "b", "weight": 70}, "{q} {weight} kg?")) is None
    assert weight(task({"q": "a", "a": "b", "weight": "70 kg"})) is None
    with pytest.raises(RecordError, match="no-trained-token"):
        weight(task({"q": "a", "a": "b", "train": False}))
    with pytest.raises(RecordError, match="bad-weight"):
        weight(task({"q": "a", "a": "b", "weight": -1}))
    assert weight(task({"q": "a", "a": "b", "label": 0, "mask": "[MASK]", "loss_mask": [0, 1]})) is None
    assert weight(task({"q": "a", "a": "b", "label": False}, "{q} {label}")) is None
    for hidden in ({"do_train": False}, {"label": False}, {"loss_weight": 0.1}, {"metadata": {"train": False}}):
        with pytest.raises(RecordError, match="unknown-mark"):
            weight(task({"q": "a", "a": "b", **hidden}))


# Records of token ids.

TOKENS = [5, 6, 7, 8, 9]
WEIGHTS = [0, 0, 1, 1, 1]


def same(left: Example, right: Example) -> bool:
    return bool((left.tokens == right.tokens).all() and (left.loss_weights == right.loss_weights).all())


@given(
    pads=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    field=st.sampled_from(WEIGHT_FIELDS),
    pad=st.integers(-1, 99),
)
@settings(max_examples=60, deadline=None)
def test_padding_on_the_left_on_the_right_and_inside_is_left_off(pads, field, pad):
    values = [t if w else -100 for t, w in zip(TOKENS, WEIGHTS, strict=True)] if field == "labels" else WEIGHTS
    blank = -100 if field == "labels" else 0
    spread = lambda items, filler: [
        x for n, item in zip(pads, [*items, None], strict=True) for x in [filler] * n + [item] * (item is not None)
    ]
    padded = {"input_ids": spread(TOKENS, pad), field: spread(values, blank), "attention_mask": spread([1] * 5, 0)}
    assert rules(padded) == []
    assert same(to_example(padded), to_example({"tokens": TOKENS, field: values}))


def test_positions_may_count_and_a_mark_scales_a_record_of_tokens():
    record = {"input_ids": [0, *TOKENS], "loss_mask": [0, *WEIGHTS], "attention_mask": [0, 1, 1, 1, 1, 1]}
    assert rules({**record, "position_ids": [1, 0, 1, 2, 3, 4]}) == []
    half = to_example({**record, "weight": 0.5})
    assert half.loss_weights.tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert rules({**record, "train": False}) == ["no-trained-token"]
    assert rules({**record, "train": "x"}) == ["bad-weight"]
    same_twice = {"tokens": TOKENS, "loss_mask": WEIGHTS, "labels": [-100, -100, 7, 8, 9], "completion_mask": WEIGHTS}
    assert rules(same_twice) == []


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("padding_mask", [1, 0, 0, 0, 0, 0], "padding is told by attention_mask"),
        ("attn_mask", [0, 1, 1, 1, 1, 1], "padding is told by attention_mask"),
        ("input_mask", [0, 1, 1, 1, 1, 1], "input_mask sounds like a mark"),
        ("mask", [0, 1, 1, 1, 1, 1], "mask sounds like a mark"),
        ("weight", [0, 0, 0, 1, 1, 1], "weight is an array"),
        ("tokens", [1, 2, 3, 4, 5, 6], "tokens and input_ids are not the same"),
        ("seq_idx", [0, 0, 0, 1, 1, 1], "seq_idx tells of 2 examples"),
        ("segment_ids", [1, 2, 3, 3, 3, 3], "segment_ids tells of 3 examples"),
        ("seq_lengths", [2, 4], "seq_lengths tells of 2 examples"),
        ("cu_seq_lens_q", [0, 2, 6], "cu_seq_lens_q tells of 2 examples"),
        ("position_ids", [0, 1, 2, 0, 1, 2], "position_ids do not count up by one"),
        *(("special_tokens_mask", [1, 0, 0, 0, 0, 0], ""), ("token_type_ids", [0] * 6, ""), ("length", 6, "")),
        *(("seq_idx", [0] * 6, ""), ("seq_lengths", [6], ""), ("cu_seqlens", [0, 6], ""), ("doc_id", "a-7", "")),
    ],
)
def test_what_tells_of_padding_or_of_several_examples_is_not_passed_over(field, value, said):
    record = {"input_ids": [0, *TOKENS], "loss_mask": [0, *WEIGHTS], field: value}
    found = check_record(record, Shape.TOKENS)
    assert [said in message for _, message in found] == [True] * bool(said)


def test_the_number_of_padding_is_no_example_of_its_own():
    record = {"input_ids": [0, *TOKENS], "loss_mask": [0, *WEIGHTS], "segment_ids": [0, 1, 1, 1, 1, 1]}
    assert rules(record) == ["bad-tokens"]
    assert rules({**record, "attention_mask": [0, 1, 1, 1, 1, 1]}) == []
