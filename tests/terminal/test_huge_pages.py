"""Huge pages: commands that compute on a CPU start again with glibc's setting, once, and nothing else does."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxtune.terminal import huge_pages
from jaxtune.terminal.huge_pages import OPTION, SWITCH, helps

TRAIN = ("train", "config.py", "--run-dir", "r")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder with a kernel that gives huge pages to whom asks, and nothing under /dev."""
    monkeypatch.setattr(huge_pages, "glibc", lambda: (2, 36))
    monkeypatch.setattr(sys, "platform", "linux")
    place = tmp_path / huge_pages.KERNEL.relative_to("/")
    place.parent.mkdir(parents=True)
    place.write_text("always [madvise] never\n")
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    return tmp_path


def test_commands_that_compute_on_a_cpu_get_them(machine):
    assert helps(TRAIN, {}, machine)
    assert helps(("--debug", *TRAIN), {"GLIBC_TUNABLES": "glibc.malloc.check=3"}, machine)


@pytest.mark.parametrize("command", ["report", "mix", "validate", "options", "init"])
def test_other_commands_do_not_start_twice(machine, command):
    assert not helps((command, "x"), {}, machine)


@pytest.mark.parametrize("more", [OPTION, "--help", "-h", "--dry-run"])
def test_who_says_no_or_only_asks_starts_once(machine, more):
    assert not helps((*TRAIN, more), {}, machine)


@pytest.mark.parametrize(
    "environment",
    [
        {SWITCH: "0"},
        {SWITCH: "said"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"},
        {"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"},
    ],
    ids=str,
)
def test_the_environment_decides_before_us(machine, environment):
    assert not helps(TRAIN, environment, machine)


@pytest.mark.parametrize("kernel", ["[always] madvise never", "always madvise [never]"])
def test_a_kernel_that_gives_them_to_all_or_to_none_is_left_alone(machine, kernel):
    (machine / huge_pages.KERNEL.relative_to("/")).write_text(kernel)
    assert not helps(TRAIN, {}, machine)


@pytest.mark.parametrize("device", huge_pages.ACCELERATORS)
def test_where_an_accelerator_is_they_are_for_runs_on_the_cpu_alone(machine, device):
    (machine / "dev" / device).touch()
    assert not helps(TRAIN, {}, machine)
    assert helps(TRAIN, {"JAX_PLATFORMS": "cpu"}, machine)
    (machine / "dev" / device).unlink()
    assert not helps(TRAIN, {"JAX_PLATFORMS": "cuda"}, machine)


@pytest.mark.parametrize("version", [(), (2, 34)])
def test_another_or_an_older_c_library_is_left_alone(machine, monkeypatch, version):
    monkeypatch.setattr(huge_pages, "glibc", lambda: version)
    assert not helps(TRAIN, {}, machine)


@pytest.mark.parametrize("option", [(), (OPTION,)])
def test_a_command_says_so_once_and_ends_as_before(option, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in (SWITCH, "GLIBC_TUNABLES")}
    if not helps(TRAIN, environment):
        pytest.skip("this machine gives no huge pages to who asks")
    # a config that starts another command: it has huge pages already, and says nothing
    inner = "import os, subprocess, sys\nprint(os.environ.get('GLIBC_TUNABLES'))\nsys.stdout.flush()\n"
    again = "subprocess.run([sys.executable, '-m', 'jaxtune', 'train', 'none.py', '--run-dir', 'r'])\nraise SystemExit"
    (tmp_path / "config.py").write_text(inner + again)
    done = subprocess.run(
        [sys.executable, "-m", "jaxtune", *TRAIN, *option], cwd=tmp_path, env=environment | {SWITCH: "0"} | (
            {} if option else {SWITCH: "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        ), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("memory in huge pages") == (0 if option else 1)
    assert ("glibc.malloc.hugetlb=1" in done.stdout) == (not option)


def test_a_process_that_begins_anew_keeps_its_number_and_arguments(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in (SWITCH, "GLIBC_TUNABLES")}
    if not helps(TRAIN, environment):
        pytest.skip("this machine gives no huge pages to who asks")
    (tmp_path / "config.py").write_text("import os\nprint(os.getpid(), os.environ['GLIBC_TUNABLES'])\nraise SystemExit")
    words = [sys.executable, "-m", "jaxtune", "train", "config.py", "--run-dir", "a folder"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=60)
    assert out.split() == [str(process.pid), "glibc.malloc.hugetlb=1"]
    assert err.count("memory in huge pages") == 1
    assert not pathlib.Path(tmp_path / "a").exists()
