"""`import jaxtune`: every public name resolves, none costs JAX before it is used; the version stands in one place."""

import ast
import importlib.metadata
import inspect
import pathlib
import subprocess
import sys
import tomllib

import pytest

import jaxtune
from jaxtune.train import run

SOURCE = pathlib.Path(jaxtune.__file__)


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "code", ["import jaxtune", "import jaxtune.cli", "from jaxtune import MixtureConfig, allocate"]
)
def test_names_that_need_no_jax_import_none(code):
    assert python("-c", f"import sys; {code}; print('jax' in sys.modules)") == "False"


@pytest.mark.parametrize("name", jaxtune.__all__)
def test_a_public_name_resolves_and_is_listed(name):
    assert getattr(jaxtune, name) is not None
    assert name in dir(jaxtune)


def test_type_checkers_see_the_names_that_are_there():
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    aliases = [alias for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.asname or alias.name for alias in aliases} == set(jaxtune.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="alocate"):
        jaxtune.alocate  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("first", ["import jaxtune", "import jaxtune.train.run", "from jaxtune import train"])
def test_train_is_a_package_and_a_function_whichever_was_imported_first(first):
    code = f"{first}; import jaxtune, jaxtune.train.loop; from jaxtune import train; print(callable(train))"
    code += "; print(callable(jaxtune.train), jaxtune.train.loop.__name__)"
    assert python("-c", code).split() == ["True", "True", "jaxtune.train.loop"]


def test_calling_the_package_trains(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run, "train", lambda *arguments, **options: calls.append((arguments, options)))
    jaxtune.train("config", str(tmp_path), resume=True)  # pyright: ignore[reportArgumentType]
    assert calls == [(("config", tmp_path), {"resume": True})]


def test_the_package_takes_the_options_of_the_function():
    parameters = inspect.signature(run.train).parameters
    assert list(parameters)[:2] == ["config", "run_dir"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in list(parameters.values())[2:])


def test_the_version_stands_in_one_place():
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "jaxtune.__version__"}
    assert importlib.metadata.version("jaxtune") == jaxtune.__version__


def test_the_package_runs_as_a_module():
    assert python("-m", "jaxtune", "--version") == f"jaxtune {jaxtune.__version__}"
