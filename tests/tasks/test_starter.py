"""The first commands of somebody who has installed the package: `jaxtune init` and `jaxtune train quickstart`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import jaxtune
from jaxtune import cli, config
from jaxtune.errors import UserError
from jaxtune.tasks import starter
from jaxtune.train import quickstart

ROOT = pathlib.Path(jaxtune.__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A fresh project, seen from another folder."""
    assert cli.main(["init", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def test_init_writes_a_project_whose_data_has_no_problem(project, capsys):
    assert {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()} == {
        *("config.py", "README.md", "data/qa.jsonl", "data/math.jsonl")
    }
    capsys.readouterr()
    assert cli.main(["validate", "mine/config.py", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == 0 and report["records"] == sum(starter.RECORDS.values())


def test_init_replaces_nothing(project):
    (project / "config.py").write_text("mine")
    with pytest.raises(UserError, match=r"config\.py.*is there; name another folder"):
        starter.write_project(project)
    assert (project / "config.py").read_text() == "mine"


def test_init_into_a_file_is_one_clear_line(project, capsys):
    assert cli.main(["init", str(project / "config.py" / "sub")]) == 1
    assert "cannot write into" in capsys.readouterr().err


def test_every_option_named_in_the_project_exists(project, capsys):
    assert cli.main(["options", "mine/config.py"]) == 0
    assert "--optim.peak-lr" in capsys.readouterr().out


def test_quickstart_is_a_config_of_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["options", "quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == config.to_json(quickstart.config())
    assert config.load(ROOT / "configs" / "quickstart.py") == quickstart.config()


@pytest.mark.slow
def test_the_project_trains_and_reports(project):
    command = [sys.executable, "-m", "jaxtune", "train", "mine/config.py", "--run-dir", "runs/first"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (project.parent / "runs" / "first" / "report.html").exists()
