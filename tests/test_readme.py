"""The README: its commands are run, its config is built, its tree is the tree."""

import json
import pathlib
import re

import page_commands as pages
import pytest
from helpers import chat_record

from jaxtune import cli, config
from jaxtune.validate.validation import validate_files

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = README[README.index("## A first experiment") : README.index("## Your own data")]
QUICK = ("validate", "preview", "mix", "options")
"""Commands that take seconds; the others of the walk train or need what training wrote."""


def walk() -> list[list[str]]:
    """The commands of the first experiment, after `init`."""
    (block,) = pages.blocks(FIRST, "bash")
    found = pages.commands(f"```bash\n{block}```\n")
    assert found[0] == ["init", "first"]
    return found[1:]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    assert cli.main(["init", str(folder / "first")]) == 0
    return folder / "first"


@pytest.mark.parametrize("arguments", [line for line in walk() if line[0] in QUICK], ids=" ".join)
def test_quick_commands_of_the_walk_run(arguments, project, monkeypatch):
    monkeypatch.chdir(project)
    assert cli.main(arguments) == 0


@pytest.mark.slow
def test_the_walk_runs_from_its_first_line_to_its_last(project, monkeypatch):
    monkeypatch.chdir(project)
    for arguments in walk():
        assert cli.main(arguments) == 0, arguments
    assert (project / "runs" / "first" / "report.html").exists()
    assert (project / "exported" / "model.safetensors").exists()


def test_the_mixture_of_the_readme_runs(capsys):
    (arguments,) = [line for line in pages.commands(README) if line[0] == "mix" and "--sizes" in line]
    assert cli.main([*arguments, "--json"]) == 0
    assert sum(row["count"] for row in json.loads(capsys.readouterr().out)) == 100_000


def test_the_line_of_data_is_valid(tmp_path):
    (line,) = pages.blocks(README, "json")
    (tmp_path / "data.jsonl").write_text(line)
    report = validate_files([str(tmp_path / "data.jsonl")])
    assert report.num_errors == 0


def test_the_config_is_a_config(tmp_path, monkeypatch):
    (code,) = pages.blocks(README, "python")
    for task in ("qa", "math"):
        (tmp_path / "data" / task).mkdir(parents=True)
        for split in ("train", "validation"):
            record = json.dumps(chat_record(1, f"{task} {split}", "yes"))
            (tmp_path / "data" / task / f"{split}.jsonl").write_text(record + "\n")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    loaded = config.load("mine.py")
    assert [task.name for task in loaded.tasks] == ["qa", "math"]
    assert all(len(task.source("train")) == 1 for task in loaded.tasks)


def test_every_command_has_its_line_in_the_table_or_the_walk():
    named = {words[0] for words in pages.commands(README)}
    assert set(cli.build_parser().commands()) <= named


def test_the_tree_names_every_module_and_package():
    tree = README[README.index("    jaxtune/\n") : README.index("| to add | touch |")]
    names = {
        path.stem for path in (ROOT / "jaxtune").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    missing = {name for name in names - {"__init__", "__main__"} if not re.search(rf"\b{name}\b", tree)}
    assert not missing
