"""Roll call of a job before its processes join: who is missing, who is there twice, whether the port is free.

JAX's runtime waits for all processes too, but ends a job that cannot come together by a C++ abort that names nobody.
Process 0 listens at the coordinator's port for the others, each of which says its number; when all are there (or it is
clear that they will not be) everyone is told, the port is freed, and JAX's runtime takes it over. The connections stay
open until all have joined there, so that a process that dies on the way is noticed by all at once.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtune.errors import UserError

GREETING = b"jaxtune roll call "
"""First bytes of a process that calls; anything else that connects to the port is ignored."""
LINE = 4096
"""Most bytes of a line on either side."""
COMPLETE, JOINED = ["complete", ""], ["joined", ""]
"""Verdict on a job whose processes are all there; word of a process that JAX's runtime has taken in."""


class MissingProcesses(Exception):
    """The job did not come together in time; starting it again may help."""


class Caller(NamedTuple):
    """A process that called, and the connection on which it waits for the verdict."""

    process: int
    connection: socket.socket
    address: str


class Joining:
    """Context in which the processes of a complete job join JAX's runtime: when one of them dies there, all are told.

    `lost` is called with the words for it, in a thread, as the main thread waits inside the runtime.
    """

    def __init__(self, others: Mapping[int, socket.socket], lost: Callable[[str], None]):
        self._others, self._lost = dict(others), lost
        self._said, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="roll call", daemon=True)

    def __enter__(self) -> "Joining":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = kind is not None
        for connection in self._others.values():
            if self._failed:
                with contextlib.suppress(OSError):  # the other one has left already
                    connection.shutdown(socket.SHUT_RDWR)  # tells the others, as the end of this process would
            else:
                _send(connection, JOINED)
        self._said.set()

    def _watch(self) -> None:
        try:
            if self._all_joined():
                self._said.wait()
                for process, connection in self._others.items():
                    if process:  # who closes first keeps the port busy for a while: let it be the callers
                        _receive(connection)
        finally:
            self._said.wait()
            for connection in self._others.values():
                connection.close()

    def _all_joined(self) -> bool:
        """Wait for the words of all others; tell where one leaves without them."""
        with selectors.DefaultSelector() as waiting:
            for process, connection in self._others.items():
                connection.settimeout(5)
                waiting.register(connection, selectors.EVENT_READ, process)
            while waiting.get_map():
                for key, _ in waiting.select():
                    said = _receive(self._others[key.data], greeting=b"")
                    waiting.unregister(key.fileobj)
                    if said != JOINED:
                        self._tell(said, key.data)
                        return False
        return True

    def _tell(self, said: object, process: int) -> None:
        if self._failed:
            return
        text = said[1] if isinstance(said, list) and len(said) == 2 else None
        text = text if isinstance(text, str) else f"process {process} ended before all had joined"
        for connection in self._others.values():
            _send(connection, ["lost", text])
        self._lost(text)


def roll_call(
    coordinator: str, processes: int, process: int, *, timeout: float, lost: Callable[[str], None]
) -> Joining:
    """Return on every process when all `processes` of the job have called at `coordinator` (`host:port`).

    The context returned is to be left when this process has joined; `lost` is called where another one dies before.

    Raises UserError on all of them if two have one number, if one counts another number of processes, or if the port is
    taken on process 0; and MissingProcesses if somebody has not come after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        return Joining(_preside(coordinator, processes, deadline, timeout), lost)
    return Joining({0: _call(coordinator, processes, process, deadline, timeout)}, lost)


def _preside(coordinator: str, processes: int, deadline: float, timeout: float) -> dict[int, socket.socket]:
    callers: list[Caller] = []
    complete = False
    try:
        with _listen(coordinator) as server:
            verdict = _collect(server, callers, processes, deadline)
        if verdict is None:
            missing = sorted(set(range(1, processes)) - {caller.process for caller in callers})
            verdict = ["missing", f"process {_listed(missing)} of {processes} did not come within {timeout:.0f} s"]
        for caller in callers:
            _send(caller.connection, verdict)
        complete = verdict == COMPLETE
        for caller in callers if not complete else ():  # the callers close first, as above
            caller.connection.settimeout(5)
            _receive(caller.connection)
    finally:
        for caller in callers if not complete else ():
            caller.connection.close()
    _judge(verdict)
    return {caller.process: caller.connection for caller in callers}


def _collect(server: socket.socket, callers: list[Caller], processes: int, deadline: float) -> list[str] | None:
    """The verdict, or None when the time is over; `callers` grows."""
    while len(callers) < processes - 1:
        server.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            connection, address = server.accept()
        except TimeoutError:
            return None
        connection.settimeout(5)
        said = _receive(connection)
        if not isinstance(said, list) or len(said) != 2 or not all(type(number) is int for number in said):
            connection.close()
            continue
        known = {caller.process: caller.address for caller in callers}
        callers.append(Caller(said[0], connection, address[0]))
        if said[1] != processes:
            return ["error", f"process {said[0]} counts {said[1]} processes, process 0 counts {processes}"]
        if said[0] in known or not 1 <= said[0] < processes:
            where = f"{known.get(said[0], 'process 0 itself')} and {address[0]}"
            return ["error", f"two processes of the job have the number {said[0]} (on {where}); give each its own"]
    return COMPLETE


def _call(coordinator: str, processes: int, process: int, deadline: float, timeout: float) -> socket.socket:
    host, port = _parts(coordinator)
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise MissingProcesses(
                    f"process 0 cannot be reached at {coordinator} after {timeout:.0f} s ({error.strerror or error})"
                ) from error
            time.sleep(0.2)
    try:
        connection.sendall(GREETING + json.dumps([process, processes]).encode() + b"\n")
        connection.settimeout(max(1.0, deadline - time.monotonic() + 10))
        verdict = _receive(connection, greeting=b"")
        if not isinstance(verdict, list) or len(verdict) != 2:
            raise MissingProcesses(f"process 0 at {coordinator} ended during the roll call")
        _judge(verdict)
    except BaseException:
        connection.close()
        raise
    return connection


def _judge(verdict: list[str]) -> None:
    kind, text = verdict
    if kind == "missing":
        raise MissingProcesses(text)
    if kind == "error":
        raise UserError(text)


def _listen(coordinator: str) -> socket.socket:
    port = _parts(coordinator)[1]
    if not 0 < port < 65536:
        raise UserError(f"the coordinator's port is {port}; it must be in [1, 65535]")
    try:
        return socket.create_server(("", port), backlog=512)
    except OSError as error:
        raise UserError(
            f"port {port} of the coordinator {coordinator} cannot be used on process 0 ({error.strerror}); is another "
            "job running there? Choose another port"
        ) from error


def _parts(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, verdict: list[str]) -> None:
    try:
        connection.sendall(json.dumps(verdict).encode() + b"\n")
    except OSError:
        return  # the caller has died; it needs no verdict, and the next step finds it missing


def _receive(connection: socket.socket, greeting: bytes = GREETING) -> object:
    """The JSON value of one line after the greeting; None if the other side says anything else or leaves."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < LINE:
            if not (more := connection.recv(1)):  # the next line may be there already, and is another call's
                return None
            line += more
    except OSError:
        return None
    if not line.startswith(greeting):
        return None
    try:
        return json.loads(line[len(greeting) :])
    except ValueError:
        return None


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
