"""The suite's own rules: whole files to a worker, and nothing left behind in the repository."""

import os
import pathlib
import subprocess

import conftest
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
