"""Settings of every test: eight CPU devices, no silent rank promotion, one compilation cache for all workers."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import jax
import long_tests
import pytest
import runtime_types

runtime_types.install()

import quick_xla  # noqa: E402 - what it imports is checked from then on

from jaxtune.storage import userfiles  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent

# XLA's dearest passes make small programs no faster and take five sixths of the time to compile them. JAX reads the
# variable when it first computes, and processes that tests start inherit it. A program so compiled has other last bits
# than the same one over several runs: tests marked `bits` and `slow` run apart, with the variable set to nothing.
os.environ.setdefault("XLA_FLAGS", quick_xla.FLAGS)
os.environ.setdefault("JAXTUNE_HUGE_PAGES", "0")  # commands of tests are short: starting twice costs more than it saves

# A jitted train step takes CPU-seconds to compile, however small; with the cache a second run is quick.
# A cache with a size is used under a lock; without one JAX writes in place, and another worker may read half a program.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax-suite"))
jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# Nothing asserts wall-clock time: hypothesis would fail an example that took over 0.2 s on a busy machine.
# The same examples on every run, so that a change and not chance decides; `JAXTUNE_EXPLORE=1` draws others.
hypothesis.settings.register_profile("jaxtune", deadline=None, derandomize=not os.environ.get("JAXTUNE_EXPLORE"))
hypothesis.settings.load_profile("jaxtune")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long-from", type=float, metavar="SECONDS", help="list tests that take as long: tests/long.txt")


def pytest_configure(config: pytest.Config) -> None:
    if (least := config.getoption("--long-from")) is not None:
        config.pluginmanager.register(long_tests.Durations(least))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a worker whole files, so that a file's fixtures are made once; files of one named group go to one worker."""
    long_tests.mark(items, long_tests.listed())
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ROOT).as_posix()))


@pytest.fixture(scope="module", autouse=True)
def config_folders() -> Iterator[None]:
    """Files of tests know nothing of the configs that others ran: a process remembers its configs' folders."""
    yield
    sys.path[:] = [entry for entry in sys.path if entry not in map(str, userfiles._folders)]
    userfiles._folders.clear()
    userfiles.started_in(None)


def changes(root: pathlib.Path) -> frozenset[str] | None:
    """Lines of `git status` (ignored files aside); None where there is no repository."""
    command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=all"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return frozenset(done.stdout.splitlines()) if done.returncode == 0 else None


TRACES = pytest.StashKey[list[str]]()
BEFORE = pytest.StashKey[frozenset[str] | None]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.stash[BEFORE] = changes(ROOT)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A suite that leaves files behind fails, whichever test left them."""
    before = session.config.stash.get(BEFORE, None)
    after = changes(ROOT) if before is not None else None
    if before is not None and after is not None and after - before:
        session.config.stash[TRACES] = sorted(after - before)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TRACES, []):
        terminalreporter.write_line(f"left behind in the repository by the tests: {line}", red=True)
