"""lm-eval's questions to a model, without lm-eval: tokens, cuts, stop strings, settings, results."""

import dataclasses
import json
import sys
import types

import pytest
from helpers import ASSETS
from toy_tokenizers import write_hf

from jaxtune.chat import load_template, load_tokenizer
from jaxtune.errors import UserError
from jaxtune.evaluate import harness
from jaxtune.evaluate.decoding import SamplingConfig
from jaxtune.evaluate.harness import LmEvalConfig, Model, check_tasks, cut_at, sampling_of, scores_of
from jaxtune.evaluate.likelihood import Likelihood


def unused(*_):
    raise AssertionError("not asked for")


@pytest.fixture(scope="module")
def model():
    words, template = load_tokenizer(ASSETS), load_template(ASSETS)
    return Model(
        tokenizer=words, template=template, max_length=12, stop_ids=frozenset({5}), score=unused, generate=unused
    )


def test_texts_begin_with_bos_where_the_tokenizers_files_say_so(model, tmp_path):
    folder = write_hf(tmp_path / "bos")
    for stated in (True, False):
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"add_bos_token": stated}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        words = load_tokenizer(folder)
        own = dataclasses.replace(model, tokenizer=words)
        plain = words.encode("fox", specials=True)
        begun = [words.bos_id, *plain]
        assert own.encode("fox") == (begun if stated else plain)
        assert own.encode("<bos>fox") == begun  # its own string, once
        assert own.encode("fox", False) == plain
        assert words.controls.ids["<|im_end|>"] in own.encode("a<|im_end|>")  # control strings are control tokens
    assert own.begin == words.bos_id and own.end == words.eos_id


def test_contexts_lose_their_beginning_and_texts_that_cannot_fit_are_refused(model):
    asked = []

    def score(pairs):
        asked.extend(pairs)
        return [Likelihood(total=-1.5, tokens=len(text), greedy=True) for _, text in pairs]

    own = dataclasses.replace(model, score=score)
    assert own.log_likelihoods([(list(range(30)), [7, 8, 9]), ([1], [2])]) == [(-1.5, True)] * 2
    assert asked == [(list(range(20, 30)), [7, 8, 9]), ([1], [2])]  # 13 tokens: the last is nobody's context
    with pytest.raises(UserError, match="a text of 13 tokens is longer than the model's context of 12"):
        own.log_likelihoods([([1], [2] * 13)])


def test_answers_are_grouped_by_their_settings_and_end_at_stop_strings(model):
    words, calls = model.tokenizer, []
    says = words.encode("one two three")

    def generate(prompts, sampling):
        calls.append((prompts, sampling))
        return [[*says, 5]] * len(prompts)

    own = dataclasses.replace(model, generate=generate)
    greedy, drawn = {"until": [" two"], "max_gen_toks": 4}, {"do_sample": True, "temperature": 0.5, "max_tokens": 4}
    long = words.decode(words.encode("a b c d e f g h i j k l m n o p"))
    found = own.answers([("a", greedy), ("b", drawn), (long, greedy)])
    assert found == ["one", "one two three", "one"]
    assert [sampling for _, sampling in calls] == [
        SamplingConfig(max_new_tokens=4), SamplingConfig(max_new_tokens=4, temperature=0.5)
    ]  # fmt: skip
    assert calls[0][0] == [own.encode("a"), own.encode(long)[-8:]]  # room for the answer
    with pytest.raises(UserError, match="answers of 12 tokens, and the model's context is 12"):
        own.answers([("a", {"max_gen_toks": 12})])


@pytest.mark.parametrize(
    ("settings", "sampling"),
    [
        ({}, SamplingConfig(max_new_tokens=256)),
        ({"max_new_tokens": 7, "max_gen_toks": 9}, SamplingConfig(max_new_tokens=9)),
        ({"do_sample": False, "temperature": 0.7}, SamplingConfig(max_new_tokens=256)),
        ({"temperature": 0.7, "top_p": 0.9}, SamplingConfig(max_new_tokens=256, temperature=0.7, top_p=0.9)),
        ({"do_sample": True, "top_k": 0}, SamplingConfig(max_new_tokens=256, temperature=1.0)),
    ],
)
def test_sampling_follows_the_settings_of_a_task(settings, sampling):
    assert sampling_of(settings) == sampling


def test_settings_that_we_have_no_counterpart_for_are_refused():
    with pytest.raises(UserError, match="generates with num_beams; known are"):
        sampling_of({"num_beams": 4})


@pytest.mark.parametrize(
    ("until", "text"), [(None, "a\n\nb"), ("\n", "a"), (["b", "\n\n"], "a"), ([""], "a\n\nb"), ([], "a\n\nb")]
)
def test_a_text_ends_before_the_first_stop_string(until, text):
    assert cut_at("a\n\nb", until) == text


def test_a_prompt_is_what_the_chat_template_writes_and_a_begun_answer_goes_on(model):
    history = [{"role": "user", "content": "Hi"}]
    asked = model.chat_text(history, generation_prompt=True)
    assert asked.index("Hi") < len(asked) - 2
    begun = model.chat_text([*history, {"role": "assistant", "content": "It is"}], generation_prompt=False)
    assert begun == asked + "It is"


def test_results_lose_lm_evals_marks_and_keep_filters_and_counts():
    found = {
        "results": {
            "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.1, "sample_len": 4},
            "gsm": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
        },
        "groups": {"all": {"acc,none": 0.3, "alias": " - all"}},
        "n-samples": {"arc": {"original": 9, "effective": 4}},
    }
    assert scores_of(found) == {
        "arc": {"acc": 0.25, "acc_stderr": 0.1, "n": 4},
        "gsm": {"exact_match (strict-match)": 0.5},
        "all": {"acc": 0.3},
    }


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    check_tasks(LmEvalConfig())
    with pytest.raises(UserError, match=r"eval.lm_eval needs lm_eval: pip install 'jaxtune\[lm-eval\]'"):
        check_tasks(LmEvalConfig(tasks=("arc_easy",)))
    assert "lm_eval" not in sys.modules


@pytest.mark.parametrize("field", [{"limit": 3}, {"shots": 1}, {"include": "tasks"}])
def test_options_without_a_task_are_refused(field):
    with pytest.raises(UserError, match=r"eval.lm_eval.\w+ has no effect while eval.lm_eval.tasks is empty"):
        LmEvalConfig(**field)


def test_a_task_that_fails_keeps_its_error_and_a_model_that_fails_is_no_tasks_result(model, monkeypatch):
    def simple_evaluate(*, model, tasks, **_):
        if tasks == ["broken"]:
            raise ValueError("no data")
        model.log_likelihoods([([1], [2])])
        return {"results": {tasks[0]: {"acc,none": 0.5}}, "n-samples": {tasks[0]: {"effective": 4}}}

    monkeypatch.setitem(sys.modules, "lm_eval", types.SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setattr(harness, "language_model", lambda model: model)
    monkeypatch.setattr(harness, "manager_of", lambda settings: None)
    settings = LmEvalConfig(tasks=("broken", "sound"))
    works = lambda pairs: [Likelihood(total=-1.0, tokens=1, greedy=True) for _ in pairs]
    found = harness.evaluate_tasks(dataclasses.replace(model, score=works), settings)
    assert found.scores["broken"] == {"error": "ValueError: no data"} and found.scores["sound"]["acc"] == 0.5

    def breaks(pairs):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        harness.evaluate_tasks(dataclasses.replace(model, score=breaks), settings)
