"""Worker processes that end with the process that started them, however that one ends."""

import functools
import multiprocessing
import multiprocessing.connection
import os
import threading


@functools.cache
def end_with_parent() -> None:
    """In a worker process: from now on, leave when the process that started it dies.

    Nobody else would end it: a killed process takes no leave, and queues of work have no end of their own.
    """
    threading.Thread(target=_wait_and_leave, daemon=True).start()


def _wait_and_leave() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by another process"
    multiprocessing.connection.wait([parent.sentinel])  # the end of a pipe that only the parent holds
    os._exit(1)
