import dataclasses
import io
import json

import numpy as np
import pytest
from pages import assert_self_contained
from rich.console import Console

from jaxtune import preview
from jaxtune.chat import MaskPolicy
from jaxtune.config import DataConfig, ExperimentConfig, ModelSource
from jaxtune.errors import UserError
from jaxtune.mixture import Budget, MixtureConfig, allocate
from jaxtune.preview import ShownExamples
from jaxtune.tasks import Task, from_list
from jaxtune.train import resolution


def records(count, answer):
    return [{"prompt": f"Question {i}: say it.", "completion": answer(i)} for i in range(count)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    long = {"prompt": "word " * 400, "completion": "no"}
    tasks = (
        Task(name="echo", splits={"train": from_list([*records(60, lambda i: f"echo {i}"), long])}),
        Task(name="sums", splits={"train": from_list(records(8, str))}),
    )
    return ExperimentConfig(
        name="toy",
        model=ModelSource(path="builtin"),
        tasks=tasks,
        duration=Budget(examples=60),
        mixture=MixtureConfig(temperature=2.0, max_repeats=2.0),
        data=DataConfig(seq_len=128, cache_dir=str(tmp_path_factory.mktemp("cache"))),
    )


@pytest.fixture(scope="module")
def inputs(config):
    return resolution.resolve(config, questions=False, show_progress=False)


def test_the_preview_prints_mixture_lengths_reasons_and_examples(config, capsys):
    preview.run(config, ShownExamples(examples=1))
    out = capsys.readouterr().out
    assert "echo: 1 dropped: longer than the maximum length" in out
    sums = next(line.split() for line in out.splitlines() if line.startswith("sums") and "%" in line)
    assert sums[:3] == ["sums", "8", "8"] and sums[-1] == "cap"
    assert "prompt_completion" in out
    assert out.count("tokens trained, weights 1") == 2


def test_json_holds_the_same_numbers_as_the_plan(config, inputs, capsys):
    preview.run(config, ShownExamples(examples=2), compare="temperature=1,inf", as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert [row["count"] for row in data["mixture"]["tasks"]] == list(inputs.plan.allocation.counts.values())
    assert data["mixture"]["plan_hash"] == inputs.plan.hash
    assert [len(rows) for rows in data["samples"].values()] == [2, 2]
    assert [one["value"] for one in data["compare"]["values"]] == ["1", "inf"]
    assert sum(row["count"] for row in data["compare"]["values"][0]["tasks"]) == 60


def test_the_page_is_one_file_with_the_comparison(config, tmp_path, capsys):
    preview.run(config, html=tmp_path / "p.html", compare="temperature=1,2,4,inf")
    page = assert_self_contained((tmp_path / "p.html").read_text())
    assert {"Mixture", "Other values of temperature", "Lengths", "What is trained"} <= set(page.text)
    assert capsys.readouterr().out.rstrip().endswith("p.html")


def test_without_colours_trained_text_stands_in_quotes(inputs):
    example = inputs.train["sums"].example(3)
    text = preview.bracketed(inputs, example).plain
    trained = text[text.index("«") + 1 : text.index("»")]
    assert text.count("«") == text.count("»") == 1
    assert trained.startswith(str(inputs.train["sums"].record(3)))
    assert "Question" not in trained


def test_with_colours_trained_text_stands_on_colour(inputs):
    printed = io.StringIO()
    out = Console(file=printed, force_terminal=True, color_system="truecolor", width=100)
    preview.print_examples(out, inputs, "sums", [0])
    assert "\x1b[30;48;" in printed.getvalue() and "«" not in printed.getvalue()


def test_histograms_count_every_example_once(inputs):
    data = preview.lengths(inputs)
    for name, store in inputs.train.items():
        for key in ("tokens", "loss_tokens"):
            assert sum(data["tasks"][name][key]["counts"]) == len(store) * store.num_templates
    assert data["tasks"]["echo"]["tokens"]["max"] == int(np.max(inputs.train["echo"].lengths))


@pytest.mark.parametrize("longest", [1, 23, 24, 512, 4097])
def test_bins_are_few_whole_and_hold_the_longest(longest):
    edges = preview.bin_edges(longest)
    assert len(edges) - 1 <= preview.BINS
    counts = preview.spread(np.arange(longest + 1), edges)["counts"]
    assert sum(counts) == longest + 1 and len(set(np.diff(edges))) == 1


def test_a_histogram_line_shows_every_bin_that_holds_anything():
    assert preview.blocks([0, 1, 1000, 500]) == " ▁█▄"


def test_one_task_can_be_shown_alone(config, capsys):
    preview.run(config, ShownExamples(examples=1, task="sums"))
    assert capsys.readouterr().out.count("tokens trained, weights 1") == 1


def test_an_unknown_task_is_refused_with_the_known_ones(config):
    with pytest.raises(UserError, match="no task 'sum' in the mixture; it has echo, sums"):
        preview.run(config, ShownExamples(task="sum"))


def test_a_wrong_comparison_stops_before_anything_is_tokenised(config):
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir="/nonexistent/cache"))
    with pytest.raises(UserError, match="--compare takes"):
        preview.run(elsewhere, compare="temprature=1")


def test_the_mixture_of_a_config_can_be_asked_for_another_budget(config):
    rows = preview.mixture_of(config, 30)
    assert sum(row["count"] for row in rows) == 30
    assert sum(row["count"] for row in preview.mixture_of(config)) == 60


def test_mix_prints_one_table_of_columns_for_sizes_and_for_a_config(config):
    [by_size, *_] = allocate({"qa": 10, "math": 3}, MixtureConfig(), 5).to_json()["tasks"]
    [by_config, *_] = preview.mixture_of(config)
    assert by_size.keys() == by_config.keys()


def test_the_facts_state_what_is_trained(config):
    masked = dataclasses.replace(config.data, mask_policy=MaskPolicy.LAST_ASSISTANT, prompt_loss_weight=0.25)
    inputs = resolution.resolve(dataclasses.replace(config, data=masked), questions=False, show_progress=False)
    assert preview.facts(inputs)["Trained"] == "last assistant, prompt loss weight 0.25"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (ShownExamples(task="sums", index=5), "Question 5: say it."),
        (ShownExamples(id="list:8", task="sums"), "Question 7: say it."),
        (ShownExamples(search="ECHO 37"), "echo 37"),
    ],
)
def test_an_example_is_found_by_record_place_or_text(config, inputs, capsys, shown, text):
    preview.run(config, shown)
    out = capsys.readouterr().out
    assert out.count("tokens trained") == 1 and text in out.replace("«", "").replace("»", "")
    assert "effective tasks" not in out, "the plan is not what was asked for"


def test_every_record_is_found_by_its_index_or_was_dropped(inputs):
    store = inputs.train["echo"]
    kept = {store.record(number) for number in range(len(store))}
    for index in range(61):
        shown = ShownExamples(task="echo", index=index)
        if index in kept:
            ((number,),) = preview.chosen(inputs, shown).values()
            assert store.record(number) == index
        else:
            with pytest.raises(UserError, match="dropped"):
                preview.chosen(inputs, shown)


def test_a_search_that_finds_nothing_and_two_requests_at_once_are_refused(inputs):
    with pytest.raises(UserError, match=r"no training example of echo, sums fits --search zebra"):
        preview.chosen(inputs, ShownExamples(search="zebra"))
    with pytest.raises(UserError, match="give one of --id and --search"):
        ShownExamples(id="a", search="b")


def test_a_misspelt_option_of_a_comparison_names_the_nearest(config):
    for text in ("temperture=1,2", "mixture.temperture=1,2"):
        with pytest.raises(UserError, match=r"did you mean temperature\?"):
            preview.run(config, compare=text)
