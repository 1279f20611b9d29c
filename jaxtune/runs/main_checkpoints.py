"""Checkpoints that process 0 of a job alone writes and reads: for jobs whose hosts share no disk.

Orbax writes from all hosts at once, to a disk that all of them mount or to `gs://`. Where checkpoints go to another
store, there is no such place: then each array is gathered to process 0, which writes it on its disk and sends a copy to
the store, and a restored array is read by process 0 and handed to all. So no other host needs a disk, any number of
hosts can go on with what any other number saved, and process 0 needs memory and disk for the whole state.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.parallel.job import answer_of_main, bytes_from_main, is_main
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.runs.retention import CheckpointConfig, open_folder

PIECE = 1 << 28
"""Bytes of an array that are on every device at once while it is gathered."""


class MainCheckpoints:
    """Checkpoints of a job that process 0 keeps for all, with the methods of `Checkpoints`; a context manager.

    Every process must make the same calls in the same order. What process 0 finds is the answer of all, and a UserError
    there is raised on all.
    """

    def __init__(
        self, directory: str | os.PathLike[str], config: CheckpointConfig, *, before: Callable[[], None] | None = None
    ):
        """`before` is called on process 0, see `Checkpoints`."""
        self.directory = open_folder(os.fspath(directory))
        self._opened: list[Checkpoints] = []
        self._ask(lambda: self._opened.append(Checkpoints(directory, config, alone=True, before=before)))

    def __enter__(self) -> "MainCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # else waiting for the others would not end
            self.close()

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any] | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """See `Checkpoints.save`; returns once process 0 has the whole state in its memory."""
        whole = jax.tree.map(_gathered, state)
        self._ask(lambda: self._main.save(step, whole, extra, metrics))

    def wait(self) -> None:
        """Block until the running save is committed; raise its error if it failed."""
        self._ask(lambda: self._main.wait())

    def close(self) -> None:
        """Wait for the running save and the copies, and release the threads."""
        self._ask(lambda: self._main.close())

    def fetch(self) -> None:
        """Bring the copies from the bucket to process 0, if it has no checkpoint."""
        self._ask(lambda: self._main.fetch())

    def steps(self) -> list[int]:
        """Committed steps, ascending, once a running save is done."""
        return self._ask(lambda: self._main.steps())

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the lowest finite watched loss, or None if no step has one."""
        return self._ask(lambda: self._main.best())

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that were saved with `step`; empty if there were none."""
        return self._ask(lambda: self._main.metrics(step))

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rank an earlier checkpoint by metrics that became known after it was saved."""
        self._ask(lambda: self._main.set_metrics(step, metrics))

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with `step`, after the checkpoint has been checked against its digests."""
        return self._ask(lambda: self._main.extra(step))

    def set_aside_after(self, step: int) -> list[int]:
        """Move the checkpoints newer than `step` into `set-aside/`; returns them."""
        return self._ask(lambda: self._main.set_aside_after(step))

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, with the shapes, dtypes and shardings of `abstract_state`, on the devices of all.

        Errors as in `Checkpoints.restore`.
        """
        held: list[Any] = []
        self._ask(lambda: held.append(self._main.restore(step, abstract_state)))
        return jax.tree.map(_handed_out, held[0] if held else abstract_state, abstract_state)

    @property
    def _main(self) -> Checkpoints:
        return self._opened[0]

    def _ask(self, question: Callable[[], Any]) -> Any:
        return answer_of_main(question)


def _gathered(leaf: jax.Array) -> Any:
    """A whole array in the memory of process 0; on the others only its shape."""
    whole = np.empty(leaf.shape, leaf.dtype) if is_main() else None
    for rows in _pieces(leaf):
        piece = np.asarray(multihost_utils.process_allgather(leaf[rows] if leaf.ndim else leaf, tiled=True))
        if whole is not None:
            whole[rows] = piece
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if whole is None else whole


def _pieces(leaf: jax.Array) -> list[Any]:
    """Parts of an array along its first axis, none above `PIECE` bytes unless a single row is."""
    if leaf.ndim == 0 or leaf.nbytes <= PIECE:
        return [...]
    rows = max(1, PIECE * leaf.shape[0] // leaf.nbytes)
    return [slice(start, start + rows) for start in range(0, leaf.shape[0], rows)]


def _handed_out(whole: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Process 0's array on the devices of all, each of which keeps its part."""
    mine = np.ascontiguousarray(whole) if is_main() else None
    data = bytes_from_main(b"" if mine is None else mine.tobytes())
    array = np.frombuffer(data, wanted.dtype).reshape(wanted.shape)
    return jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda index: array[index])
