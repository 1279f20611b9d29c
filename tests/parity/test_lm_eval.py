"""lm-eval through our language model and its backend `hf` on the same folder: numbers and answers by sample."""

import csv
import dataclasses
import json
import logging
import shutil

import pytest
from helpers import tiny_config, tiny_model
from toy_tokenizers import write_hf

from jaxtune.errors import UserError
from jaxtune.evaluate.dialogue import measure_folder
from jaxtune.evaluate.harness import LmEvalConfig, check_tasks
from jaxtune.sweep import run as sweep
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train.decisions import Status

lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TASKS = {
    "pick": """
        output_type: multiple_choice
        doc_to_text: "{{question}} "
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{gold}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "say": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{choices[0]}}"
        generation_kwargs: {until: ["o", "\\n\\n"], max_gen_toks: 24}
        metric_list: [{metric: exact_match}]
    """,
    "read": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}]
    """,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random model with a ChatML tokenizer, and three tasks over local data."""
    folder = tmp_path_factory.mktemp("harness")
    model = write_hf(folder / "model", bos=None, eos="<|im_end|>")
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": CHATML}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=381, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.25, eos_token_id=4, bos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(shape).save_pretrained(model)
    words = ["fox", "the lazy dog", "It is 42.", "Köln, 你好", "x  # two  spaces"]
    rows = [
        {"question": f"What is {number} + 30?", "choices": words[number % 3 :][:3], "gold": number % 3,
         "text": " ".join(words[(number + k) % 5] for k in range(1 + 9 * number))}
        for number in range(6)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        lines = "\n".join(line[8:] for line in text.splitlines())
        head = f"task: toy_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
        (folder / "tasks" / f"{name}.yaml").write_text(head + "test_split: test\n" + lines)
    return folder


def theirs(place, chat, shots):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    hf = HFLM(pretrained=str(place / "model"), device="cpu", dtype="float32", batch_size=2)
    return lm_eval.simple_evaluate(
        model=hf, tasks=[f"toy_{name}" for name in TASKS], task_manager=manager, apply_chat_template=chat,
        fewshot_as_multiturn=chat, num_fewshot=shots, bootstrap_iters=10,
    )  # fmt: skip


def numbers(value):
    """All numbers in nested lists; whether an answer is greedy counts as one."""
    if isinstance(value, list | tuple):
        return [number for one in value for number in numbers(one)]
    return [float(value)]


@pytest.mark.parametrize(("chat", "shots"), [(True, 0), (False, 2)])
def test_numbers_and_answers_are_those_of_the_backend_hf(place, chat, shots, monkeypatch):
    from jaxtune.evaluate import harness

    kept = {}
    scores_of = harness.scores_of
    monkeypatch.setattr(harness, "scores_of", lambda found: kept.update(found["samples"]) or scores_of(found))
    settings = LmEvalConfig(
        tasks=tuple(f"toy_{name}" for name in TASKS), include=str(place / "tasks"), chat=chat, shots=shots
    )
    ours, expected = measure_folder(place / "model", settings), theirs(place, chat, shots)
    for name in ("toy_pick", "toy_read"):
        for mine, yours in zip(kept[name], expected["samples"][name], strict=True):
            assert numbers(mine["resps"]) == pytest.approx(numbers(yours["resps"]), abs=1e-4)
    says = lambda samples: [sample["filtered_resps"] for sample in samples["toy_say"]]
    assert says(kept) == says(expected["samples"])
    assert any(text for [text] in says(kept))
    assert ours["toy_pick"]["acc"] == pytest.approx(expected["results"]["toy_pick"]["acc,none"])
    assert ours["toy_pick"]["acc_norm"] == pytest.approx(expected["results"]["toy_pick"]["acc_norm,none"])
    assert ours["toy_read"]["word_perplexity"] == pytest.approx(
        expected["results"]["toy_read"]["word_perplexity,none"], rel=1e-4
    )


def test_runs_of_a_sweep_measure_tasks_before_and_after_and_show_them(place, tmp_path):
    """In summaries, in results.csv and on both pages; the task whose data are lost has its error there."""
    folder = tmp_path / "tasks"
    shutil.copytree(place / "tasks", folder, ignore=shutil.ignore_patterns("broken.yaml"))
    (folder / "lost.yaml").write_text((folder / "pick.yaml").read_text().replace("toy_pick", "toy_lost"))
    (folder / "lost.yaml").write_text((folder / "lost.yaml").read_text().replace("rows.jsonl", "lost.jsonl"))
    tiny_model(tmp_path / "base")
    settings = LmEvalConfig(tasks=("toy_lost", "toy_pick", "toy_say"), include=str(folder), limit=3)
    config = tiny_config(tmp_path)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, lm_eval=settings))
    trials = trials_of(crossed({"mixture.temperature": ["1", "inf"]}), [0])
    assert sweep.sweep(config, tmp_path / "sweep", trials) is Status.FINISHED
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    runs = sorted((tmp_path / "sweep" / "runs").iterdir())
    assert len(rows) == len(runs) == 2
    for row, run in zip(rows, runs, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        for when in ("before", "after"):
            found = summary[when]["lm_eval"]
            assert "lost.jsonl" in found["toy_lost"]["error"] and found["toy_pick"]["n"] == found["toy_say"]["n"] == 3
            assert 0 <= found["toy_pick"]["acc"] <= 1
        assert float(row["lm_eval/toy_pick/acc"]) == summary["after"]["lm_eval"]["toy_pick"]["acc"]
        page = (run / "report.html").read_text()
        assert "toy_pick" in page and "lost.jsonl" in page
        asked = json.loads((run / "lm_eval.json").read_text())
        assert len(asked["after"]["toy_pick"]) == 3
    assert "toy_pick" in (tmp_path / "sweep" / "report.html").read_text()
    whole = json.loads((runs[0] / "summary.json").read_text())["after"]["lm_eval"]
    assert measure_folder(runs[0] / "model", settings)["toy_pick"] == pytest.approx(whole["toy_pick"])


def test_a_task_that_fails_leaves_the_results_of_the_others(place):
    (place / "tasks" / "broken.yaml").write_text(
        "task: toy_broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: ''\ndoc_to_choice: '{{choices}}'\ndoc_to_target: 0\n"
    )
    settings = LmEvalConfig(tasks=("toy_broken", "toy_pick"), include=str(place / "tasks"), limit=2)
    found = measure_folder(place / "model", settings)
    assert "nowhere.jsonl" in found["toy_broken"]["error"] and found["toy_pick"]["n"] == 2


def test_a_task_that_is_not_there_is_told_with_the_nearest(place):
    with pytest.raises(UserError, match=r"no task 'toy_pik' in lm-eval and in .*; did you mean toy_pick\?"):
        check_tasks(LmEvalConfig(tasks=("toy_pik",), include=str(place / "tasks")))
    with pytest.raises(UserError, match="eval.lm_eval.include: no folder missing"):
        check_tasks(LmEvalConfig(tasks=("toy_pick",), include="missing"))
