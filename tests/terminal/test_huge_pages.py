"""Huge pages: commands that compute on a CPU start again with glibc's setting, once, and nothing else does."""

import argparse
import os
import subprocess
import sys

import pytest

from jaxtune import cli
from jaxtune.terminal import huge_pages
from jaxtune.terminal.huge_pages import COMPUTING, OPTION, SWITCH, helps

OTHERS = (
    *("init", "options", "mix", "validate", "preview", "plan-memory"),
    *("recommend", "proxy", "report", "import-hf", "export-hf"),
)
"""Commands that compute nothing, or seconds at most."""
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


def test_every_command_is_one_that_computes_or_one_that_does_not():
    """A new command must be sorted into one of the two."""
    [parsers] = [action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert {*parsers.choices} == {*COMPUTING, *OTHERS} and not {*COMPUTING} & {*OTHERS}


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_do_not_start_twice(machine, command):
    assert not helps((command, "x"), {}, machine)
    assert not helps((command, "train"), {}, machine)  # a folder of that name


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


TELLING = """
import os, sys
from jaxtune import cli
see = lambda: print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], sep="|") or {code}
cli.run_command = lambda *arguments, **settings: see()
sys.exit(cli.entry())
"""
"""A command line whose commands only tell what they see."""


def told(*words: str, **environment: str) -> tuple[int, subprocess.CompletedProcess[str]]:
    """Number of the process that was started, and how it ended; skips where the kernel gives no huge pages."""
    clean = {name: value for name, value in os.environ.items() if name not in (SWITCH, "GLIBC_TUNABLES", "LD_PRELOAD")}
    if not helps(TRAIN, clean):
        pytest.skip("this machine gives no huge pages to who asks")
    process = subprocess.Popen(
        [sys.executable, "-c", TELLING.format(code=3), *words], env=clean | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    return process.pid, subprocess.CompletedProcess(words, process.returncode, out, err)


def test_a_process_that_begins_anew_keeps_its_number_its_arguments_and_its_end_and_says_so_once():
    number, done = told("train", "a config.py", "--run-dir", "ä", GLIBC_TUNABLES="glibc.malloc.check=0")
    tunables = "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert done.stdout == f"{number}|{tunables}|train|a config.py|--run-dir|ä\n"
    assert done.stderr == "memory in huge pages (--no-huge-pages leaves them out)\n"
    assert done.returncode == 3


def test_usage_is_told_without_a_word_on_memory():
    _, done = told("train")
    assert done.returncode == 2 and "memory" not in done.stderr


@pytest.mark.parametrize("words", [("report", "x"), (*TRAIN, OPTION)], ids=" ".join)
def test_a_process_that_need_not_begin_anew_does_not(words):
    number, done = told(*words)
    assert done.stdout == f"{number}|None|{'|'.join(words)}\n"
    assert not done.stderr and done.returncode == 3


def test_a_command_inside_a_command_says_nothing():
    _, done = told(*TRAIN, GLIBC_TUNABLES="glibc.malloc.hugetlb=1", **{SWITCH: "said"})
    assert "hugetlb=1" in done.stdout and not done.stderr
