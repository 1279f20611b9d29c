"""Texts of all processes of a job, gathered on each of them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

BYTES = 4096
"""Most bytes of a process's lines that are gathered."""


def lines_of_all(lines: Sequence[str]) -> list[str]:
    """The lines of all processes together, each once, on every process; of each process the first 4 KiB.

    All processes must call it, so that none goes on before all are here.
    """
    if jax.process_count() == 1:
        return list(dict.fromkeys(lines))
    text = "\n".join(lines).encode()[:BYTES]
    padded = np.frombuffer(text.ljust(BYTES, b"\0"), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, BYTES)
    texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in gathered]
    return list(dict.fromkeys(line for text in texts for line in text.split("\n") if line))
