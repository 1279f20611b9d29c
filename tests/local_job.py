"""A job of several processes on this machine: started, watched, collected."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import jax
import quick_xla


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def spawn(
    command: Sequence[object],
    processes: int,
    hosts: Sequence[pathlib.Path] | None = None,
    *,
    devices: int = 1,
    folders: Sequence[str] = (),
) -> list[subprocess.Popen]:
    """Start a Python command as every process of a job, with the package and the test helpers on its path.

    With `hosts` each process has a folder of its own as working folder and home, as on machines without a shared disk.
    Each has so many `devices`, and the tests in `folders` on its path as well.
    """
    tests = pathlib.Path(__file__).parent
    shared = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAXTUNE_COORDINATOR": f"localhost:{free_port()}",
        "JAXTUNE_PROCESSES": str(processes),
        "PYTHONPATH": os.pathsep.join(map(str, [tests.parent, tests, *(tests / name for name in folders)])),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.values["jax_compilation_cache_max_size"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # These programs compile in a sixth of the time.
        "XLA_FLAGS": quick_xla.FLAGS,
    }
    own = [{"HOME": str(host), "TMPDIR": str(host)} if hosts else {} for host in hosts or range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, "-u", *map(str, command)],
            env={**os.environ, **shared, **own[i], "JAXTUNE_PROCESS": str(i)},
            cwd=hosts[i] if hosts else None, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(children: Sequence[subprocess.Popen]) -> list[str]:
    """What the processes printed, when all have ended."""
    try:
        return [child.communicate(timeout=600)[0] for child in children]
    finally:
        for child in children:
            child.kill()


def wait_for(child: subprocess.Popen, line: str) -> None:
    """Return when the process has printed this."""
    assert child.stdout is not None
    seen = ""
    while line not in seen:
        read = child.stdout.readline()
        assert read, f"the process ended before {line!r}:\n{seen}"
        seen += read
