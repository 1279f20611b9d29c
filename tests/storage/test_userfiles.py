"""Config files: what is raised in them is one message with their own line; modules and paths beside them are found."""

import os
import sys

import pytest

from jaxtune import config
from jaxtune.cli import main
from jaxtune.errors import UserError
from jaxtune.runs import folder as runfolder
from jaxtune.storage import userfiles
from jaxtune.storage.documents import write_json
from jaxtune.tasks import from_jsonl

HELPER = """import os
class Odd(Exception): pass
def unset(): return os.environ["NO_SUCH_VARIABLE_IS_SET"]
def deep(n): return deep(n + 1)
def odd(): raise Odd("of its own kind")
def long(): raise Odd("x" * 100_000)
class Mute(Exception):
    def __str__(self): return 3
def mute(): raise Mute
def leave(): raise GeneratorExit("left")
"""
RAISING = {
    "1 / 0": "ZeroDivisionError: division by zero",
    "{}['a']": "KeyError: 'a'",
    "open('nowhere.txt')": "FileNotFoundError",
    "int('x')": "ValueError: invalid literal",
    "helper.unset()": "environment variable NO_SUCH_VARIABLE_IS_SET is not set",
    "helper.deep(0)": "RecursionError",
    "helper.odd()": "Odd: of its own kind",
    "sys.exit(3)": "sys.exit\\(3\\)",
    "exit()": "sys.exit",
    "next(iter(()))": "StopIteration",
    "raise_(BaseException('x'))": "NameError",
    "(_ for _ in ()).throw(BaseException('no Exception'))": "BaseException: no Exception",
    "helper.mute()": r"Mute: \(its message cannot be read: TypeError\)",
    "helper.long()": r"Odd: x{2000} \.\.\.",
    "OptimConfig(lr=1e-3)": "unexpected keyword argument 'lr'. Did you mean 'peak_lr'",
    "DataConfig(max_length=8)": "Did you mean 'seq_len'",
    "1 + None": "TypeError",
    "assert_(False)": "NameError",
    "MixtureConfig(temperature=-1)": "mixture.temperature is -1; it must be",
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Folders of files that were run here, and modules beside them, are forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(userfiles, "_folders", [])
    monkeypatch.setattr(userfiles, "_started_in", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "pytest-of" in str(sys.modules[name].__file__):
            del sys.modules[name]


def written(folder, body, where="config"):
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(HELPER)
    top = "import sys, helper\nfrom jaxtune.config import *\n"
    text = f"{top}def config():\n    return {body}\n" if where == "config" else f"{top}x = {body}\n"
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


def test_a_config_that_raises_what_closes_generators_is_a_message_too(tmp_path):
    """Runtime type checks delegate to generators, and such an exception reaches those without its text."""
    with pytest.raises(UserError, match="config\\(\\) of .*mine.py does not run: GeneratorExit"):
        config.load(written(tmp_path / "configs", "helper.leave()"))


@pytest.mark.parametrize("where", ["config", "module"])
@pytest.mark.parametrize("body", RAISING)
def test_whatever_a_config_raises_is_one_message_with_the_users_line(tmp_path, capsys, body, where):
    path = written(tmp_path / "configs", body, where)
    assert main(["options", str(path)]) == 1
    # on a busy machine the phase says how long it has been going on
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("reading the config: ")]
    assert said[0].startswith("error: ") and len(said) <= 2
    file = "helper.py" if body.startswith("helper") else "mine.py"
    with pytest.raises(UserError, match=f"(?s){RAISING[body]}.*{file}, line [0-9]+"):
        config.load(path)


def test_debug_shows_the_traceback(tmp_path, capsys):
    path = written(tmp_path / "configs", "1 / 0")
    assert main(["options", str(path), "--debug"]) == 1
    assert "Traceback" in (said := capsys.readouterr().err) and said.splitlines()[-2].startswith("error: config() of")


def test_a_function_of_a_config_that_raises_later_is_told_by_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def later():\n    return 1 / 0\n")
    module = userfiles.load_module(path)
    with pytest.raises(ZeroDivisionError) as raised:
        module.later()
    assert f"{path}, line 2, in later: return 1 / 0" in str(userfiles.blame(raised.value))
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert userfiles.blame(raised.value) is None, "a fault that is not the user's keeps its traceback"


def test_each_config_finds_the_modules_of_its_own_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common_settings.py").write_text(f"NAME = {name!r}\n")
        (tmp_path / name / "mine.py").write_text("import common_settings\nNAME = common_settings.NAME\n")
    for name in ("one", "two", "one"):
        assert name == userfiles.load_module(tmp_path / name / "mine.py").NAME
    assert [file.name for file in userfiles.sources(tmp_path / "one" / "mine.py")] == ["mine.py", "common_settings.py"]
    assert sys.path[-1] == str(tmp_path / "one") and str(tmp_path / "two") not in sys.path


def test_paths_are_looked_up_beside_the_config_then_in_the_working_folder(tmp_path, monkeypatch):
    for place in ("configs", "work", "first"):
        (tmp_path / place).mkdir()
    record = '{"prompt": "a", "completion": "%s"}\n'
    (tmp_path / "configs" / "both.jsonl").write_text(record % "beside")
    for name in ("both", "only"):
        (tmp_path / "work" / f"{name}.jsonl").write_text(record % "working")
    (tmp_path / "first" / "earlier.jsonl").write_text(record % "earlier")
    (tmp_path / "configs" / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path / "work")
    userfiles.load_module(tmp_path / "configs" / "mine.py")
    assert from_jsonl("both.jsonl")[0]["completion"] == "beside"
    assert from_jsonl("only.jsonl")[0]["completion"] == "working"
    with pytest.raises(UserError, match=f"(?s)earlier.jsonl.*no such file.*{tmp_path}/configs.*{tmp_path}/work"):
        len(from_jsonl("earlier.jsonl"))
    userfiles.started_in(tmp_path / "first")
    assert from_jsonl("earlier.jsonl")[0]["completion"] == "earlier"


def test_a_run_folder_keeps_the_sources_and_where_it_was_started(tmp_path, monkeypatch):
    path = written(tmp_path / "configs", "helper")
    with pytest.raises(UserError, match="returned module"):
        config.load(path)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    runfolder.keep_sources(run_dir, path)
    assert sorted(os.listdir(run_dir / "sources")) == ["helper.py", "mine.py"]
    write_json(run_dir / "command.json", {"config": str(path), "overrides": [], "folder": str(tmp_path)})
    monkeypatch.chdir(run_dir)
    assert runfolder.read_working_folder(run_dir) == tmp_path
    with pytest.raises(UserError, match="returned module"):
        config.of_run(run_dir)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("bsae", "base"),
        ("base/train.jsn", "base/train.jsonl"),
        ("bsae/train.jsonl", "base/train.jsonl"),
        ("bsae/train.jsn", None),
        ("nothing/like/it", None),
        ("x" * 300, None),
        ("base\0", "base"),
    ],
)
def test_a_path_that_does_not_exist_comes_with_the_nearest_that_does(tmp_path, asked, meant):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "train.jsonl").write_text("")
    said = userfiles.looked_for(tmp_path / asked)
    assert said == ("" if meant is None else f"; did you mean {tmp_path / meant}?")
