"""The pages: every option and package has its place, every command parses, every setting named exists."""

import ast
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import page_commands
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxtune import cli, config
from jaxtune.hf.families import FAMILIES
from jaxtune.hf.unsupported import MISSING
from jaxtune.hf.wrapped import WRAPPERS
from jaxtune.train import quickstart

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.md")])


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


generate = load_generator()
OPTIONS = [option for _, options in generate.parts(config.ExperimentConfig) for option in options]
NAMES = {option.name for option in OPTIONS}


def leaves_of(tree: dict, prefix: str = "") -> list[str]:
    """Dotted names of all values of nested objects."""
    inside = [(name, value) for name, value in tree.items() if isinstance(value, dict) and value]
    names = [prefix + name for name, value in tree.items() if not (isinstance(value, dict) and value)]
    return names + [leaf for name, value in inside for leaf in leaves_of(value, f"{prefix}{name}.")]


def test_every_leaf_of_a_config_is_an_option_on_the_page():
    leaves = set(leaves_of(config.to_json(quickstart.config()))) - {"tasks", "lora"}  # no adapters in that config
    missing = {name for name in leaves if f"--{name.replace('_', '-')}" not in NAMES}
    assert not missing


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_says_what_it_means(option):
    assert len(option.meaning.split()) >= 2


def test_the_navigation_names_every_package():
    named = set(re.findall(r"- api/(\w+)\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == set(generate.packages())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_parse_and_their_options_exist(path, monkeypatch):
    monkeypatch.setitem(
        importlib.import_module("fsspec.registry")._registry, "gs", MemoryFileSystem
    )  # its package is an extra
    parser = cli.build_parser()
    for words in page_commands.commands(path.read_text(encoding="utf-8")):
        if len(words) == 1 or "..." in words:
            continue
        arguments, rest = parser.parse_known_args(words)
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert arguments.overrides or not given, words
        assert {option for option in given if option not in ("--lora", "--no-lora")} <= NAMES, words


CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_its_time_and_its_result(path):
    header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert set(re.findall(r"^(\w+): +\S", header, re.MULTILINE)) == {"Run", "Takes", "Reaches"}
    joined = re.sub(r"\\\n +", "", header)
    command = re.findall(r"(jaxtune (?:train|sweep) .*?)(?:  |,|\)|$)", joined, re.MULTILINE)[0]
    arguments, rest = cli.build_parser().parse_known_args(command.split()[1:])
    assert not rest and arguments.config in ("quickstart", f"configs/{path.name}")
    grid = getattr(arguments, "grid", None) or []
    assert {f"--{axis.split('=')[0].replace('_', '-')}" for axis in grid} <= NAMES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_named_in_code_spans_exist(path):
    """`data.seq_len`, `--data.seq-len`: a part of the config and a field of it."""
    parts = {name.split(".")[0].removeprefix("--") for name in NAMES if "." in name}
    text = page_commands.prose(path.read_text(encoding="utf-8"))
    if path.name == "switching.md":  # the other columns hold the settings of other tools
        text = "\n".join(line.rstrip("| ").rpartition("|")[2] for line in text.splitlines())
    spans = " ".join(re.findall(r"`([^`]+)`", text))
    named = {f"--{part}.{field}" for part, field in re.findall(r"(?<![\w./])(?:--)?(\w+)\.([a-z][\w-]*)\b", spans)}
    named = {name.replace("_", "-") for name in named if name[2:].split(".")[0] in parts}
    files = {name for name in named if name.rpartition(".")[2] in ("jsonl", "json", "py", "md", "html", "parquet")}
    wholes = {name.rpartition(".")[0] for name in NAMES}  # `eval.lm_eval` of `eval.lm_eval.tasks`
    assert not named - files - NAMES - wholes


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "options" / "index.html").exists()


def test_the_page_of_models_has_every_family_and_what_is_missing():
    page = generate.models_page()
    for name in (*FAMILIES, *WRAPPERS, *MISSING):
        assert f"| `{name}` |" in page
    assert not set(MISSING) & {*FAMILIES, *WRAPPERS}
    said = re.search(r"(\d+) model families are read and written", (ROOT / "README.md").read_text())
    assert said is not None and int(said[1]) == len(FAMILIES)


def test_the_chapter_is_a_page_with_its_pictures_and_the_table_of_what_was_measured():
    page = generate.pages()["chapter.md"]
    assert page.startswith("# The chapter") and page.count("<iframe") == 2
    assert all("\n" not in line for line in re.findall(r"<iframe.*?</iframe>", page, flags=re.DOTALL))
    assert (ROOT / "README.md").read_text().split("| claim |")[1].split("<!--")[0].strip() in page, (
        "results have changed since notebooks/chapter.ipynb was run"
    )
