"""Transfer sweeps: which runs a design asks for, what is refused, and what a folder of finished runs says."""

import dataclasses
import itertools
import math
import pathlib

import numpy as np
import pytest
from helpers import chat_record, letters, tiny_config, tiny_config_file, tiny_model
from pages import assert_self_contained

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.runs.sweeps import read_sweep
from jaxtune.runs.tracker import JsonlTracker
from jaxtune.runs.transfer import Form, read_transfer
from jaxtune.storage.documents import read_json, write_json
from jaxtune.sweep import run as sweep
from jaxtune.sweep import transfer as study
from jaxtune.sweep.record import grow
from jaxtune.tasks import Task, from_list
from jaxtune.train.resolution import resolve


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("transfer")
    tiny_model(folder / "base")
    return folder


def config_of(place: pathlib.Path, **changes):
    """Three tasks and a neutral one."""
    tasks = (letters("format", 20), letters("a", 40), letters("b", 30), letters("c", 12))
    return tiny_config(place, tasks=tasks, **changes)


def order_of(plan, task: str) -> list[int]:
    return [p.example for step in range(plan.num_steps) for row in plan.rows(step) for p in row if p.task == task]


def test_added_keeps_the_targets_examples_in_their_order_and_replaced_keeps_the_total(place):
    request = study.TransferRequest(tasks=["a", "b", "c"], modes=("added", "replaced"), examples=10)
    planned = study.plan(request, config_of(place))
    assert planned.design.baseline == "format"
    named = {trial.setting.tag: trial for trial in planned.trials if trial.seed == 3}
    alone, pairs = ["format", "a", "b", "c"], ["a + b", "a + c", "b + c"]
    assert list(named) == [*alone, *pairs, *(f"{pair}, replaced" for pair in pairs)]
    plans = {
        tag: resolve(configs.override(planned.config, trial.arguments()), questions=False).plan
        for tag, trial in named.items()
        if tag in ("a", "b", "a + b", "a + b, replaced")
    }
    for task in "ab":
        assert sorted(order_of(plans["a + b"], task)) == sorted(order_of(plans[task], task))
        assert len(order_of(plans[task], task)) == 10 and len(order_of(plans["a + b, replaced"], task)) == 5
    assert plans["a + b"].num_examples == 20 and plans["a + b, replaced"].num_examples == 10


def test_the_examples_of_a_task_are_the_configs_budget_in_equal_parts(place):
    config = config_of(place)
    planned = study.plan(study.TransferRequest(tasks=["a", "b"], seeds=(0, 1)), config)
    assert planned.design.examples == resolve(config, questions=False).plan.num_examples // 4
    assert len(planned.trials) == (3 + 1) * 2


def test_names_of_tasks_are_names_of_runs(place):
    planned = study.plan(study.TransferRequest(tasks=["a", "b"], examples=4), config_of(place))
    assert [trial.name for trial in planned.trials if trial.seed == 0][-1] == "a+++b_seed=0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["a"]}, "two or more different tasks"),
        ({"tasks": ["a", "a"]}, "two or more different tasks"),
        ({"tasks": ["a", "bb"]}, "'bb' is no task that this config trains on.*did you mean b"),
        ({"seeds": (0,)}, "at least two seeds"),
        ({"seeds": (1, 1)}, "at least two seeds"),
        ({"baseline": "a"}, "is one of --tasks"),
        ({"baseline": "neutral"}, "'neutral' is no task"),
        ({"examples": 1}, "at least 2"),
        ({"subsets": 9}, "goes with --design subsets"),
        ({"design": "subsets"}, "of 2 tasks"),
        ({"tasks": ["a", "silent"]}, "silent has no validation data"),
    ],
)
def test_what_would_mean_nothing_is_refused_before_anything_is_read(place, changes, message):
    silent = Task(name="silent", splits={"train": letters("silent", 8).splits["train"]})
    config = config_of(place)
    config = dataclasses.replace(config, tasks=(*config.tasks, silent))
    with pytest.raises(UserError, match=message):
        study.plan(study.TransferRequest(**({"tasks": ["a", "b"]} | changes)), config)


def test_single_needs_a_neutral_task(place):
    with pytest.raises(UserError, match="--baseline"):
        study.plan(study.TransferRequest(tasks=["large", "small"], design="single"), tiny_config(place))


def finished(folder: pathlib.Path, counts: dict[str, int], task_loss: dict[str, float]) -> None:
    """A finished run with these counts and losses."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"name": "toy"})
    JsonlTracker(folder).close()
    (folder / "metrics.jsonl").touch()
    write_json(folder / "mixture.json", {"tasks": [{"task": t, "size": 99, "count": n} for t, n in counts.items()]})
    write_json(folder / "summary.json", {"status": "finished", "after": {"task_loss": task_loss}})


def simulate(place: pathlib.Path, sweep_dir: pathlib.Path, request: study.TransferRequest, loss_of) -> None:
    """The folder of a transfer sweep whose runs have the losses of `loss_of(counts, target, seed)`."""
    planned = study.plan(request, config_of(place))
    grow(sweep_dir, configs.to_json(planned.config), planned.trials, overwrite=False)
    study.begin(sweep_dir, planned.design)
    for trial in planned.trials:
        words = trial.setting.overrides["mixture.weights"].split()
        counts = {task: int(n) for task, n in zip(words[::2], words[1::2], strict=True)}
        losses = {task: loss_of(counts, task, trial.seed) for task in counts}
        finished(sweep_dir / "runs" / trial.name, counts, losses)


def planted(counts: dict[str, int], target: str, seed: int) -> float:
    """b is helped by a, c is harmed by b in proportion to its share; own examples help by 1."""
    rng = np.random.default_rng([seed, *counts.values(), *map(ord, target)])
    own = 1.0 * (counts[target] > 0)
    help_, harm = 0.3 * (target == "b" and counts["a"] > 0), 0.2 * (target == "c" and counts["b"] > 0)
    return 3.0 + 0.1 * seed - own - help_ + harm + 0.005 * rng.normal()


def test_a_folder_of_pairs_tells_what_was_planted(place, tmp_path):
    request = study.TransferRequest(tasks=["a", "b", "c"], modes=("added", "replaced"), examples=10)
    simulate(place, tmp_path / "s", request, planted)
    found = study.conclude(tmp_path / "s")
    matrices = {one.form: one for one in read_transfer(read_sweep(tmp_path / "s"))}
    assert set(matrices) == {Form.ADDED, Form.REPLACED, Form.SINGLE}
    for form in (Form.ADDED, Form.REPLACED):
        clear = {pair: one.mean for pair, one in matrices[form].pairs.items() if one.clear}
        assert set(clear) == {(0, 1), (1, 2)}
        assert clear[0, 1] == pytest.approx(0.3, abs=0.02) and clear[1, 2] == pytest.approx(-0.2, abs=0.02)
        assert [matrices[form].own[i].mean for i in range(3)] == pytest.approx([1.0, 1.0, 1.0], abs=0.02)
    assert matrices[Form.SINGLE].pairs[0, 1].mean == pytest.approx(0.3, abs=0.02)
    cell = found["forms"]["added"]["cells"][0]
    assert cell.keys() == {"source", "target", "estimate", "low", "high", "n", "p_adjusted", "clear", "by_seed"}
    assert (cell["source"], cell["target"], cell["n"]) == ("a", "b", 5) and read_json(tmp_path / "s/transfer.json")
    page = assert_self_contained((tmp_path / "s" / "report.html").read_text())
    assert "Transfer and interference" in page.text and "Which setting is best" not in page.text
    assert any(text.startswith("Clear conflicts: b → c") for text in page.text)
    assert any("a + b" in text for text in page.text)
    assert "weights" not in page.text  # the runs are named by their tasks
    assert (tmp_path / "s" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    design = study.Design.read(tmp_path / "s")
    assert design is not None
    with pytest.raises(UserError, match="with 10 examples"):
        study.begin(tmp_path / "s", dataclasses.replace(design, examples=11))


def test_a_folder_of_subsets_tells_the_same(place, tmp_path):
    tasks = [letters(name, 40) for name in ("format", "a", "b", "c", "d", "e")]
    config = tiny_config(place, tasks=tuple(tasks))
    request = study.TransferRequest(tasks=["a", "b", "c", "d", "e"], design="subsets", examples=10)
    planned = study.plan(request, config)
    sets = [trial.setting.tag for trial in planned.trials if trial.seed == 0]
    assert len(sets) == 16 and sets[0] == "format" and len(set(sets)) == 16
    grow(tmp_path / "s", configs.to_json(planned.config), planned.trials, overwrite=False)
    study.begin(tmp_path / "s", planned.design)
    for trial in planned.trials:
        words = trial.setting.overrides["mixture.weights"].split()
        counts = {task: int(n) for task, n in zip(words[::2], words[1::2], strict=True)}
        losses = {task: planted(counts, task, trial.seed) for task in counts}
        finished(tmp_path / "s" / "runs" / trial.name, counts, losses)
    [matrix] = [one for one in read_transfer(read_sweep(tmp_path / "s")) if one.form is Form.SUBSETS_ADDED]
    effects = {(a, b): one.mean for (a, b), one in matrix.pairs.items()}
    assert effects[0, 1] == pytest.approx(0.3, abs=0.03) and effects[1, 2] == pytest.approx(-0.2, abs=0.03)
    others = [value for pair, value in effects.items() if pair not in ((0, 1), (1, 2))]
    assert len(others) == 18 and max(map(abs, others)) < 0.03
    assert [matrix.own[b].mean for b in range(5)] == pytest.approx([1.0] * 5, abs=0.04)
    assert all(fit.r2 > 0.95 for fit in matrix.fits.values())


def test_a_sweep_that_is_no_transfer_sweep_has_none(place, tmp_path):
    simulate(place, tmp_path / "s", study.TransferRequest(tasks=["a", "b"], examples=10), planted)
    (tmp_path / "s" / "transfer.json").unlink()
    assert read_transfer(read_sweep(tmp_path / "s")) == []


def test_the_command_trains_and_prints(place, tmp_path, capsys):
    command = [
        "transfer",
        str(tiny_config_file(tmp_path, place)),
        "--sweep-dir",
        str(tmp_path / "s"),
        "--tasks",
        "large",
        "small",
    ]
    options = ["--seeds", "0", "1", "--eval.no-generate", "--duration.examples", "16"]
    assert cli.main([*command, *options, "--dry-run"]) == 0
    assert "large+++small_seed=1" in capsys.readouterr().out and not (tmp_path / "s").exists()
    assert cli.main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "large -> small:" in printed and "2 seeds: no interval" in printed
    cells = read_json(tmp_path / "s" / "transfer.json")["forms"]["added"]["cells"]
    assert {(one["source"], one["target"]) for one in cells} == set(itertools.permutations(("large", "small")))
    assert all(one["estimate"] != 0 for one in cells)
    assert (
        cli.main(["transfer", str(tmp_path / "config.py"), "--sweep-dir", str(tmp_path / "t"), "--tasks", "large"]) == 1
    )
    assert "two or more different tasks" in capsys.readouterr().err and not (tmp_path / "t").exists()


@pytest.mark.slow
def test_contradicting_answers_cost_the_logarithm_of_their_share(place, tmp_path):
    """The same prompts, half answered A and half B: each costs ln 2 once an example; with a cue in the prompt, none."""

    def styles(name: str, answer: str, cue: str) -> Task:
        records = [chat_record(i, f"{cue}item {i % 10}", answer) for i in range(40)]
        return Task(name=name, splits=dict.fromkeys(("train", "validation"), from_list(records, name=name)))

    tasks = (styles("yes", "yes", ""), styles("no", "no", ""), styles("a", "yes", "A: "), styles("b", "no", "B: "))
    config = tiny_config(place, tasks=tasks)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, generate=False, max_examples=None))
    cost = {}
    for pair in (("yes", "no"), ("a", "b")):
        planned = study.plan(study.TransferRequest(tasks=pair, examples=4000, seeds=(0, 1)), config)
        grow(tmp_path / pair[0], configs.to_json(planned.config), planned.trials, overwrite=False)
        study.begin(tmp_path / pair[0], planned.design)
        sweep.sweep(planned.config, tmp_path / pair[0], planned.trials)
        found = study.conclude(tmp_path / pair[0])
        tokens = {t: n / 40 for t, n in read_sweep(tmp_path / pair[0]).arms[0].run.evals[-1].task_tokens.items()}
        for one in found["forms"]["added"]["cells"]:
            cost[one["target"]] = -one["estimate"] * tokens[one["target"]]
    assert [cost["yes"], cost["no"]] == pytest.approx([math.log(2)] * 2, rel=0.1)
    assert [cost["a"], cost["b"]] == pytest.approx([0, 0], abs=0.05)
