"""Jobs of several processes: how they find each other, how they stop together, what happens when one of them dies.

JAX's own runtime does the work. A job is started by what users have: arguments or `JAXTUNE_*` variables (ssh,
Kubernetes), Slurm, or the metadata of Cloud TPU machines. Exit codes: 75 (`EXIT_STOPPED`) after a stop signal with
everything saved; 76 (`EXIT_HOST_LOST`) when another process died, or 134 where this one hung in a collective operation
and JAX's runtime had to abort it. Launchers restart the job with `--resume` on all three.
"""

import contextlib
import dataclasses
import enum
import glob
import importlib.util
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.errors import UserError, first_line, say
from jaxtune.parallel.rollcall import MissingProcesses, roll_call

EXIT_STOPPED = 75
EXIT_HOST_LOST = 76

VARIABLES = ("JAXTUNE_COORDINATOR", "JAXTUNE_PROCESSES", "JAXTUNE_PROCESS")

_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|heartbeat|coordination|barrier|unavailable", re.IGNORECASE
)


class Source(enum.Enum):
    """Source from which a process learned its place in the job."""

    ARGUMENTS = "arguments"
    VARIABLES = "JAXTUNE_* variables"
    SLURM = "Slurm"
    TPU = "TPU metadata"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A process's place in a job. For TPU metadata JAX finds the numbers itself, and they are None here."""

    source: Source
    coordinator: str | None = None
    """`host:port` of process 0."""
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None
    """Devices of this host that belong to this process; None: all."""


def detect(
    environ: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Place | None:
    """This process's place by arguments, `JAXTUNE_*` variables, TPU metadata or Slurm, in that order; None: alone.

    In a Kubernetes indexed Job, `JAXTUNE_PROCESS` may be left out: `JOB_COMPLETION_INDEX` is the process then.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if any(value is not None for value in given.values()):
        return _explicit(Source.ARGUMENTS, given)
    index = environ.get("JAXTUNE_PROCESS", environ.get("JOB_COMPLETION_INDEX"))
    if any(name in environ for name in VARIABLES):
        values = {name: environ.get(name) for name in VARIABLES[:2]} | {"JAXTUNE_PROCESS": index}
        return _explicit(Source.VARIABLES, values)
    return _tpu(environ) or _slurm(environ)


def start(place: Place | None, *, heartbeat_seconds: int = 30, timeout_seconds: int = 300) -> None:
    """Join the job; must come before anything touches a device. Without a place nothing happens.

    All processes must be there within `timeout_seconds`; otherwise each says in one line who is missing and leaves with
    `EXIT_HOST_LOST`. So does each when one of them dies before all have joined. Raises UserError for a port that is
    taken, for numbers that are given twice, and for times that are not between a second and a day.

    A process that sends no heartbeat for `heartbeat_seconds` is dead, and ends the job on every host: at once where the
    collective operations notice, else by JAX's runtime, which prints that another task died.

    A process that has joined before, for an earlier command, stays in its job.
    """
    for name, seconds in (("--heartbeat-seconds", heartbeat_seconds), ("--start-seconds", timeout_seconds)):
        if not 1 <= seconds <= 86400:
            raise UserError(f"{name} is {seconds}; it must be a whole number in [1, 86400]")
    if place is None or jax.distributed.is_initialized():
        return
    if place.source is Source.TPU:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds, initialization_timeout=timeout_seconds)
    else:
        assert place.coordinator is not None and place.processes is not None and place.process is not None
        me = f"process {place.process} of {place.processes}"

        def lost(text: str) -> None:
            say(f"{me}: {text}; start the job again", file=sys.stderr, flush=True)
            os._exit(EXIT_HOST_LOST)  # the main thread waits inside JAX's runtime

        try:
            joining = roll_call(place.coordinator, place.processes, place.process, timeout=timeout_seconds, lost=lost)
        except MissingProcesses as error:
            say(f"{me}: {error}; start the job again", file=sys.stderr)
            raise SystemExit(EXIT_HOST_LOST) from error
        with joining:
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.process,
                None if place.local_devices is None else list(place.local_devices),
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=heartbeat_seconds,
                initialization_timeout=timeout_seconds,
            )
    say(
        f"process {jax.process_index()} of {jax.process_count()}, by {place.source.value}; "
        f"a process without a heartbeat for {heartbeat_seconds} s ends the job",
        file=sys.stderr,
    )


def is_main() -> bool:
    """True on the one process that writes logs and reports."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """True in a process that is no part of a job of several."""
    return jax.process_count() == 1


def from_main(value: float | bool) -> float:
    """Process 0's number, on every process: one decision for the whole job."""
    if jax.process_count() == 1:
        return float(value)
    halves = np.array([value], np.float64).view(np.uint32)  # devices may not hold 64-bit numbers
    return float(np.asarray(multihost_utils.broadcast_one_to_all(halves)).view(np.float64)[0])


_WORDS = 1 << 20
"""Most 32-bit words that one broadcast carries."""


def bytes_from_main(data: bytes) -> bytes:
    """Process 0's bytes, on every process; bit for bit, in pieces of 4 MiB. `data` counts on process 0 alone."""
    if jax.process_count() == 1:
        return data
    size = int(from_main(len(data)))
    words = np.frombuffer((data if is_main() else b"").ljust(-(-size // 4) * 4, b"\0"), np.uint32)
    # Few lengths, so that few programs are compiled; whole numbers, as sums of floats do not keep every bit.
    length = min(_WORDS, max(1024, 1 << (len(words) - 1).bit_length())) if size else 0
    pieces = [words[start : start + length] for start in range(0, len(words), length)] if size else []
    padded = [np.pad(piece, (0, length - len(piece))) for piece in pieces]
    received = [np.asarray(multihost_utils.broadcast_one_to_all(piece)).astype(np.uint32) for piece in padded]
    return b"".join(piece.tobytes() for piece in received)[:size]


def answer_of_main(ask: Callable[[], Any], *, kinds: Sequence[type[UserError]] = ()) -> Any:
    """Answer of process 0 to a question (plain JSON), on every process; the other hosts' disks do not count.

    A UserError that `ask` raises there is raised on every process, with the same message; one of the `kinds` is of that
    kind on all of them. All processes must call it.
    """
    if jax.process_count() == 1:
        return ask()
    refused: UserError | None = None
    reply: dict[str, Any] = {}
    if is_main():
        try:
            reply = {"answer": ask()}
        except UserError as error:
            kind = next((index for index, kind in enumerate(kinds) if type(error) is kind), None)
            refused, reply = error, {"refused": str(error), "kind": kind}
    reply = json.loads(bytes_from_main(json.dumps(reply).encode()))
    if refused is not None:
        raise refused
    if "refused" in reply:
        raise (UserError if reply["kind"] is None else kinds[reply["kind"]])(reply["refused"])
    return reply["answer"]


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class StopSignal:
    """A request to save and stop: SIGTERM (preemption, `scancel`, `kubectl delete`) or Ctrl-C.

    A context manager for the training loop. The first signal is answered at once on stderr, a second Ctrl-C ends the
    process at once: both also while the main thread waits for the devices, where Python runs no signal handler. With
    several processes a signal to any of them stops all of them after the same step, through JAX's preemption service.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before = {}
        self._ends: tuple[int, ...] = ()
        self._asked: float | None = None
        self._step_seconds = math.nan

    def __enter__(self) -> "StopSignal":
        # The preemption service of a job already listens for SIGTERM, in C++; a Python handler would replace it.
        numbers = (signal.SIGINT,) if _in_job() else (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._ends = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._answer, args=(read, frozenset(numbers)), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        write, before = self._ends
        signal.set_wakeup_fd(before)
        os.close(write)  # the thread that answers reads the end and goes

    def after(self, step: int) -> bool:
        """True if the job stops after this step. Every process must ask after every step."""
        now = time.monotonic()
        if self._asked is not None:
            self._step_seconds = now - self._asked
        self._asked = now
        if not _in_job():
            return self.received is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.received = self.received or signal.SIGTERM
            return True
        return False

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells have it; else `EXIT_STOPPED`, on which launchers restart."""
        return 128 + signal.SIGINT if self.received is signal.SIGINT else EXIT_STOPPED

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if _in_job():
            os.kill(os.getpid(), signal.SIGTERM)  # tells the preemption service, and so every process

    def _answer(self, read: int, numbers: frozenset[int]) -> None:
        """Answer each signal, a byte in the pipe, as soon as it is there. Runs in a thread of its own."""
        answered = False
        with open(read, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):
                if byte[0] not in numbers:
                    continue
                if answered and byte[0] == signal.SIGINT:
                    self._say("leaving at once; the last checkpoint is what --resume continues from")
                    os._exit(128 + signal.SIGINT)
                if not answered:
                    long = f" (the last one took {self._step_seconds:.0f} s)" if self._step_seconds >= 1 else ""
                    self._say(
                        f"{signal.Signals(byte[0]).name}: stopping after the step that is being computed{long}, then "
                        "saving a checkpoint. Ctrl-C again leaves at once, without saving"
                    )
                answered = True

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed stderr is no reason not to stop
            say(f"\n{text}", file=sys.stderr, flush=True)


class Guard:
    """Context manager of a job: when this process fails or another died, say so and leave at once.

    Leaving normally would wait for the others, which wait for this one. A process alone keeps its exceptions.
    `foreseen` gives exit code and message for errors that are no bugs; of bugs the traceback is printed.
    """

    def __init__(self, foreseen: Callable[[BaseException], tuple[int, str] | None] = lambda _: None):
        self._foreseen = foreseen

    def __enter__(self) -> "Guard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit) or not _in_job():
            return
        told = (None if isinstance(error, UserError) else self._foreseen(error)) or _verdict(error)
        if told is None:
            traceback.print_exception(error)
        code, message = told or (1, f"{type(error).__name__}; the other processes of this job stop as well.")
        say(f"process {jax.process_index()} of {jax.process_count()}: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def _verdict(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message for an exception that ends a job, where it is no fault of this process's own."""
    if isinstance(error, UserError):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted; the other processes of this job stop as well."
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        return EXIT_HOST_LOST, (
            "another process of this job died or cannot be reached, so this one stops too (see the log of the process "
            f"that stopped first). Start the job again with --resume; exit code {EXIT_HOST_LOST}. "
            f"[{type(error).__name__}: {first_line(error)[:200]}]"
        )
    return None


def _in_job() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


MOST_PORT, MOST_PROCESSES = 65_535, 100_000


def _explicit(source: Source, given: Mapping[str, str | int | None]) -> Place:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(given)} go together; missing: {', '.join(missing)}")
    coordinator, processes, process = given.values()
    try:
        count, index = int(str(processes)), int(str(process))
    except ValueError:
        raise UserError(f"numbers of processes must be integers, got {dict(given)}") from None
    address = re.fullmatch(r"[\w.:%\[\]-]+:(\d{1,9})", str(coordinator))
    if address is None or not 1 <= int(address[1]) <= MOST_PORT:
        got = repr(str(coordinator)[:200])
        raise UserError(f"the coordinator must be host:port of process 0, the port in [1, {MOST_PORT}], got {got}")
    if not 1 <= count <= MOST_PROCESSES:
        raise UserError(f"a job has between 1 and {MOST_PROCESSES} processes, got {str(processes)[:50]}")
    if not 0 <= index < count:
        raise UserError(f"this is process {index} of {count}; processes are numbered from 0 to {count - 1}")
    return Place(source=source, coordinator=str(coordinator), processes=count, process=index)


def _tpu(environ: Mapping[str, str]) -> Place | None:
    """On one of several hosts with TPUs: JAX asks the metadata server (Compute Engine) or the environment (GKE).

    GKE sets TPU_SKIP_MDS_QUERY and names the hosts. A single host that says so needs no job: a GKE pod, Colab, Kaggle.
    """
    if not _on_tpu():
        return None
    slices = environ.get("MEGASCALE_NUM_SLICES", "")
    if slices.isdigit() and int(slices) > 1:
        return Place(source=Source.TPU)
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        if name in environ:
            return Place(source=Source.TPU) if len(environ[name].split(",")) > 1 else None
    hosted = any(name.startswith(("COLAB_", "KAGGLE_")) for name in environ)
    return None if hosted or "TPU_SKIP_MDS_QUERY" in environ else Place(source=Source.TPU)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """Inside `srun` with several tasks. Several tasks on a node take one device each, a single task takes them all."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in environ for name in needed):
        return None
    job, nodes, tasks, index, local = (environ[name] for name in needed)
    if int(tasks) == 1:
        return None
    per_node = [int(n) for n in re.findall(r"(?:^|,)(\d+)", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))]
    port = 61440 + int(job) % 4096
    return Place(
        source=Source.SLURM,
        coordinator=f"{first_host(nodes)}:{port}",
        processes=int(tasks),
        process=int(index),
        local_devices=(int(local),) if max(per_node) > 1 else None,
    )


def first_host(nodes: str) -> str:
    """The first of Slurm's compact host names: `gpu[003-010,12],login1` -> `gpu003`."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodes)
    assert found is not None, nodes
    return "".join(part or "" for part in found.groups())


def _on_tpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"))
