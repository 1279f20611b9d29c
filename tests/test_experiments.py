"""The experiments of the chapter: every folder has a question, a direction, and one command whose words parse."""

import importlib.util
import json
import pathlib
import sys

import pytest

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.sweep.language import Setting

ROOT = pathlib.Path(__file__).parent.parent / "experiments"
FOLDERS = sorted(path.parent for path in ROOT.glob("*/run.py") if path.parent.name[:2] >= "16")


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def commands(folder: pathlib.Path) -> list[list[str]]:
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [[word.replace("HERE", str(folder)).replace("RUNS", "runs/x") for word in one] for one in module.COMMANDS]


def test_they_are_there():
    assert {"16", "17", "18", "19", "20", "21", "22", "23", "24"} <= {folder.name[:2] for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_says_what_would_refute_it_and_what_came_out(folder):
    text = (folder / "README.md").read_text()
    for part in ("Question.", "Written down before any run.", "What would refute it.", "Command.", "Answer."):
        assert f"**{part}**" in text, part
    assert ("Not yet run" in text) != (folder / "results.csv").exists()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_commands_parse_and_its_options_fit_its_config(folder):
    for words in commands(folder):
        arguments, rest = cli.build_parser().parse_known_args(words)
        if words[0] not in ("sweep", "transfer"):
            continue
        config = configs.load(pathlib.Path(words[1])) if words[1] != "quickstart" else None
        if config is None:
            continue
        assert arguments.dry_run is False and not rest
        values = dict(one.split("=", 1) for one in getattr(arguments, "grid", []))
        for option, listed in values.items():
            for value in listed.split(","):
                configs.override(config, [f"--{option}", *value.split()])
        if getattr(arguments, "arms", None) is not None:
            for line in arguments.arms.read_text().splitlines():
                overrides = json.loads(line)["overrides"]
                configs.override(
                    config, Setting(overrides={name: str(value) for name, value in overrides.items()}).arguments()
                )
        if words[0] == "transfer":
            assert set(arguments.tasks) <= {task.name for task in config.tasks}
        seeds = [] if arguments.seeds is None else arguments.seeds
        assert len(seeds) >= 3 or "--confirm" in words
