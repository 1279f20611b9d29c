"""The command line: exit codes, JSON, one clear message instead of a traceback."""

import argparse
import contextlib
import json
import math
import pathlib
import re
import textwrap

import numpy as np
import pytest
from helpers import tiny_model
from safetensors.numpy import load_file

from jaxtune import cli, commands

SIZES = ["--sizes", "qa=120000", "math=8000"]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, data and a config."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model(folder / "base")
    records = [
        {"id": f"r{i}", "messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}]}
        for i in range(12)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        '''A small run.'''
        from jaxtune.config import BatchConfig, DataConfig, ExperimentConfig, ModelSource
        from jaxtune.mixture import Budget
        from jaxtune.parallel.mesh import MeshConfig
        from jaxtune.tasks import Task, from_jsonl

        def config():
            return ExperimentConfig(
                name="cli", model=ModelSource(path={str(folder / "base")!r}),
                tasks=(Task(name="say", splits={{"train": from_jsonl({str(folder / "data.jsonl")!r})}}),),
                duration=Budget(steps=2), data=DataConfig(seq_len=64, cache_dir={str(folder / "cache")!r}),
                batch=BatchConfig(rows=2), compilation_cache=None, mesh=MeshConfig(devices=1),
            )
        """)
    )
    return folder


@contextlib.contextmanager
def away(*files: pathlib.Path):
    """Without these files while inside."""
    for file in files:
        file.rename(file.with_suffix(".away"))
    try:
        yield
    finally:
        for file in files:
            file.with_suffix(".away").rename(file)


@pytest.mark.parametrize(("temperature", "ratio"), [("1", 15), ("2", math.sqrt(15)), ("inf", 1)])
def test_mix_prints_the_temperatures_of_the_handbook(capsys, temperature, ratio):
    code, out, _ = run(capsys, "mix", *SIZES, "--temperature", temperature, "--json")
    rows = json.loads(out)
    assert code == 0 and {"task", "size", "probability", "count", "epochs", "capped"} <= set(rows[0])
    assert rows[0]["probability"] / rows[1]["probability"] == pytest.approx(ratio, rel=1e-6)


def test_mix_counts_fill_the_budget_under_the_cap(capsys):
    code, out, _ = run(capsys, "mix", *SIZES, "--max-repeats", "3", "--budget", "100000", "--json")
    rows = {row["task"]: row for row in json.loads(out)}
    assert code == 0 and rows["qa"]["count"] + rows["math"]["count"] == 100_000
    assert rows["math"]["count"] <= 24_000


def test_mix_prints_a_table(capsys):
    code, out, _ = run(capsys, "mix", *SIZES, "--budget", "1000")
    assert code == 0 and "math" in out and "qa" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix"], "either a config or --sizes"),
        (["mix", "--sizes", "qa"], "NAME=NUMBER"),
        (["mix", "--sizes", "qa=1", "qa=2"], "twice"),
        (["mix", *SIZES, "--max-repeats", "1", "--budget", "1000000"], "128000|128,000"),
        (["mix", *SIZES, "--max-repeats", "1"], "--budget"),
        (["mix", *SIZES, "--weights", "qaa=1", "math=1"], "qa"),
        (["train", "nowhere.py", "--run-dir", "x"], "no config file"),
        (["report", "nowhere"], "nowhere"),
        (["validate", "nowhere.jsonl"], "no file at nowhere.jsonl"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["import-hf", "nowhere"], "nowhere"),
        (["plan-memory", "nowhere.py"], "no config file"),
        (["plan-memory", "nowhere.py", "--device-gib", "inf"], "at most 1048576; it is inf"),
        (["plan-memory", "nowhere.py", "--device-gib", "0"], "--device-gib must be above 0"),
        (["sweep", "nowhere.py", "--sweep-dir", "x", "--grid", "a=1"], "no config file"),
    ],
)
def test_bad_input_exits_with_1_and_one_message(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "\nerror: " in f"\n{err}" and "Traceback" not in err  # after lines of phases, on a slow machine
    assert any(part in err for part in message.split("|"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "data.jsonl", "--limit"],
        ["preview", "config.py", "--examples"],
        ["preview", "config.py", "--index"],
        ["plan-memory", "config.py", "--devices"],
        ["generate", "model", "--max-new-tokens"],
        ["generate", "model", "--top-k"],
        ["verify", "run", "--replay"],
        ["train", "config.py", "--run-dir", "no", "--resume-step"],
        ["sweep", "config.py", "--sweep-dir", "no", "--random"],
        ["sweep", "config.py", "--sweep-dir", "no", "--design-seed"],
        ["transfer", "config.py", "--sweep-dir", "no", "--tasks", "a", "b", "--subsets"],
        ["conflict", "config.py", "--tokens"],
    ],
)
@pytest.mark.parametrize("number", ["-1", str(10**30), "1e3", "nan", "9" * 5000])
def test_whole_numbers_that_no_command_can_use_are_refused_with_their_range(capsys, arguments, number):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, number])
    assert f"argument {arguments[-1]}: '{number[:40]}' is not a whole number in [" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["preview", "config.py", "--html", "data.jsonl/page.html"],
        ["preview", "config.py", "--html", "none/page.html"],
        ["preview", "config.py", "--data.cache-dir", "data.jsonl/cache"],
        ["report", "a", "b", "--out", "data.jsonl/page.html"],
        ["train", "config.py", "--run-dir", "data.jsonl/run"],
        ["train", "config.py", "--run-dir", "no", "--checkpoint.directory", "data.jsonl/checkpoints"],
        ["train", "config.py", "--run-dir", "no", "--data.cache-dir", "data.jsonl/cache"],
    ],
)
def test_a_place_for_output_that_cannot_be_is_named_before_any_work(capsys, place, monkeypatch, arguments):
    monkeypatch.chdir(place)
    code, _, err = run(capsys, *arguments)
    assert code == 1 and "Traceback" not in err and not (place / "no").exists()
    assert re.search(r"(data.jsonl|none)\S* cannot be (made|written)", err), err


@pytest.mark.parametrize(
    "option, meant",
    [
        ("--learning-rate", "--optim.peak-lr"),
        ("--optim.learning-rate", "--optim.peak-lr"),
        ("--max-length", "--data.seq-len"),
        ("--lora-r", "--lora.rank"),
    ],
)
def test_a_word_of_another_library_is_told_in_ours(capsys, place, option, meant):
    code, _, err = run(capsys, "options", str(place / "config.py"), option, "3")
    assert code == 1 and f"{option}: did you mean {meant}?" in err


def test_memory_is_planned_for_devices_that_are_not_here(capsys, place):
    mesh = ["--mesh.data", "4", "--mesh.fsdp", "-1", "--batch.rows", "128"]
    many = ["--devices", "64", "--device-gib", "0.01", "--platform", "tpu"]
    code, out, _ = run(capsys, "plan-memory", str(place / "config.py"), *mesh, *many, "--json")
    table = json.loads(out)
    assert code == 0 and table["mesh"]["fsdp"] == 16 and table["platform"] == "tpu"
    assert table["fits"] == (table["bytes"]["total"] <= 0.01 * 2**30)
    code, out, _ = run(capsys, "plan-memory", str(place / "config.py"))
    assert code == 0 and "one device" in out and "largest forward pass that fits" in out
    code, _, err = run(capsys, "plan-memory", str(place / "config.py"), "--mesh.data", "4", "--mesh.devices", "4")
    assert code == 1 and "2 rows of a forward pass do not divide over 4 devices" in err


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train"], ["report", "x", "--jsn"], ["mix", "--temperature", "hot"]]
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "x.py"], "did you mean train?"),
        (["train", "x.py", "--rundir", "r"], "did you mean --run-dir?"),
        (["sweep", "x.py", "--sweepdir=r"], "did you mean --sweep-dir?"),
        (["report", "x", "--jsn"], "did you mean --json?"),
        (["export-hf", "r", "out", "--dtype", "bf16"], "did you mean bfloat16?"),
        (["mix", "--sizes", "a=1", "--strategy", "propotional"], "did you mean proportional?"),
        (["generate", "r", "--promt", "x"], "did you mean --prompt?"),
    ],
)
def test_wrong_usage_names_the_nearest_word(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_an_option_of_the_command_that_is_misspelt_among_those_of_the_config(capsys, place):
    code, _, err = run(capsys, "train", str(place / "config.py"), "--run-dir", str(place / "typo"), "--overwirte")
    assert code == 1 and "did you mean --overwrite?" in err and not (place / "typo").exists()


def test_an_option_without_its_part_names_the_whole(capsys, place):
    code, _, err = run(capsys, "options", str(place / "config.py"), "--temperture", "2")
    assert code == 1 and "did you mean --mixture.temperature?" in err
    grid = ["--sweep-dir", str(place / "sweep"), "--grid", "peak_lr=1,2"]
    code, _, err = run(capsys, "sweep", str(place / "config.py"), *grid)
    assert code == 1 and "did you mean --optim.peak-lr?" in err and not (place / "sweep").exists()


def test_options_are_not_abbreviated(capsys):
    """An abbreviation would take an option of the config, such as --seed, for one of the command, such as --seeds."""
    arguments = cli.build_parser().parse_known_args(
        ["sweep", "x.py", "--sweep-dir", "s", "--grid", "a=1", "--seed", "3"]
    )
    assert arguments[0].seeds == [0] and arguments[1] == ["--seed", "3"]


def command_functions() -> set[str]:
    return {name for name in dir(commands) if name.startswith("run_")}


def test_every_command_has_a_parser_and_every_parser_a_command():
    parser = cli.build_parser()
    (rows,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    runs = {row.get_default("run").__name__ for row in rows.choices.values()}
    assert runs == command_functions()


def test_an_unknown_config_option_names_the_nearest_and_writes_nothing(capsys, place):
    code, _, err = run(
        capsys, "train", str(place / "config.py"), "--run-dir", str(place / "typo"), "--optim.peak-lrr", "1"
    )
    assert code == 1 and "peak-lr" in err
    assert not (place / "typo").exists()


def broken_line(folder: pathlib.Path, line: str) -> None:
    lines = (folder / "data.jsonl").read_text().splitlines()
    (folder / "data.jsonl").write_text("\n".join([*lines[:4], line, *lines[5:]]) + "\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "messages": [', "data.jsonl:5"),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}', "data.jsonl:5"),
        ('{"messages": [{"role": "user", "content": "b"}]}', "data.jsonl:5"),
    ],
)
def test_a_broken_record_stops_training_before_it_starts(capsys, place, line, message):
    kept = (place / "data.jsonl").read_text()
    try:
        broken_line(place, line)
        code, _, err = run(capsys, "train", str(place / "config.py"), "--run-dir", str(place / "broken"))
    finally:
        (place / "data.jsonl").write_text(kept)
    assert code == 1 and message in err and "Traceback" not in err
    assert not (place / "broken").exists()


def test_an_example_longer_than_the_row_is_an_error_where_the_policy_says_so(capsys, place):
    arguments = ["--data.seq-len", "8", "--data.length-policy", "error"]
    code, _, err = run(capsys, "train", str(place / "config.py"), "--run-dir", str(place / "long"), *arguments)
    assert code == 1 and "data.jsonl:1" in err
    assert not (place / "long").exists()


def test_train_report_and_generate_in_a_row(capsys, place):
    run_dir = str(place / "run")
    code, out, _ = run(capsys, "train", str(place / "config.py"), "--run-dir", run_dir)
    assert code == 0 and "report.html" in out
    assert run(capsys, "train", str(place / "config.py"), "--run-dir", run_dir)[0] == 1
    code, out, _ = run(capsys, "report", run_dir)
    assert code == 0 and pathlib.Path(out.strip()).exists()
    code, out, _ = run(capsys, "generate", run_dir, "--prompt", "say 3", "--max-new-tokens", "3", "--json")
    assert code == 0 and json.loads(out)[0]["prompt"] == "say 3"
    code, out, _ = run(capsys, "import-hf", f"{run_dir}/model", "--json")
    assert code == 0 and json.loads(out)["layers"] == 2
    with away(place / "config.py", place / "data.jsonl"):  # the run folder and the base model are enough
        code, _, err = run(capsys, "export-hf", run_dir, str(place / "out"))
    assert code == 0, err
    weights = [load_file(folder / "model.safetensors") for folder in (place / "out", place / "run" / "model")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.model"):
        assert (place / "out" / name).read_bytes() == (place / "run" / "model" / name).read_bytes()
    assert (place / "out" / "model.safetensors").exists()
    code, _, err = run(capsys, "export-hf", run_dir, str(place / "out"))
    assert code == 1 and "out" in err
    code, _, err = run(capsys, "export-hf", run_dir, str(place / "out"), "--overwrite", "--dtype", "bfloat16")
    assert code == 0, err
    code, _, err = run(capsys, "export-hf", run_dir, str(place / "adapter"), "--adapter")
    assert code == 1 and "trained all parameters" in err
    with away(place / "base" / "generation_config.json"):
        code, _, err = run(capsys, "export-hf", run_dir, str(place / "out"), "--overwrite")
    assert code == 1 and "not over the same base" in err and "generation_config.json" in err
    with away(place / "base"):  # the run's own model has shape, tokenizer and template
        code, _, err = run(capsys, "export-hf", run_dir, str(place / "alone"))
        assert code == 0, err
        same = [path.name for path in (place / "alone").iterdir()]
        assert {
            name for name in same if (place / "alone" / name).read_bytes() != (place / "run/model" / name).read_bytes()
        } == set()
        with away(place / "run" / "seal.json"):
            code, _, err = run(capsys, "export-hf", run_dir, str(place / "out"), "--overwrite")
    assert code == 1 and f"{place / 'base'}: no such folder" in err
    code, out, err = run(capsys, "evaluate", "--run-dir", run_dir, "--json")
    assert code == 0 and json.loads(out)["model"] == f"{run_dir}/model", err
    code, _, err = run(capsys, "evaluate")
    assert code == 1 and "takes a config, --run-dir with a run folder, or --model" in err


def test_adapters_go_out_and_training_starts_from_them(capsys, place):
    train = ["train", str(place / "config.py"), "--lora.rank", "2", "--lora.targets", "layers.attn.[qv].kernel"]
    rate = ["--optim.peak-lr", "0.1", "--model.path", "base"]  # beside the config
    code, _, err = run(capsys, *train, "--run-dir", str(place / "adapted"), *rate)
    assert code == 0, err
    with away(place / "config.py", place / "data.jsonl"):
        code, _, err = run(capsys, "export-hf", str(place / "adapted"), str(place / "adapter"), "--adapter")
        assert code == 0, err
        code, _, err = run(capsys, "export-hf", str(place / "adapted"), str(place / "merged"))
        assert code == 0, err
    merged, own = (load_file(place / name / "model.safetensors") for name in ("merged", "adapted/model"))
    assert all((merged[name] == own[name]).all() for name in own)
    again = [*train, "--run-dir", str(place / "again"), "--lora.start", str(place / "adapter")]
    code, _, err = run(capsys, *again, "--lora.rank", "3")
    assert code == 1 and "rank is 2 there and 3 in the config" in err and not (place / "again").exists()
    code, _, err = run(capsys, *again, "--optim.peak-lr", "1e-9")
    assert code == 0, err
    exported = [(place / name / "model" / "model.safetensors") for name in ("adapted", "again")]
    left, right = (load_file(path) for path in exported)
    base = load_file(place / "base" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(left[name], right[name], atol=1e-6)
    assert np.abs(left[name] - base[name]).max() > 1e-3
    recorded = json.loads((place / "again" / "manifest.json").read_text())["base_model"]
    assert "adapter_model.safetensors" in recorded
    with away(place / "adapter"):  # what the adapters were before training is of no account
        code, _, err = run(capsys, "export-hf", str(place / "again"), str(place / "remerged"))
    assert code == 0, err


def test_options_lists_what_a_config_can_change(capsys, place):
    code, out, _ = run(capsys, "options", str(place / "config.py"), "--batch.rows", "2")
    assert code == 0 and "--mixture.temperature" in out and "(default: 2)" in out
    code, out, _ = run(capsys, "options", str(place / "config.py"), "--batch.rows", "6", "--json")
    assert code == 0 and json.loads(out)["batch"]["rows"] == 6


def test_a_missing_or_misshapen_tensor_is_named(capsys, place, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(place / "base", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for changed in ({k: v for k, v in tensors.items() if k != name}, tensors | {name: tensors[name][:-1].copy()}):
        save_file(changed, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        arguments = ["--run-dir", str(tmp_path / "r"), "--model.path", str(tmp_path / "m")]
        code, _, err = run(capsys, "train", str(place / "config.py"), *arguments)
        assert code == 1 and name in err
        assert not (tmp_path / "r").exists()
