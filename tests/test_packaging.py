"""The two distributions: the source one holds all that its own tests need, the wheel all that a run needs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RELATIVE_LINK = re.compile(r"\]\((?!https?://|#)[^)]+\)")


def tracked() -> list[str]:
    """Files of the repository; a source distribution is its own list of files and has nothing to compare."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a repository")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_readme_has_no_links_that_are_dead_on_a_package_index():
    assert not RELATIVE_LINK.findall((ROOT / "README.md").read_text())


def test_extras_are_pinned_by_the_constraints():
    """What `make test` and `make parity` install is the same tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [(ROOT / name).read_text() for name in ("constraints.txt", "constraints-parity.txt")]
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pinned = {normal(line.split("==")[0]) for text in texts for line in text.splitlines() if "==" in line}
    lines = [*project["dependencies"], *(line for name in PINNED for line in project["optional-dependencies"][name])]
    assert not {normal(re.split(r"[\[<>=~; ]", line, maxsplit=1)[0]) for line in lines} - pinned


PINNED = ("test", "parity", "docs")
"""Extras that a command of the Makefile installs."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Both, built from what git tracks."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.mark.slow
def test_the_source_distribution_holds_every_file_and_its_tests_can_be_collected(distributions, tmp_path):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (top,) = tmp_path.iterdir()
    assert not [name for name in tracked() if not name.startswith(".") and not (top / name).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", "not parity"]
    done = subprocess.run(command, cwd=top, env={**os.environ, "PYTHONPATH": str(top)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(distributions):
    (archive,) = distributions.glob("*.whl")
    inside = set(zipfile.ZipFile(archive).namelist())
    assert not [name for name in tracked() if name.startswith("jaxtune/") and name not in inside]


def published(folder, *given):
    """`make source` in this repository, into a folder."""
    tracked()
    command = ["make", "-s", "-C", str(ROOT), "source", f"SOURCE={folder}", *given]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_is_published_names_the_repository_that_its_publisher_gives(tmp_path):
    done = published(tmp_path / "source", "URL=https://example.org/lab/jaxtune")
    assert done.returncode == 0, done.stdout + done.stderr
    project = tomllib.loads((tmp_path / "source" / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Homepage"] == "https://example.org/lab/jaxtune"
    assert project["urls"]["Changelog"] == "https://example.org/lab/jaxtune/blob/HEAD/CHANGELOG.md"
    assert (tmp_path / "source" / "jaxtune" / "__init__.py").exists()


def test_without_an_address_there_are_no_project_urls(tmp_path):
    done = published(tmp_path / "source")
    assert done.returncode == 0 and "will have no project URLs" in done.stdout
    assert "urls" not in tomllib.loads((tmp_path / "source" / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "address", ["jaxtune", "http://example.org/lab/jaxtune", "https://example.org", "https://a b/c"]
)
def test_an_address_that_is_none_is_refused(tmp_path, address):
    done = published(tmp_path / "source", f"URL={address}")
    assert done.returncode and f"URL is '{address}': give the repository's address" in done.stdout
    assert not (tmp_path / "source").exists()
