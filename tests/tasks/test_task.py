import collections
import dataclasses
import functools
import itertools
import json
import pickle
import subprocess
import sys

import pytest
from bad_inputs import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.chat import Conversation, Message
from jaxtune.errors import UserError
from jaxtune.mixture.settings import Group
from jaxtune.tasks import (
    FewShot,
    FewShotStyle,
    ProblemLog,
    RecordError,
    Shape,
    Task,
    Template,
    by_name,
    cluster_groups,
    from_jsonl,
    from_list,
    hold_out,
    invert,
)
from jaxtune.tasks.problems import Problem

WORDS = [{"id": i, "en": f"word {i}", "de": f"Wort {i}"} for i in range(40)]
FORWARD = Template(prompt="German for {en}?", response="{de}")
BACKWARD = Template(prompt="Which phrase is {de} in German?", response="{en}", cluster="guessing")


def words_task(**fields) -> Task:
    return Task(**{"name": "mt", "records": from_list(WORDS), "templates": (FORWARD,), **fields})


def spoken(conversation) -> list[tuple[str, str | None]]:
    assert isinstance(conversation, Conversation)
    return [(message.role, message.content) for message in conversation.messages]


# Templates.


def test_a_template_words_a_record():
    task = words_task(templates=(Template(prompt="{en}?", response="{{{de}}}", system="From {a.b}."),))
    conversation = task.conversation({"en": "house", "de": "Haus", "a": {"b": 3}, "id": "x"})
    assert spoken(conversation) == [("system", "From 3."), ("user", "house?"), ("assistant", "{Haus}")]
    assert conversation.id == "x"


def test_each_template_is_its_own_wording():
    task = words_task(templates=(FORWARD, BACKWARD))
    assert task.num_templates == 2
    assert words_task(templates=()).num_templates == 1
    assert spoken(task.read("train", 3, 1)) == [("user", "Which phrase is Wort 3 in German?"), ("assistant", "word 3")]


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0!r}", "{en:>5}", "{a[0]}", "{en!s}"])
def test_a_template_that_is_not_plain_fields_is_refused_when_it_is_made(text):
    with pytest.raises(UserError, match="template"):
        Template(prompt=text, response="x")


def test_an_unknown_field_names_record_and_fields():
    task = words_task(records=from_list(WORDS, name="words"), templates=(Template(prompt="{fr}?", response="{de}"),))
    with pytest.raises(RecordError, match=r"words:5 \(id 4\): missing-field: the template needs 'fr'; the record has"):
        task.read("train", 4)
    with pytest.raises(RecordError, match="wrong-type: de is an array"):
        task.conversation({"fr": "a", "de": ["b"]})
    with pytest.raises(RecordError, match="wrong-type: de is null"):
        task.conversation({"fr": "a", "de": None})


def test_an_empty_answer_is_refused_in_any_wording():
    with pytest.raises(RecordError, match="empty-assistant"):
        words_task().conversation({"en": "a", "de": " "})


def two_turns(record) -> Conversation:
    turns = [("user", record["en"]), ("assistant", record["de"])]
    return Conversation(messages=[Message(role, text) for role, text in turns])


def answers_nothing(record) -> Conversation:
    return Conversation(messages=[Message("robot", record["en"])])


def test_a_function_may_word_a_record():
    task = words_task(templates=(two_turns, FORWARD))
    conversation = task.read("train", 3, 0)
    assert spoken(conversation) == [("user", "word 3"), ("assistant", "Wort 3")]
    assert conversation.id == "3"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RecordError, match="missing-field: the template function needs 'de'"):
        task.conversation({"en": "a"})
    with pytest.raises(RecordError, match="empty-assistant"):
        task.conversation({"en": "a", "de": " "})
    with pytest.raises(RecordError, match="template-failed: unknown role 'robot'.*test_task.py:[0-9]+"):
        words_task(templates=(answers_nothing,)).conversation({"en": "a"})


class NoException(BaseException):
    pass


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        ([{"role": "user", "content": "a"}], None, r"messages\[0\] is a dict; it must be a Message\(role, content\)"),
        (None, None, "messages is a NoneType"),
        ((message for message in ()), None, "messages is a generator"),
        ([], "search", "tools must be a list of objects"),
        ([], [3], "tools must be a list of objects"),
    ],
)
def test_a_template_function_that_fills_a_conversation_with_something_else_is_told_its_line(messages, tools, said):
    def build(record):
        return Conversation(messages, tools=tools)

    # runtime type checks, where they are on, say it before the class itself does
    with pytest.raises(RecordError, match=f"(?s)template-failed: ({said}|Beartype).*test_task.py:[0-9]+"):
        words_task(templates=(build,)).conversation({"en": "a", "de": "b"})


@pytest.mark.parametrize(
    "raised, said",
    [
        (SystemExit(3), "template-failed: SystemExit: 3"),
        (NoException("x"), "template-failed: NoException: x"),
        (ZeroDivisionError("of its own"), "template-failed: ZeroDivisionError: of its own"),
        (KeyError("en"), "template-failed: KeyError: 'en'"),
        (KeyError("de"), "missing-field: the template function needs 'de'"),
        (KeyError(), "template-failed: KeyError"),
    ],
)
def test_whatever_a_template_function_raises_is_a_problem_of_its_record_with_the_line(raised, said):
    def words(record):
        raise raised

    with pytest.raises(RecordError, match=rf"{said}.*test_task.py:\d+"):
        words_task(templates=(words,)).conversation({"en": "a"})


def test_an_interrupt_in_a_template_function_is_no_problem_of_the_record():
    def words(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        words_task(templates=(words,)).conversation({"en": "a"})


# Few-shot exemplars.


def test_exemplars_come_before_the_question_and_do_not_train():
    task = words_task(few_shot=FewShot(count=3))
    conversation = task.read("train", 7)
    assert isinstance(conversation, Conversation)
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 4
    assert [message.weight for message in conversation.messages] == [None, 0.0] * 3 + [None, None]
    assert spoken(conversation)[-2:] == [("user", "German for word 7?"), ("assistant", "Wort 7")]


def test_exemplars_may_stand_in_the_prompt():
    task = words_task(few_shot=FewShot(count=2, style=FewShotStyle.TEXT))
    user, assistant = spoken(task.read("train", 7))
    blocks = str(user[1]).split("\n\n")
    assert blocks[-1] == "German for word 7?"
    assert all(block.replace("German for word ", "").split("?\nWort ")[0].isdigit() for block in blocks[:2])
    assert assistant == ("assistant", "Wort 7")


def test_an_example_is_never_its_own_exemplar_and_no_question_stands_twice():
    records = WORDS[:6] + [{**record, "id": f"again {record['id']}"} for record in WORDS[:6]]
    task = words_task(records=from_list(records), few_shot=FewShot(count=4))
    for i in range(len(records)):
        asked = [text for role, text in spoken(task.read("train", i)) if role == "user"]
        assert len(set(asked)) == 5


def test_exemplars_depend_on_the_record_alone():
    task = words_task(few_shot=FewShot(count=2))
    first = [task.read("train", i) for i in range(40)]
    again = pickle.loads(pickle.dumps(words_task(few_shot=FewShot(count=2))))
    assert [again.read("train", i) for i in reversed(range(40))] == first[::-1]
    other = words_task(few_shot=FewShot(count=2, seed=1))
    assert [other.read("train", i) for i in range(40)] != first
    used = collections.Counter(turn for conversation in first for turn in spoken(conversation)[:-2])
    assert len(used) > 40  # not the same few for everybody: 20 of 40 questions and their answers at the least


def test_exemplars_come_from_the_train_split_even_for_the_test_split():
    task = words_task(splits={"test": 0.5}, few_shot=FewShot(count=3))
    questions = {split: {f"German for {r['en']}?" for r in task.source(split)} for split in ("train", "test")}
    for i in range(len(task.source("test"))):
        *exemplars, own = [text for role, text in spoken(task.read("test", i)) if role == "user"]
        assert own in questions["test"]
        assert set(exemplars) <= questions["train"]


def test_a_template_may_have_its_own_number_of_exemplars():
    zero = dataclasses.replace(FORWARD, shots=0)
    task = words_task(templates=(zero, FORWARD), few_shot=FewShot(count=1))
    assert len(spoken(task.read("train", 0, 0))) == 2
    assert len(spoken(task.read("train", 0, 1))) == 4


def test_too_few_records_for_the_exemplars_is_an_error():
    with pytest.raises(UserError, match="asks for 5 exemplars, but found only 2 other questions among 3"):
        words_task(records=from_list(WORDS[:3]), few_shot=FewShot(count=5)).read("train", 0)


# Splits.


def test_shares_part_the_records_and_follow_their_content():
    records = [{"prompt": f"a{i}", "completion": "b"} for i in range(2000)]
    task = Task(name="t", records=from_list(records), splits={"validation": 0.1, "test": 0.2})
    parts = {name: {record["prompt"] for record in task.source(name)} for name in task.splits}
    assert sum(map(len, parts.values())) == 2000
    assert len(set.union(*parts.values())) == 2000
    assert abs(len(parts["validation"]) - 200) < 50
    assert abs(len(parts["test"]) - 400) < 70
    moved = Task(
        name="other",
        records=from_list([{**record, "id": i} for i, record in enumerate(reversed(records + records[:50]))]),
        splits={"validation": 0.1, "test": 0.2},
    )
    assert {record["prompt"] for record in moved.source("test")} == parts["test"]


@pytest.mark.parametrize("order", [*itertools.permutations(("train", "validation", "test"))])
def test_the_place_of_train_among_the_shares_decides_nothing(order):
    records = from_list([{"prompt": f"a{i}", "completion": "b"} for i in range(300)])
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    given = Task(name="t", records=records, splits={name: shares[name] for name in order})
    left = Task(name="t", records=records, splits={name: shares[name] for name in order if name != "train"})
    assert all(list(given.source(name)) == list(left.source(name)) for name in order)
    assert 180 < len(given.source("train")) < 240


def test_a_grown_share_takes_from_train_alone():
    records = from_list([{"prompt": f"a{i}", "completion": "b"} for i in range(500)])
    small = Task(name="t", records=records, splits={"validation": 0.1, "test": 0.1})
    large = Task(name="t", records=records, splits={"validation": 0.1, "test": 0.3})
    assert list(small.source("validation")) == list(large.source("validation"))
    kept = {record["prompt"] for record in large.source("test")}
    assert {record["prompt"] for record in small.source("test")} < kept


def test_records_of_one_document_stay_together():
    records = [{"prompt": f"a{i}", "completion": "b", "doc": {"id": i // 10}} for i in range(400)]
    task = Task(name="t", records=from_list(records), splits={"test": 0.3}, split_by="doc.id")
    owners = {split: {record["doc"]["id"] for record in task.source(split)} for split in task.splits}
    assert not owners["train"] & owners["test"]
    assert owners["test"]
    with pytest.raises(UserError, match=r"missing-field: no field 'page', which split_by= names"):
        dataclasses.replace(task, split_by="page").source("test")


def test_a_task_without_usable_splits_is_refused():
    source = from_list(WORDS)
    for fields, message in [
        ({}, "has no data"),
        ({"splits": {"test": 0.1}}, "`records` is not given"),
        ({"records": source, "splits": {"test": 1.5}}, "a share between 0 and 1, got 1.5"),
        ({"records": source, "splits": {"test": 0.5, "validation": 0.5}}, "leave some to train"),
        ({"records": source, "splits": {"train": source}}, "the train split is what the others leave"),
    ]:
        with pytest.raises(UserError, match=message):
            Task(name="t", **fields)
    with pytest.raises(UserError, match="has no split 'dev'; it has"):
        words_task().source("dev")
    with pytest.raises(UserError, match="task name 'a b'"):
        words_task(name="a b")
    with pytest.raises(UserError, match="records of the shape `fields` need templates="):
        words_task(shape=Shape.FIELDS, templates=())
    with pytest.raises(UserError, match="no metric 'blue'; known: .*'exact_match'"):
        words_task(metric="blue")
    with pytest.raises(UserError, match="max_examples must be 1 or more"):
        words_task(max_examples=0)
    with pytest.raises(UserError, match="max_repeats must be 0 or more, got -1.0"):
        words_task(max_repeats=-1.0)


MISTAKEN = {
    "splits": [
        ("{'train': 'data/a.jsonl'}", "got 'data/a.jsonl'; write from_jsonl('data/a.jsonl')"),
        ("{'train': 'a.parquet'}", "write from_parquet('a.parquet')"),
        ("{'train': [{'prompt': 'a'}]}", "got an array; write from_list"),
        ("{'train': True}", "a source or a share"),
        ("{7: from_list([])}", "called by a string such as 'train', got 7"),
        ("from_list([], name='mine')", "got the source 'mine'"),
        ("'a.jsonl'", "must map names to sources"),
    ],
    "records": [("'a.jsonl'", "write from_jsonl('a.jsonl')"), ("[{'prompt': 'a'}]", "got an array; write from_list")],
    "columns": [("'prompt'", "columns must be a mapping"), ("{'promt': 'a'}", "maps ['promt']")],
    "shape": [("'messages'", "shape must be a Shape")],
    "templates": [("FORWARD", "templates must be a tuple"), ("('{en}?',)", "templates are Template(...) or functions")],
    "few_shot": [("3", "few_shot must be a FewShot(count=...)")],
    "cluster": [("('a',)", "cluster must be a string")],
    "leaks_into": [("'nli'", "leaks_into must be a tuple of clusters")],
    "variant_of": [("['qa']", "variant_of must be the name of a task")],
    "max_examples": [("'10'", "max_examples must be a whole number"), ("1.5", "max_examples must be a whole number")],
    "max_repeats": [("float('nan')", "max_repeats must be 0 or more, got nan"), ("'3'", "must be a number")],
    "metric": [("max", "metric must be the name of a metric")],
    "split_by": [("3", "split_by must be the name of a field")],
    "name": [("None", "task name None"), ("''", "task name ''")],
    "tasks": [
        ("task", "got the task 't' alone: write tasks=(task,)"),
        ("{'t': task}", "tasks must be a tuple of tasks"),
        ("(task, 'qa')", "tasks must hold Task(...) objects; got 'qa'"),
        ("((task,), task)", "joined with +"),
        ("()", "has no tasks"),
    ],
}
MISTAKES = """
import json, sys
from jaxtune.errors import UserError
from jaxtune.tasks import *
from jaxtune.tasks import Task, Template, from_list
from jaxtune.config import ExperimentConfig, ModelSource
FORWARD = Template(prompt="German for {en}?", response="{de}")
said = []
for field, value in json.load(sys.stdin):
    given = {"name": "t", "records": from_list([{"en": "a", "de": "b"}]), "templates": (FORWARD,)}
    task = Task(**given)
    try:
        if field == "tasks":
            ExperimentConfig(name="c", model=ModelSource(path="m"), tasks=eval(value))
        Task(**{**given, field: eval(value)})
        said.append("nothing")
    except UserError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_a_field_of_another_type_is_refused_with_what_it_takes():
    """In a process of its own: where tests run, types are checked before a task can say what is wrong."""
    cases = [(field, *case) for field, cases in MISTAKEN.items() for case in cases]
    given = json.dumps([(field, value) for field, value, _ in cases])
    done = subprocess.run([sys.executable, "-c", MISTAKES], input=given, text=True, capture_output=True, check=True)
    for (field, value, expected), said in zip(cases, json.loads(done.stdout), strict=True):
        assert expected in said, (field, value)


def test_every_field_of_a_task_was_mistaken_once():
    assert {field.name for field in dataclasses.fields(Task)} == set(MISTAKEN) - {"tasks"}


@pytest.mark.parametrize("name, meant", [("valid", "validation"), ("Dev", "validation"), ("eval", "validation"),
    ("val", "validation"), ("training", "train"), ("tests", "test")])  # fmt: skip
def test_a_split_that_nothing_would_read_is_an_error_unless_the_one_it_means_is_there(name, meant):
    source = from_list(WORDS)
    with pytest.raises(UserError, match=f"nothing reads a split called '{name}'; call it '{meant}'"):
        Task(name="t", splits={"train": source, name: source} if meant != "train" else {name: source})
    assert name in Task(name="t", splits={"train": source, "validation": source, "test": source, name: source}).splits


def test_a_task_can_be_changed_by_replace():
    task = dataclasses.replace(words_task(splits={"test": 0.25}), max_repeats=2.0)
    assert task.splits == {"train": 0.75, "test": 0.25}


def test_all_bad_records_of_shared_out_data_come_in_one_error(tmp_path):
    lines = [json.dumps(chat(i)) for i in range(5)] + ["{bad", "[]"] * 15
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    task = Task(name="t", records=from_jsonl(tmp_path / "a.jsonl"), splits={"test": 0.5})
    with pytest.raises(UserError) as error:
        task.source("test")
    text = str(error.value)
    assert text.startswith(f"30 problems in {tmp_path}/a.jsonl")
    assert text.count("a.jsonl:") == 20
    assert "and 10 more" in text
    assert "invalid-json 15, not-an-object 15" in text


# Fingerprints.


def test_a_fingerprint_follows_everything_that_decides_the_conversations():
    base = words_task()
    changed = [
        words_task(records=from_list(WORDS[1:])),
        words_task(templates=(FORWARD, BACKWARD)),
        words_task(templates=(dataclasses.replace(FORWARD, prompt="{en} in German?"),)),
        words_task(templates=(two_turns,)),
        words_task(few_shot=FewShot(count=1)),
        words_task(few_shot=FewShot(count=1, seed=2)),
        words_task(columns={"id": "en"}),
        words_task(splits={"test": 0.5}),
    ]
    prints = [task.fingerprint() for task in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert words_task().fingerprint() == base.fingerprint()
    assert words_task(max_repeats=3.0, metric="rouge_l", cluster="x").fingerprint() == base.fingerprint()


def test_a_changed_template_function_changes_the_fingerprint(tmp_path, monkeypatch):
    source = "def word(record):\n    return {!r}\n"
    prints = []
    for text in ("a", "b"):
        path = tmp_path / "wording.py"
        path.write_text(source.format(text))
        names: dict = {}
        exec(compile(path.read_text(), str(path), "exec"), names)
        prints.append(words_task(templates=(names["word"],)).fingerprint())
    assert prints[0] != prints[1]


def bound_word(record, *, suffix: str) -> Conversation:
    return two_turns({**record, "de": record["de"] + suffix})


def closed_over(suffix: str):
    return lambda record: bound_word(record, suffix=suffix)


@dataclasses.dataclass(frozen=True)
class Wording:
    suffix: str

    def __call__(self, record) -> Conversation:
        return bound_word(record, suffix=self.suffix)


def test_what_is_bound_to_a_template_function_is_part_of_the_fingerprint():
    for make in (lambda s: functools.partial(bound_word, suffix=s), closed_over, Wording):
        first, again, other = (words_task(templates=(make(suffix),)).fingerprint() for suffix in ("a", "a", "b"))
        assert first == again
        assert first != other


# Several tasks.


def tasks_for_clusters() -> list[Task]:
    def own(i: int):
        return from_list([{"en": f"{i}", "de": f"{i}"}])

    mt = words_task(cluster="language/translation", templates=(FORWARD, BACKWARD))
    return [
        mt,
        Task(name="qa", records=own(1), cluster="qa", templates=(FORWARD, BACKWARD)),
        Task(name="nli", records=own(2), cluster="nli", templates=(FORWARD,)),
        Task(name="paraphrase", records=own(3), cluster="paraphrase", leaks_into=("nli",), templates=(FORWARD,)),
        Task(name="same_words", records=mt.records, cluster="other", templates=(FORWARD,)),
        invert(mt, (BACKWARD,), cluster="generation"),
    ]


def test_holding_a_cluster_out_takes_all_that_leaks_with_it():
    parted = hold_out(tasks_for_clusters(), ["language"])
    assert set(parted.held) == {"mt"}
    assert set(parted.leaking) == {"same_words", "mt_inverted"}
    assert set(parted.kept) == {"qa", "nli", "paraphrase"}
    assert parted.reasons["mt_inverted"] == "words the records of mt"
    assert parted.reasons["same_words"].startswith("reads the same data as mt")


def test_a_task_that_leaks_into_a_held_cluster_goes_too():
    parted = hold_out(tasks_for_clusters(), ["nli"])
    assert set(parted.held) == {"nli"}
    assert parted.leaking.keys() == {"paraphrase"}
    assert parted.reasons["paraphrase"] == "leaks into nli"


def test_a_variant_held_out_takes_its_base_with_it():
    parted = hold_out(tasks_for_clusters(), ["generation"])
    assert {"mt", "same_words"} == set(parted.leaking)


@pytest.mark.parametrize("held", ["base", "one", "two"])
def test_variants_that_were_written_to_other_files_are_held_out_together(held):
    def own(text: str):
        return from_list([{"en": text, "de": text}], name=text)

    base = words_task(name="base", records=own("base"))
    variants = [words_task(name=name, records=own(name), variant_of="base") for name in ("one", "two")]
    parted = hold_out([base, *variants, words_task(name="other")], [held])
    assert set(parted.kept) == {"other"}


def test_templates_that_train_a_held_cluster_are_removed_from_the_tasks_that_stay():
    parted = hold_out(tasks_for_clusters(), ["guessing"])
    assert parted.kept["qa"].templates == (FORWARD,)
    assert "mt_inverted" not in parted.kept  # its only template is inverted
    assert parted.reasons["qa"] == "1 of its 2 templates train a held-out cluster"


def test_a_task_can_be_held_out_by_its_name_and_a_stranger_is_refused():
    assert set(hold_out(tasks_for_clusters(), ["qa"]).held) == {"qa"}
    with pytest.raises(UserError, match=r"held-out \['qaa'\] is no cluster or task; known: .*'qa'"):
        hold_out(tasks_for_clusters(), ["qaa"])


def test_clusters_become_nested_groups():
    tasks = [words_task(name=name, cluster=c) for name, c in [("a", "x/y"), ("b", "x"), ("c", "x/y"), ("d", None)]]
    assert cluster_groups(tasks) == {"x": Group(tasks=("b",), groups={"y": Group(tasks=("a", "c"))})}


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(UserError, match="two tasks are named 'mt'"):
        by_name([words_task(), words_task()])


# Problems.


@given(counts=st.lists(st.sampled_from(["invalid-json", "missing-field", "blank-line"]), max_size=60))
@settings(max_examples=50)
def test_a_log_keeps_the_first_errors_and_counts_all(counts):
    log = ProblemLog(limit=3)
    problems = [Problem(rule=rule, message="m", file="f", line=i) for i, rule in enumerate(counts)]
    log.add(problems)
    errors = [rule for rule in counts if rule != "blank-line"]
    assert log.errors == len(errors)
    assert [problem.rule for k, problem in enumerate(problems) if counts[:k].count(problem.rule) < 3] == [
        problem.rule for problem in log.kept
    ]
    if errors:
        with pytest.raises(UserError, match=f"^{len(errors)} problem"):
            log.raise_if_any()
    else:
        log.raise_if_any()
