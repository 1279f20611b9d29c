import io
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import bad_inputs
import pytest
from bad_inputs import ASSISTANT, FAULTS, USER, chat, messages
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxtune import validate
from jaxtune.chat import TEMPLATES
from jaxtune.chat.tokenizer import ByteTokenizer
from jaxtune.data.encoding import Encoding
from jaxtune.data.fit import LengthPolicy
from jaxtune.errors import UserError
from jaxtune.storage.stores import Store
from jaxtune.tasks import Problem, Task, Template, from_jsonl, from_list, invert, marks
from jaxtune.tasks.problems import RULES, Severity
from jaxtune.tasks.shapes import Shape
from jaxtune.tasks.sources.jsonl import parse_line
from jaxtune.validate import scan as scan_module
from jaxtune.validate.needles import Needles
from jaxtune.validate.scan import Scanner
from jaxtune.validate.tokens import token_problems


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_found_at_its_line_by_a_rule_that_fits(fault, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / fault.name
    path.write_bytes(fault.content)
    report = validate.validate_files([path])
    assert {problem.rule for problem in report.problems} == set(fault.rules)
    assert sorted({problem.line for problem in report.problems}, key=str) == sorted(fault.lines, key=str)
    assert all(problem.file == str(path) for problem in report.problems)


def test_each_rule_about_one_record_has_a_fault_that_breaks_it():
    elsewhere = {"unreadable-file", "near-duplicate", "leaked-duplicate", "leaked-prompt"}
    elsewhere |= {"too-large", "unwritable", "decode-failed", "template-failed"}
    elsewhere |= {rule for rule in RULES if list(RULES).index(rule) > list(RULES).index("control-token")}  # of tokens
    assert {rule for fault in FAULTS for rule in fault.rules} == set(RULES) - elsewhere


def test_one_report_holds_all_faults_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    files = bad_inputs.write(tmp_path)
    report = validate.validate_files([path for path, _ in files])
    for path, fault in files:
        mine = {problem.rule for problem in report.problems if problem.file == str(path)}
        assert set(fault.rules) <= mine, path
    assert report.num_errors == sum(n for rule, n in report.counts.items() if RULES[rule].severity is Severity.ERROR)


def test_a_missing_file_is_one_problem_among_the_others(tmp_path):
    good = write_lines(tmp_path / "good.jsonl", [chat(1)])
    report = validate.validate_files([tmp_path / "none.jsonl", good])
    assert [(p.rule, p.file) for p in report.problems] == [("unreadable-file", str(tmp_path / "none.jsonl"))]
    assert report.records == 1


@given(text=st.binary(max_size=300))
@example(text=b'{"messages": [1')
@example(text=b"[[[[")
@example(text=b'{"messages":[{"role":["user"],"content":"a"}]}')
@example(text=b'{"messages":[{"role":"user","content":null,"tool_calls":[{"function":{"name":1}}]}]}')
@settings(max_examples=60, deadline=None)
def test_no_bytes_crash_the_scan(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.jsonl"
    path.write_bytes(text)
    report = validate.validate_files([path])
    assert report.num_errors or report.records == 0 or report.files[0].shape is not None


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["id", "messages", "conversations", "prompt", "completion", "instruction", "output", "input", "system", "history"]
    + ["tools", "tokens", "input_ids", "loss_weights", "labels"]
)
MESSAGE_FIELDS = st.sampled_from(["role", "content", "weight", "tool_calls", "name", "from", "value", "reasoning"])
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"])
MESSAGES = st.lists(st.dictionaries(MESSAGE_FIELDS, ROLES | ODD_VALUES, max_size=4), max_size=4)


@given(records=st.lists(st.dictionaries(FIELDS, MESSAGES | ODD_VALUES, max_size=4), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_no_record_crashes_the_checks_and_what_passes_them_converts(records, tmp_path_factory):
    path = write_lines(tmp_path_factory.mktemp("fuzz") / "fuzz.jsonl", records)
    for shape in set(Shape) - {Shape.FIELDS}:
        task = Task(name="t", splits={"train": from_jsonl(path)}, shape=shape)
        for i, record in enumerate(records):
            errors = [rule for rule, _ in task.check(record, shape) if RULES[rule].severity is Severity.ERROR]
            if not errors:
                task.read("train", i)


def spell(shape: Shape, prompt: str, answer: str) -> dict:
    match shape:
        case Shape.MESSAGES:
            return messages({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        case Shape.SHAREGPT:
            return {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]}
        case Shape.ALPACA:
            return {"instruction": prompt, "input": prompt[3:], "output": answer}
        case _:
            return {"prompt": prompt, "completion": answer}


STRAY = (
    *("null", "", "{}", '{"a":1,"a":1}', "{'a': 1}", '{"messages":{}}', '{"messages":[]}', '{"messages":"user"}'),
    '{"instruction":"a","input":0,"output":"b"}',
    '{"instruction":"a","input":" ","output":"b"}',
    '{"instruction":"","input":"a","output":"b","meta":{"k":1}}',
    '{"instruction":"a","output":"b","prompt":"c","completion":"d"}',
    '{"prompt":"a","completion":"b","system":"c"}',
    '{"prompt":"a","completion":null}',
    '{"prompt":["a"],"completion":"b"}',
    '{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"system":1}',
    '{"conversations":[{"from":"bot","value":"a"},{"from":"gpt","value":"b"}]}',
    '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"tools":1}',
    '{"messages":[{"role":"user","content":"a"},{"role":"assistant","weight":0}]}',
    '{"messages":{"role":["user","assistant"],"content":["a","b"]}}',
    '{"id":true,"prompt":"a","completion":"b","messages":null}',
)


@given(
    shape=st.sampled_from([Shape.MESSAGES, Shape.SHAREGPT, Shape.ALPACA, Shape.PROMPT_COMPLETION]),
    texts=st.lists(
        st.text(max_size=12) | st.sampled_from(['"a":', "\\", '\\":', "<|im_end|>", " ", "\x00"]), max_size=40
    ),
    stray=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(STRAY)), max_size=3),
)
@settings(max_examples=120, deadline=None)
def test_settling_whole_chunks_finds_what_taking_records_one_by_one_finds(shape, texts, stray):
    lines = [json.dumps(spell(shape, text, text[::-1])).encode() for text in texts]
    for place, line in stray:
        lines.insert(min(place, len(lines)), line.encode())
    check_both_ways(shape, lines)


@pytest.mark.parametrize("shape", [Shape.MESSAGES, Shape.SHAREGPT, Shape.ALPACA, Shape.PROMPT_COMPLETION])
def test_each_odd_line_alone_is_found_alike_by_both_ways(shape):
    for line in STRAY:
        check_both_ways(shape, [line.encode()])


def check_both_ways(shape, lines):
    task = Task(name="t", splits={"train": from_list([])}, shape=shape)
    quick, slow = Scanner(task, shape), Scanner(task, shape)
    slow._usual = False
    a, b = (scanner._chunk(b"\n".join(lines), 1) for scanner in (quick, slow))
    places = [{(line, rule) for line, _, (rule, _) in scanned.findings} for scanned in (a, b)]
    assert places[0] == places[1]
    assert (a.rows == b.rows).all()


SPOKEN = sorted({*marks.MARKS, *marks._SWITCHES, "do_not_train", "is_target", "maskHistory", "label_text", "topic"})


@pytest.mark.parametrize("shape", [Shape.MESSAGES, Shape.SHAREGPT, Shape.ALPACA, Shape.PROMPT_COMPLETION])
def test_a_field_that_may_mark_a_record_is_judged_alike_by_both_ways(shape):
    """Every word that says what trains, with every kind of value."""
    task, differ = Task(name="t", splits={"train": from_list([])}, shape=shape), []
    for field, value in itertools.product(SPOKEN, (True, False, 0, 1, 0.5, "no", None, [0])):
        line, rules = json.dumps({**spell(shape, "a", "b"), field: value}).encode(), []
        for settles in (True, False):
            scanner = Scanner(task, shape)
            scanner._usual = settles
            rules.append({rule for _, _, (rule, _) in scanner._chunk(line, 1).findings})
        differ += [(field, value, rules)] if rules[0] != rules[1] else []
    assert not differ


@pytest.mark.parametrize("shape", [Shape.MESSAGES, Shape.SHAREGPT, Shape.ALPACA, Shape.PROMPT_COMPLETION])
def test_usual_records_of_every_shape_are_settled_together(shape, monkeypatch):
    task = Task(name="t", splits={"train": from_list([])}, shape=shape)
    lines = [json.dumps(spell(shape, f"What is {i}?", f"It is {i}.")).encode() for i in range(50)]
    monkeypatch.setattr(Scanner, "_one_by_one", lambda *_: pytest.fail("a usual record was taken by itself"))
    assert not Scanner(task, shape)._chunk(b"\n".join(lines), 1).findings


@given(
    st.recursive(
        st.none() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", "\t:\r")]),
)
@settings(max_examples=100, deadline=None)
def test_an_object_without_repeated_keys_is_never_said_to_have_one(value, separators):
    parsed, findings = parse_line(json.dumps(value, separators=separators).replace("\n", " ").encode())
    assert (parsed, findings) == (value, [])


@pytest.mark.parametrize(
    "inner",
    [
        '"a":1,"a":2',
        '"a" : 1, "a"\t:2',
        '"b\\\\":1,"b\\\\":2',
        '"":0,"":0',
        '"b\\\\":0,"a":1,"a":2',
        '"b" :0,"a":1,"a":2',
        '"x":{"a":1,"a":1}',
    ],
)
@pytest.mark.parametrize("text", ["plain", 'a \\": b', "\\\\", 'end\\\\\\":'])
def test_a_repeated_key_is_found_whatever_surrounds_it(inner, text):
    line = f'{{"text": "{text}", {inner}}}'.encode()
    assert [rule for rule, _ in parse_line(line)[1]] == ["duplicate-key"]


def test_lines_longer_than_a_chunk_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_module, "CHUNK", 64)
    path = write_lines(
        tmp_path / "a.jsonl", [chat(i) for i in range(30)] + [{"id": 1}] + [chat(i) for i in range(50, 70)]
    )
    report = validate.validate_files([path])
    assert [(problem.rule, problem.line) for problem in report.problems] == [("missing-field", 31)]
    assert report.records == 51


def test_warnings_alone_leave_the_report_without_errors(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat(1), chat(1)])
    report = validate.validate_files([path])
    assert report.num_errors == 0
    assert report.num_warnings == 2
    assert report.to_json()["ok"] is True


LONG = (
    "The quick brown fox jumps over the lazy dog while seven old wizards make toxic brew for the jovial king of Spain"
)


def test_two_tasks_that_read_one_file_are_not_each_others_duplicates(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"en": f"house {i}", "de": f"Haus {i}"} for i in range(9)])
    there = Task(
        name="there", splits={"train": from_jsonl(path)}, templates=(Template(prompt="{en}?", response="{de}"),)
    )
    back = invert(there, [Template(prompt="{de}?", response="{en}")], cluster="back")
    assert not validate.validate_tasks([there, back]).counts
    both = Task(name="both", splits={"train": from_jsonl(path), "test": from_jsonl(path)}, templates=there.templates)
    assert validate.validate_tasks([both]).counts == {"leaked-duplicate": 9}


def test_sums_that_differ_in_their_sign_are_no_duplicates(tmp_path):
    answer = {"role": "assistant", "content": "4"}
    records = [messages({"role": "user", "content": f"What is 2 {s} 2?"}, answer, id=s) for s in "+*^"]
    assert not validate.validate_files([write_lines(tmp_path / "a.jsonl", records)]).counts


def test_near_duplicates_are_found_within_and_between_splits(tmp_path):
    answer = {"role": "assistant", "content": "A pangram."}
    train = [
        messages({"role": "user", "content": text}, answer) for text in (LONG, LONG.replace("The quick", "A quick"))
    ]
    held = [messages({"role": "user", "content": LONG.upper() + "!"}, answer)]
    files = [write_lines(tmp_path / "train.jsonl", train), write_lines(tmp_path / "validation.jsonl", held)]
    found = {(p.rule, Path(p.file).stem, p.line) for p in validate.validate_files(files).problems if "id" not in p.rule}
    assert found == {("near-duplicate", "train", 2), ("leaked-duplicate", "validation", 1)}


def test_two_questions_about_one_passage_are_no_duplicates(tmp_path):
    passage = " ".join(f"word{i}" for i in range(200))
    records = [
        messages(
            {"role": "user", "content": f"{passage} Who is it?"}, {"role": "assistant", "content": "Ada Lovelace"}
        ),
        messages({"role": "user", "content": f"{passage} When was it?"}, {"role": "assistant", "content": "In 1843."}),
    ]
    report = validate.validate_files([write_lines(tmp_path / "a.jsonl", records)])
    assert set(report.counts) == {"duplicate-id"}


def test_a_question_asked_in_two_splits_is_reported_even_with_another_answer(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", [messages(USER, ASSISTANT), chat(5)])
    test = write_lines(tmp_path / "test.jsonl", [chat(6), messages(USER, {"role": "assistant", "content": "Sunday!"})])
    problems = validate.validate_files([train, test]).problems
    assert [(p.rule, p.file, p.line) for p in problems] == [("leaked-prompt", str(test), 2)]


def test_a_prompt_repeated_inside_one_split_is_nobodys_concern(tmp_path):
    answers = [{"role": "assistant", "content": text} for text in ("Monday.", "It may be Sunday by now.")]
    path = write_lines(tmp_path / "a.jsonl", [{**messages(USER, answer), "id": i} for i, answer in enumerate(answers)])
    assert not validate.validate_files([path]).counts


def test_ids_may_repeat_between_tasks_but_not_within_one():
    tasks = [Task(name=name, splits={"train": from_list([{**chat(i), "id": 1}])}) for i, name in enumerate("ab")]
    assert not validate.validate_tasks(tasks).counts
    twice = Task(name="c", splits={"train": from_list([chat(1)]), "test": from_list([{**chat(2), "id": "sums/1"}])})
    assert set(validate.validate_tasks([twice]).counts) == {"duplicate-id"}


def test_templates_are_checked_in_every_wording():
    records = from_list([{"en": "house", "de": "Haus"}, {"en": "tree"}], name="words")
    task = Task(
        name="mt",
        splits={"train": records},
        templates=(Template(prompt="{en}?", response="{de}"), Template(prompt="Give {de}.", response="{en}")),
    )
    problems = validate.validate_tasks([task]).problems
    assert {(p.rule, p.file, p.line) for p in problems} == {("missing-field", "words", 2)}


def test_shared_out_records_are_told_apart_by_their_split():
    words = [f"Tell me about the number {i}, its divisors, and its place among the primes below it." for i in range(60)]
    records = [messages({"role": "user", "content": text}, ASSISTANT) for text in words]
    records += [messages({"role": "user", "content": text.replace("Tell", "TELL")}, ASSISTANT) for text in words]
    records = [{**record, "id": i} for i, record in enumerate(records)]
    task = Task(name="t", records=from_list(records), splits={"test": 0.5})
    report = validate.validate_tasks([task])
    assert report.counts["leaked-duplicate"] > 10
    assert report.counts["near-duplicate"] > 10


def tokens(path: Path, max_length: int, template: str = "chatml", **changes: Any) -> list[Problem]:
    settings: dict[str, Any] = {"tokenizer": ByteTokenizer(), "template": TEMPLATES[template], "max_length": max_length}
    task = Task(name="t", splits={"train": from_jsonl(path)})
    return list(token_problems(task, "train", Encoding(**settings | changes)))


@pytest.mark.parametrize(
    "policy, rule", [("drop", "left-out"), ("truncate_response", "answer-cut"), ("error", "too-long")]
)
def test_answers_that_do_not_fit_a_row_are_reported(policy, rule, tmp_path):
    records = [chat(1), messages(USER, {"role": "assistant", "content": "x" * 500})]
    path = write_lines(tmp_path / "a.jsonl", records)
    (problem,) = tokens(path, 300, length_policy=LengthPolicy(policy))
    assert (problem.rule, problem.file, problem.line, problem.id) == (rule, str(path), 2, "x")
    assert re.search(r"\b300\b", problem.message)
    size = int(next(re.finditer(r"[0-9]{3}", problem.message))[0])
    assert not tokens(path, size, length_policy=LengthPolicy(policy))
    assert tokens(path, size - 1, length_policy=LengthPolicy(policy))


def test_a_split_in_which_nothing_fits_is_an_error_that_counts_why(tmp_path):
    found = tokens(write_lines(tmp_path / "a.jsonl", [chat(1), chat(2)]), 20)
    assert [problem.rule for problem in found] == ["left-out", "left-out", "no-usable-example"]
    assert "2 dropped: longer than the maximum length" in found[-1].message


def test_a_task_that_hardly_trains_is_reported_once(tmp_path):
    records = [messages({"role": "user", "content": f"{i} " * 500}, ASSISTANT, id=i) for i in range(3)]
    (problem,) = tokens(write_lines(tmp_path / "a.jsonl", records), 10_000)
    assert (problem.rule, problem.line) == ("few-loss-tokens", None)


def test_the_tokenizers_own_control_tokens_are_looked_for(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [messages({"role": "user", "content": "<bos> </s>"}, ASSISTANT)])
    task = Task(name="t", splits={"train": from_jsonl(path)})
    with_tokenizer = validate.validate_tasks([task], controls=tuple(ByteTokenizer().controls.ids))
    assert [problem.message for problem in with_tokenizer.problems] == ["the text holds <bos>"]
    assert [problem.message for problem in validate.validate_files([path]).problems] == ["the text holds </s>"]


def test_a_record_that_the_chat_template_refuses_is_an_error(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat(1), messages(USER, USER, ASSISTANT)])
    assert [(problem.rule, problem.line) for problem in tokens(path, 1000, "mistral")] == [("not-renderable", 2)]
    assert not tokens(path, 1000)


def test_the_first_problems_show_every_rule_and_errors_first(tmp_path):
    records = [{"id": i} for i in range(30)] + [chat(1), chat(1), messages(USER)]
    report = validate.validate_files([write_lines(tmp_path / "a.jsonl", [chat(0), *records, *[chat(2)] * 40])])
    shown = report.first(4)
    assert [problem.rule for problem in shown][:2] == ["missing-field", "no-assistant"]
    assert len({problem.rule for problem in shown}) == 4
    as_json = report.to_json(limit=4)
    assert len(as_json["problems"]) == 4
    assert as_json["not_shown"] == sum(report.counts.values()) - 4
    assert json.loads(json.dumps(as_json)) == as_json


def test_the_printed_report_names_file_line_id_rule_and_remedy(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat(0), messages(USER)])
    out = io.StringIO()
    validate.print_report(validate.validate_files([path]), console=Console(file=out, width=300))
    text = out.getvalue()
    for part in (f"{path}:2", "(id x)", "no-assistant", RULES["no-assistant"].remedy, "1 errors", "messages"):
        assert part in text


def test_a_folder_stands_for_the_data_files_in_it(tmp_path):
    write_lines(tmp_path / "train.jsonl", [chat(1)])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "deep" / "dev.jsonl", [chat(2)])
    files = validate.validate_files([tmp_path]).files
    assert [(Path(file.file).name, file.split) for file in files] == [
        ("dev.jsonl", "validation"),
        ("train.jsonl", "train"),
    ]


def test_the_shared_bad_inputs_are_found_where_their_manifest_says():
    root = os.environ.get("JAXTUNE_EXTRA_DATA")
    if root is None:
        pytest.skip("JAXTUNE_EXTRA_DATA is not set")
    folder = Path(root) / "bad_inputs"
    for entry in json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8")):
        report = validate.validate_files([folder / entry["file"]])
        assert {problem.line for problem in report.problems} == set(entry["bad_lines"]), entry["file"]


@given(text=st.text("<|[ab>\x00é", max_size=20), strings=st.lists(st.text("<|[ab>é", max_size=3), max_size=5))
@settings(max_examples=100, deadline=None)
def test_the_search_for_control_strings_finds_what_in_finds(text, strings):
    found = Needles(strings).found_in(text.encode())
    assert sorted(found) == sorted({string for string in strings if string and string in text})


def test_files_and_folders_at_urls_are_validated_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://{tmp_path}/data")
    good, bad = (json.dumps(one).encode() + b"\n" for one in (chat(0), {"messages": []}))
    store.write("a.jsonl", good + bad)
    store.write("more/dev.jsonl", good)
    store.write("notes.md", b"# not data")
    report = validate.validate_files([store.url])
    assert {file.file for file in report.files} == {f"{store.url}/a.jsonl", f"{store.url}/more/dev.jsonl"}
    assert [(p.file, p.line) for p in report.problems if p.severity is Severity.ERROR] == [(f"{store.url}/a.jsonl", 2)]
    missing = validate.validate_files([f"{store.url}/none.jsonl"])
    assert [problem.rule for problem in missing.problems] == ["unreadable-file"]
    with pytest.raises(UserError, match="holds no data files; data files end in .jsonl"):
        validate.validate_files([f"memory://{tmp_path}/none"])
