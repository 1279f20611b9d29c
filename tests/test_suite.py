"""The suite's own rules: whole files to a worker, and nothing left behind in the repository."""

import ast
import os
import pathlib
import subprocess

import conftest
import long_tests
import pytest

pytest_plugins = ("pytester",)


@pytest.fixture
def repository(tmp_path):
    for command in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (tmp_path / ".gitignore").write_text(".cache/\n")
    return tmp_path


def test_changes_are_files_that_git_does_not_ignore(repository):
    before = conftest.changes(repository)
    (repository / ".cache").mkdir()
    (repository / ".cache" / "x").touch()
    assert conftest.changes(repository) == before
    (repository / "gs:").mkdir()
    (repository / "gs:" / "x").touch()
    assert before is not None and (conftest.changes(repository) or frozenset()) - before == {"?? gs:/x"}


def test_a_folder_without_history_has_no_changes_to_speak_of(tmp_path):
    assert conftest.changes(tmp_path) is None


def test_a_suite_that_leaves_a_file_behind_fails(pytester, monkeypatch):
    hooks = "from conftest_of_the_suite import *\nimport conftest_of_the_suite as suite\nimport pathlib\n"
    root = "suite.ROOT = pathlib.Path(__file__).parent\n"
    pytester.makepyfile(conftest_of_the_suite=pathlib.Path(conftest.__file__).read_text())
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(conftest.__file__).parent), prepend=os.pathsep)
    pytester.makeconftest(hooks + root)
    pytester.makepyfile(test_it="def test_it():\n    open('left.txt', 'w').close()\n")
    pytester.makefile(".gitignore", "")
    subprocess.run(["git", "init", "-q", str(pytester.path)], check=True)
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*left behind in the repository by the tests: ?? left.txt*", "*1 passed*"])


def test_a_file_is_a_group_unless_it_names_another(request):
    marks = request.node.get_closest_marker("xdist_group")
    assert marks is not None and marks.args == ("tests/test_suite.py",)


def test_every_long_test_is_there():
    """A test that is renamed would come back among the quick ones, and its line would stay."""
    for line in sorted(long_tests.listed()):
        file, _, function = line.partition("::")
        tree = ast.parse((conftest.ROOT / "tests" / file).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, line


SUITE = """
import pytest, time

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass

@pytest.fixture(scope="module")
def dear():
    work(0.3)

def test_first(dear): pass
def test_second(dear): pass
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_own(seconds): work(seconds)
def test_quick(): time.sleep(0.3)
"""


def test_a_test_pays_for_the_shared_fixtures_it_asks_for(pytester):
    """Also the second one: once the first is among the long ones, the second would make the fixture."""
    pytester.makepyfile(test_it=SUITE)
    (pytester.path / "long.txt").write_text("other.py::test_kept\ntest_it.py::test_quick\n")
    durations = long_tests.Durations(0.2, pytester.path / "long.txt")
    assert pytester.inline_run("-p", "no:cacheprovider", plugins=[durations]).ret == 0
    names = {"other.py::test_kept", *(f"test_it.py::test_{name}" for name in ("first", "second", "own"))}
    assert long_tests.listed(pytester.path / "long.txt") == names


def test_listed_tests_are_marked(pytester):
    items = pytester.getitems(SUITE)
    long_tests.mark(items, frozenset({long_tests.name_of(items[2].nodeid)}))
    assert [item.name for item in items if item.get_closest_marker("long")] == ["test_own[0]", "test_own[0.3]"]
