"""The roll call of a job: complete, incomplete, doubled, disagreeing, and disturbed by strangers."""

import contextlib
import queue
import socket
import threading
import time

import pytest
from local_job import free_port

from jaxtune.errors import UserError
from jaxtune.parallel.rollcall import MissingProcesses, roll_call


def call(numbers: list[tuple[int, int]], *, timeout: float = 20.0, port: int | None = None) -> list:
    """What each (process, number of processes) of a job met; None where it may go on."""
    coordinator, found = f"localhost:{port or free_port()}", queue.Queue()

    def one(place: int, process: int, processes: int) -> None:
        try:
            with roll_call(
                coordinator, processes, process, timeout=timeout, lost=lambda text: found.put((place, text))
            ):
                found.put((place, None))
        except (UserError, MissingProcesses) as error:
            found.put((place, error))

    threads = [threading.Thread(target=one, args=(place, *number)) for place, number in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return [outcome for _, outcome in sorted((found.get(timeout=1) for _ in numbers), key=lambda pair: pair[0])]


def test_all_go_on_when_all_are_there_and_the_port_is_free_again():
    port = free_port()
    assert call([(2, 4), (0, 4), (3, 4), (1, 4)], port=port) == [None] * 4
    assert call([(0, 2), (1, 2)], port=port) == [None] * 2
    assert call([(0, 1)]) == [None]


@pytest.mark.parametrize("dead", [0, 2])
def test_all_are_told_at_once_when_one_dies_before_all_have_joined(dead):
    """Process 1 has joined already; the others wait inside the runtime."""
    coordinator, told, gone = f"localhost:{free_port()}", queue.Queue(), threading.Event()

    def one(process: int) -> None:
        joining = roll_call(coordinator, 3, process, timeout=20.0, lost=lambda text: told.put((process, text)))
        with contextlib.suppress(KeyError), joining:
            if process == dead:
                raise KeyError("its end closes its connections, as a kill does")
            if process != 1:
                gone.wait(20)

    threads = [threading.Thread(target=one, args=(process,)) for process in range(3)]
    for thread in threads:
        thread.start()
    heard = dict(told.get(timeout=10) for _ in range(2))
    assert heard == dict.fromkeys({0, 1, 2} - {dead}, f"process {dead} ended before all had joined")
    gone.set()
    for thread in threads:
        thread.join(timeout=20)


def test_everyone_is_told_who_did_not_come_within_the_time():
    begin = time.monotonic()
    for error in call([(0, 4), (2, 4)], timeout=1.0):
        assert isinstance(error, MissingProcesses) and "process 1, 3 of 4 did not come within 1 s" in str(error)
    assert time.monotonic() - begin < 20


def test_a_process_0_that_never_comes_is_named():
    (error,) = call([(1, 2)], timeout=0.5)
    assert isinstance(error, MissingProcesses) and "process 0 cannot be reached at localhost:" in str(error)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes of the job have the number 1"),
        ([(0, 2), (1, 3)], "process 1 counts 3 processes, process 0 counts 2"),
    ],
)
def test_all_processes_are_told_what_does_not_fit(numbers, message):
    for error in call(numbers):
        assert isinstance(error, UserError) and message in str(error)


def test_a_port_that_is_taken_is_named_at_once():
    with socket.create_server(("", 0)) as server, pytest.raises(UserError, match="is another job running there"):
        roll_call(f"localhost:{server.getsockname()[1]}", 2, 0, timeout=60.0, lost=print)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"jaxtune roll call [1]\n", b"jaxtune roll call {\n"])
def test_strangers_at_the_port_are_ignored(said):
    port = free_port()

    def disturb() -> None:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1) as connection:
                connection.sendall(said)
                return
            time.sleep(0.02)

    stranger = threading.Thread(target=disturb)
    stranger.start()
    time.sleep(0.1)
    assert call([(0, 2), (1, 2)], port=port) == [None, None]
    stranger.join()
