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


ADDRESS = "https://example.org/lab/jaxtune"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git tracks."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(source, *options, address=ADDRESS):
    """What building it prints, and whether it went well."""
    command = [sys.executable, "-m", "build", "--outdir", str(source / "dist"), *options, str(source)]
    return subprocess.run(command, env={**os.environ, "JAXTUNE_URL": address}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def distributions(source):
    """Both, built from what git tracks."""
    done = build(source)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "dist"


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


@pytest.mark.slow
def test_a_distribution_names_the_repository_that_its_builder_gives(distributions):
    (archive,) = distributions.glob("*.whl")
    opened = zipfile.ZipFile(archive)
    (metadata,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
    lines = opened.read(metadata).decode().splitlines()
    assert f"Project-URL: Homepage, {ADDRESS}" in lines
    assert f"Project-URL: Changelog, {ADDRESS}/blob/HEAD/CHANGELOG.md" in lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "address", ["jaxtune", "http://example.org/lab/jaxtune", "https://example.org", "https://a b/c"]
)
def test_an_address_that_is_none_is_refused(source, address):
    done = build(source, "--sdist", address=address)
    assert done.returncode and f"JAXTUNE_URL is {address!r}: give the repository's address" in done.stdout + done.stderr
