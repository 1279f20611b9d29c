"""The input pipeline: a plan's rows, cut from the tokenised data, as batches of NumPy arrays.

A batch is a pure function of (plan, step): neither workers, threads, hosts nor where the run started change it.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from jaxtune.batch import Batch, Example, assemble
from jaxtune.data.workers import end_with_parent
from jaxtune.plan.placement import Placement
from jaxtune.plan.planning import Plan


@runtime_checkable
class Examples(Protocol):
    """A task's tokenised examples, by number and wording. It pickles, for worker processes."""

    def example(self, number: int, template: int = 0) -> Example: ...

    def check_unchanged(self) -> None:
        """Raises UserError when the data changed since they were opened."""
        ...


class StepBatches:
    """Random access to the host's batch of every step: `len` is the number of steps, `[step]` a `Batch`.

    With `micro_rows` the arrays are [micro_batches, rows, seq], else [rows, seq]. `local_rows` are the rows that this
    host holds of every micro-batch (`sharding.local_rows`), all by default. Rows beyond the plan's last are padding.
    """

    def __init__(
        self,
        plan: Plan,
        stores: Mapping[str, Examples],
        *,
        micro_rows: int | None = None,
        local_rows: Int[np.ndarray, " local"] | None = None,
    ):
        self.plan = plan
        self.stores = [stores[task] for task in plan.tasks]
        self.micro_rows = micro_rows
        rows = micro_rows or plan.rows_per_step
        if plan.rows_per_step % rows:
            raise ValueError(f"micro-batches of {rows} rows do not divide steps of {plan.rows_per_step}")
        local = np.arange(rows) if local_rows is None else local_rows
        starts = np.arange(0, plan.rows_per_step, rows)
        self._rows = (starts[:, None] + local).reshape(-1)
        self._shape = (len(starts), len(local)) if micro_rows else (len(local),)

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, index: int) -> Batch:
        first = int(index) * self.plan.rows_per_step
        rows = [[self._example(p) for p in self.plan.row(first + row)] for row in self._rows.tolist()]
        flat = assemble(rows, self.plan.seq_len)
        return jax.tree.map(lambda a: a.reshape(*self._shape, a.shape[-1]), flat)

    def _example(self, placement: Placement) -> tuple[Example, int]:
        example = self.stores[placement.task_id].example(placement.example, placement.template)
        if len(example.tokens) != placement.length:
            raise ValueError(f"{placement} is planned, but the example has {len(example.tokens)} tokens")
        return example, placement.task_id

    def check_unchanged(self) -> None:
        """Raises UserError when the tokenised data changed since they were opened."""
        for store in self.stores:
            store.check_unchanged()


class BatchIterator(Iterator[Batch]):
    """Batches of consecutive steps, made ahead by Grain; an error in a worker is raised here. Close it when done."""

    def __init__(self, iterator: grain.DatasetIterator[Any], *, copy: bool):
        self._iterator, self._copy = iterator, copy

    def __next__(self) -> Batch:
        fields = next(self._iterator)
        return Batch(**{name: np.array(array) for name, array in fields.items()} if self._copy else fields)

    def close(self) -> None:
        """Stop the workers."""
        self._iterator.close()


def batches(
    source: StepBatches,
    *,
    start: int = 0,
    stop: int | None = None,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 2,
) -> BatchIterator:
    """Batches of the steps from `start` to `stop`, `prefetch` of them (per worker process, if any) made ahead."""
    source.check_unchanged()
    steps = grain.MapDataset.range(start, len(source) if stop is None else stop)
    ahead = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
    data = steps.map(functools.partial(_fields, source, in_worker=workers > 0)).to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes copy absl's flags, which must then be parsed
        data = data.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    return BatchIterator(iter(data), copy=workers > 0)  # out of memory shared with the worker, which is reused


def _fields(source: StepBatches, step: int, *, in_worker: bool) -> dict[str, np.ndarray]:
    """A batch as Grain moves it: Grain maps trees of arrays to trees of other things, which a `Batch` does not hold."""
    if in_worker:
        end_with_parent()
    return {name: np.asarray(array) for name, array in vars(source[step]).items()}
