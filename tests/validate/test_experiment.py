"""`jaxtune validate CONFIG` has an error exactly where `jaxtune train CONFIG` would stop before its first step."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import ASSISTANT, FAULTS, USER, chat, messages
from helpers import tiny_config, tiny_model

from jaxtune.chat import Conversation
from jaxtune.config import ExperimentConfig, ModelSource
from jaxtune.data.fit import LengthPolicy
from jaxtune.errors import UserError
from jaxtune.mixture.settings import Budget
from jaxtune.tasks import Task, Template, from_file, from_jsonl, from_list
from jaxtune.train.resolution import prepare, resolve
from jaxtune.validate.experiment import validate_config
from jaxtune.validate.report import Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("agreement")
    tiny_model(root / "base")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))


GOOD = [chat(i) for i in range(30, 35)]


def config_of(folder: Path, tmp_path: Path, *tasks: Task, **changes: Any) -> ExperimentConfig:
    config = tiny_config(folder, tasks=tasks, duration=Budget(steps=1))
    data = dataclasses.replace(config.data, seq_len=128, cache_dir=str(tmp_path / "cache"), **changes.pop("data", {}))
    return dataclasses.replace(config, data=data, **changes)


def both(config: ExperimentConfig) -> tuple[Report, UserError | None]:
    """What validate reports and what a run says before its first step; anything but a `UserError` is a failure."""
    report = validate_config(config)
    try:
        resolve(config, show_progress=False)
    except UserError as error:
        refused = error
    else:
        refused = None
    assert bool(report.num_errors) == (refused is not None), (report.problems, refused)
    return report, refused


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


PLACES = [(fault, "train") for fault in FAULTS] + [(fault, "validation") for fault in FAULTS[::6]]


@pytest.mark.parametrize("fault, split", PLACES, ids=lambda value: getattr(value, "name", value))
def test_every_bad_file_is_refused_by_both_or_by_none(fault, split, folder, tmp_path):
    path = tmp_path / fault.name
    path.write_bytes(fault.content)
    good = Task(name="good", splits={"train": from_list(GOOD), "validation": from_list(GOOD[:1])})
    splits = {"train": from_list(GOOD), split: from_file(path)}
    report, refused = both(config_of(folder, tmp_path, good, Task(name="other", splits=splits)))
    found = {problem.rule for problem in report.problems if problem.file == str(path)}
    # The built-in rules of a file alone hold here too, but for control strings: those are the tokenizer's own.
    assert found >= set(fault.rules) - {"control-token"}
    if refused is not None:
        assert str(path) in str(refused) or "no usable example" in str(refused)


def test_the_bad_inputs_of_another_folder_are_refused_by_both_or_by_none(folder, tmp_path):
    root = os.environ.get("JAXTUNE_EXTRA_DATA")
    if root is None:
        pytest.skip("JAXTUNE_EXTRA_DATA is not set")
    for path in sorted((Path(root) / "bad_inputs").glob("*.json*")):
        if path.name != "MANIFEST.json":
            good = Task(name="good", splits={"train": from_list(GOOD)})
            both(config_of(folder, tmp_path, good, Task(name="other", splits={"train": from_jsonl(path)})))


OF_TOKENS = {
    "an id beyond the vocabulary": ({"tokens": [5, 5000, 7], "loss_mask": [0, 1, 1]}, "bad-tokens"),
    "a character that the tokenizer spells like a blank": (  # it trains, as its bytes
        messages(USER, {"role": "assistant", "content": "\u2581\u2582\u2583\u2585"}),
        None,
    ),
}


@pytest.mark.parametrize("case", OF_TOKENS)
def test_what_only_tokenising_can_see_is_named_with_its_line(case, folder, tmp_path):
    record, rule = OF_TOKENS[case]
    extra = [record] if "tokens" in record else [chat(1), record]
    path = write(tmp_path / "a.jsonl", *extra)
    good = Task(name="good", splits={"train": from_list(GOOD)})
    report, _ = both(config_of(folder, tmp_path, good, Task(name="t", splits={"train": from_jsonl(path)})))
    found = [(p.rule, p.file, p.line) for p in report.problems if p.severity.value == "error"]
    assert found == ([(rule, str(path), len(extra))] if rule else [])


def test_a_record_that_the_template_refuses_is_named_with_its_line(folder, tmp_path):
    path = write(tmp_path / "a.jsonl", chat(1), messages(USER, USER, ASSISTANT))
    model = ModelSource(path=str(folder / "base"), template=str(tmp_path / "strict.jinja"))
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    task = Task(name="t", splits={"train": from_jsonl(path)})
    report, refused = both(config_of(folder, tmp_path, task, model=model))
    assert ("not-renderable", str(path), 2) in [(p.rule, p.file, p.line) for p in report.problems]
    assert f"{path}:2" in str(refused)
    assert not both(config_of(folder, tmp_path, task))[0].num_errors


@pytest.mark.parametrize("policy", LengthPolicy)
def test_lengths_are_looked_at_under_the_configs_own_policy(policy, folder, tmp_path):
    long = messages(USER, {"role": "assistant", "content": "word " * 400})
    path = write(tmp_path / "a.jsonl", chat(1), long)
    config = config_of(
        folder, tmp_path, Task(name="t", splits={"train": from_jsonl(path)}), data={"length_policy": policy}
    )
    report, _ = both(config)
    rules = {LengthPolicy.ERROR: "too-long", LengthPolicy.TRUNCATE_RESPONSE: "answer-cut"}
    assert [p.line for p in report.problems if p.rule == rules.get(policy, "left-out")] == [2]


def test_a_task_of_which_nothing_is_left_is_an_error(folder, tmp_path):
    path = write(tmp_path / "a.jsonl", *GOOD)
    config = config_of(folder, tmp_path, Task(name="t", splits={"train": from_jsonl(path)}))
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=16))
    report, refused = both(short)
    assert report.counts["no-usable-example"] == 1
    assert "no usable example" in str(refused)


def test_a_test_question_that_does_not_fit_is_named_before_anything_is_loaded(folder, tmp_path):
    asked = messages({"role": "user", "content": "word " * 400}, ASSISTANT)
    path = write(tmp_path / "test.jsonl", chat(1), asked, chat(2))
    task = Task(name="t", splits={"train": from_list(GOOD), "test": from_jsonl(path)})
    report, refused = both(config_of(folder, tmp_path, task))
    errors = [p for p in report.problems if p.severity.value == "error"]
    assert [(p.rule, p.file, p.line) for p in errors] == [("question-unusable", str(path), 2)]
    assert "tokens and the model's context 128: no answer fits" in errors[0].message
    assert f"{path}:2" in str(refused)
    assert resolve(config_of(folder, tmp_path, task), questions=False, show_progress=False).questions == ()
    off = config_of(folder, tmp_path, task)
    off = dataclasses.replace(off, eval=dataclasses.replace(off.eval, generate=False))
    assert not both(off)[0].num_errors


def test_a_reference_that_the_metric_refuses_is_named(folder, tmp_path):
    path = write(tmp_path / "test.jsonl", chat(1), messages(USER, ASSISTANT))
    task = Task(name="t", metric="last_number", splits={"train": from_list(GOOD), "test": from_jsonl(path)})
    report, refused = both(config_of(folder, tmp_path, task))
    assert [(p.rule, p.line) for p in report.problems if p.severity.value == "error"] == [("question-unusable", 2)]
    assert "the reference holds no number" in str(refused)


REFUSED = {
    "no such model": ({"model": ModelSource(path="no/such/folder")}, "no/such/folder"),
    "a context that is too short": ({"data": {}}, "longer than the model's context"),
    "an unknown cluster": ({"held_out": ("nowhere",)}, "is no cluster or task"),
    "a budget beyond the caps": ({"duration": Budget(examples=10**6)}, "budget"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_config_itself_gets_wrong_is_reported_beside_the_data(case, folder, tmp_path):
    changes, said = REFUSED[case]
    path = write(tmp_path / "a.jsonl", chat(1), chat(2))
    task = Task(name="t", splits={"train": from_jsonl(path)}, max_repeats=1.0 if "budget" in case else None)
    config = config_of(folder, tmp_path, task, **dict(changes))
    if "context" in case:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=4096))
    report, refused = both(config)
    assert report.counts["config-refused"] == 1
    assert said in str(refused)
    assert report.records == 2


def test_test_records_of_token_ids_are_said_to_be_unasked(folder, tmp_path):
    ids = from_list([{"tokens": [5, 6, 7], "loss_mask": [0, 0, 1]}], name="ids")
    task = Task(name="t", splits={"train": from_list(GOOD), "validation": from_list(GOOD), "test": ids})
    config = config_of(folder, tmp_path, task)
    asking = dataclasses.replace(config, eval=dataclasses.replace(config.eval, generate=True))
    for one, said in ((config, bool(config.eval.generate)), (asking, True)):
        found = [(p.rule, p.file) for p in validate_config(one).problems if p.rule == "not-asked"]
        assert found == [("not-asked", "task t")] * said
        assert resolve(one, show_progress=False).unasked == ["t"] * said


def test_tasks_without_validation_are_said_and_watching_one_is_an_error(folder, tmp_path):
    task = Task(name="t", splits={"train": from_list(GOOD)})
    config = config_of(folder, tmp_path, task)
    report, refused = both(config)
    assert refused is None
    assert [(p.rule, p.file) for p in report.problems if p.rule == "no-validation"] == [("no-validation", "task t")]
    for stopping, said in (({"patience": 1}, "no trained task has a validation split"),):
        watched = dataclasses.replace(config, early_stopping=dataclasses.replace(config.early_stopping, **stopping))
        assert said in str(both(watched)[1])
    held = Task(name="h", splits={"validation": from_list(GOOD), "train": from_list(GOOD)})
    watched = config_of(folder, tmp_path, task, held, held_out=("h",))
    watched = dataclasses.replace(watched, early_stopping=dataclasses.replace(config.early_stopping, patience=1))
    assert "no trained task has a validation split" in str(both(watched)[1])


def test_a_template_function_that_fails_is_named_with_its_line_of_code(folder, tmp_path):
    task = Task(name="t", splits={"train": from_list([{"q": "a"}], name="words")}, templates=(fails,))
    report, refused = both(config_of(folder, tmp_path, task))
    (problem,) = [p for p in report.problems if p.severity.value == "error"]
    assert (problem.rule, problem.file, problem.line) == ("template-failed", "words", 1)
    assert "ZeroDivisionError" in problem.message
    assert "test_experiment.py:" in problem.message
    assert "words:1" in str(refused)


def fails(record: Mapping[str, Any]) -> Conversation:
    raise ZeroDivisionError(record["q"])


def test_one_cache_folder_holds_tokens_and_decompressed_copies(folder, tmp_path):
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in GOOD).encode()))
    task = Task(name="t", splits={"train": from_jsonl(tmp_path / "a.jsonl.gz")})
    config = config_of(folder, tmp_path, task)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(tmp_path / "moved")))
    resolve(moved, show_progress=False)
    assert {path.name for path in (tmp_path / "moved").iterdir()} == {"tokens", "decompressed"}
    assert not (tmp_path / "cache").exists()


def test_a_bad_wording_is_found_behind_a_warning_about_the_record(folder, tmp_path):
    wordings = (Template(prompt="{en}?", response="{de}"),)
    task = Task(name="t", splits={"train": from_list([{"id": ["x"], "en": "a"}], name="w")}, templates=wordings)
    report, _ = both(config_of(folder, tmp_path, task))
    assert {problem.rule for problem in report.problems} >= {"bad-id", "missing-field"}


def test_preparing_reads_no_record(folder, tmp_path):
    task = Task(name="t", splits={"train": from_jsonl(tmp_path / "none.jsonl")})
    assert list(prepare(config_of(folder, tmp_path, task)).kept) == ["t"]
    report, refused = both(config_of(folder, tmp_path, task))
    assert report.counts["unreadable-file"] == 1
    assert "no such file" in str(refused)
