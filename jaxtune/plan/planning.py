"""Plans: the place of every example in the rows and steps of a run, accounted for example by example.

A plan is computed from the tokenised lengths once, and holds only sums and the number of rows in each window; any row
is found by computing its own window again, so every step costs the same to reach.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import Allocation
from jaxtune.mixture.settings import Selection
from jaxtune.plan.ledger import COLUMNS, Ledger
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.order import MixedOrder, Order, SequentialOrder, keyed, permute, stream_key
from jaxtune.plan.packing import PackPolicy, RowLayout, best_fit
from jaxtune.plan.placement import Placement, Window

_CHUNK = 16
"""Windows handled at a time while planning."""
_SNAPSHOT = 4
"""Chunks between two stored ledgers."""
_VERSION = 1
"""Raise it when the same inputs give another plan."""


class Plan:
    """The rows of a run, in order. `tasks[i]` is the task with id i; step n holds the rows [n * G, (n + 1) * G)."""

    def __init__(
        self,
        order: Order,
        table: LengthTable,
        layout: RowLayout,
        *,
        seed: int | None,
        header: Mapping[str, Any],
        allocation: Allocation | None = None,
        earlier: Sequence["Plan"] = (),
        progress: Callable[[int, int], None] | None = None,
    ):
        """`earlier`: the shorter plans that this one begins with; their steps are its own."""
        table.check(layout.seq_len)
        self.tasks, self.layout, self.allocation = table.names, layout, allocation
        self._order, self._lengths, self.earlier = order, table, {plan.hash: plan.num_steps for plan in earlier}
        self._edges = _edges([*(plan.num_examples for plan in earlier), order.total], layout.window)
        self._breaks = np.searchsorted(self._edges, [plan.num_examples for plan in earlier])
        self._row_key = None if seed is None else stream_key(seed, "rows", "")
        facts = {
            "version": _VERSION,
            "seed": seed,
            **{name: getattr(value, "value", value) for name, value in dataclasses.asdict(layout).items()},
            "tasks": list(self.tasks),
            "lengths": table.digests(),
            **header,
        }
        self.hash = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._recent: OrderedDict[int, Window] = OrderedDict()
        self._lock = threading.Lock()
        self._survey(progress)

    # What there is

    @property
    def seq_len(self) -> int:
        """Tokens a row holds."""
        return self.layout.seq_len

    @property
    def rows_per_step(self) -> int:
        """Rows of one step."""
        return self.layout.rows_per_step

    @property
    def packing(self) -> PackPolicy:
        """Policy by which examples share rows."""
        return self.layout.packing

    @property
    def num_examples(self) -> int:
        """Examples placed, repeats included."""
        return self._order.total

    @property
    def num_rows(self) -> int:
        """Rows that hold examples."""
        return int(self._first_rows[-1])

    @property
    def num_steps(self) -> int:
        """Steps; the rows of the last one that hold no example are padding."""
        return -(-self.num_rows // self.rows_per_step)

    @property
    def fill(self) -> float:
        """Tokens over slots of the rows that hold examples."""
        return int(self._row_tokens.sum(dtype=np.int64)) / (self.num_rows * self.seq_len)

    def row(self, number: int) -> list[Placement]:
        """The examples of one row, in their order; a row beyond the last is empty.

        Raises IndexError for a row that no step has.
        """
        return self._rows(number, number + 1)[0]

    def rows(self, step: int) -> list[list[Placement]]:
        """The rows of one step."""
        return self._rows(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def _rows(self, start: int, stop: int) -> list[list[Placement]]:
        if not 0 <= start < stop <= self.num_steps * self.rows_per_step:
            count = f"the {self.num_steps} steps of {self.rows_per_step} rows"
            raise IndexError(f"row {start if start < 0 else stop - 1} is in none of {count}")
        last = min(stop, self.num_rows)
        if start >= last:
            return [[] for _ in range(start, stop)]
        out: list[list[Placement]] = []
        first_window, last_window = (np.searchsorted(self._first_rows, [start, last - 1], side="right") - 1).tolist()
        for number, window in enumerate(self._recall(first_window, last_window + 1), start=first_window):
            before, after = (int(n) for n in self._first_rows[number : number + 2])
            rows = np.arange(max(start, before), min(last, after) + 1) - before
            ends = np.searchsorted(window.row, rows)
            found = self._placements(window, slice(int(ends[0]), int(ends[-1])))
            out += [found[i:j] for i, j in itertools.pairwise((ends - ends[0]).tolist())]
        return out + [[] for _ in range(last, stop)]

    def window(self, number: int) -> Window:
        """One window, computed from nothing but the plan's inputs."""
        return self._recall(number, number + 1)[0]

    def _recall(self, start: int, stop: int) -> list[Window]:
        """Consecutive windows; those that are not at hand are computed together."""
        with self._lock:
            missing = [number for number in range(start, stop) if number not in self._recent]
            if missing:
                first, last = missing[0], missing[-1] + 1
                self._recent |= zip(range(first, last), self._windows(first, last), strict=True)
            for number in range(start, stop):
                self._recent.move_to_end(number)
            windows = [self._recent[number] for number in range(start, stop)]
            while len(self._recent) > 8:
                self._recent.popitem(last=False)
            return windows

    def ledger(self, upto_step: int | None = None) -> Ledger:
        """Ledger of the steps before `upto_step` (all steps by default): examples and tokens drawn."""
        if upto_step is None or upto_step >= self.num_steps:
            return self._ledgers[-1]
        last = upto_step * self.rows_per_step
        w = int(np.searchsorted(self._first_rows, last, side="right")) - 1
        snapshot = w // (_CHUNK * _SNAPSHOT)
        ledger = self._ledgers[snapshot]
        for number in range(snapshot * _CHUNK * _SNAPSHOT, w, _CHUNK):
            for window in self._windows(number, min(number + _CHUNK, w)):
                ledger += self._count(window)
        return ledger + self._count(self.window(w), rows=last - int(self._first_rows[w]))

    def max_loss_tokens(self, rows: int) -> int:
        """Most loss tokens in any `rows` consecutive rows of a step: a static capacity for a loss that gathers them."""
        return self._most(self._row_loss_tokens, rows)

    def max_tokens(self, rows: int) -> int:
        """Most tokens in any `rows` consecutive rows of a step: a static size for rows laid end to end."""
        return self._most(self._row_tokens, rows)

    def _most(self, by_row: Int[np.ndarray, " rows"], rows: int) -> int:
        if self.rows_per_step % rows:
            raise ValueError(f"groups of {rows} rows do not divide steps of {self.rows_per_step}")
        starts = np.arange(0, self.num_rows, rows)
        return int(np.add.reduceat(by_row, starts, dtype=np.int64).max())

    def to_json(self) -> dict[str, Any]:
        """The mixture and its ledger, as `mixture.json` holds them."""
        totals = self.ledger()
        out = (
            {"tasks": [{"task": task} for task in self.tasks]} if self.allocation is None else self.allocation.to_json()
        )
        shares = _share(totals.tokens), _share(totals.loss_tokens)
        for i, row in enumerate(out["tasks"]):
            row["tokens"] = int(totals.tokens[i])
            row["loss_tokens"] = int(totals.loss_tokens[i])
            row["response_tokens"] = int(totals.response_tokens[i])
            row["prompt_tokens"] = row["tokens"] - row["response_tokens"]
            row["token_share"], row["loss_token_share"] = (float(share[i]) for share in shares)
        return out | {
            "examples": self.num_examples,
            "seq_len": self.seq_len,
            "packing": self.packing.value,
            "rows_per_step": self.rows_per_step,
            "rows": self.num_rows,
            "steps": self.num_steps,
            "fill": self.fill,
            "plan_hash": self.hash,
        }

    # How it is found

    def _survey(self, progress: Callable[[int, int], None] | None) -> None:
        """Walk all windows once: rows per window, tokens per row, ledgers."""
        total = len(self._edges) - 1
        zero = np.zeros(len(self.tasks), np.int64)
        ledger = Ledger(tasks=self.tasks, **dict.fromkeys(COLUMNS, zero))
        self._ledgers, numbers, tokens, loss_tokens = [], [0], [], []
        for start in range(0, total, _CHUNK):
            if start % (_CHUNK * _SNAPSHOT) == 0:
                self._ledgers.append(ledger)
            for window in self._windows(start, min(start + _CHUNK, total)):
                rows = int(window.row[-1]) + 1
                if len(numbers) in self._breaks:  # the last step of an earlier plan is padded as it was there
                    rows += -(sum(numbers) + rows) % self.rows_per_step
                by_row = functools.partial(np.bincount, window.row, minlength=rows)
                tokens.append(by_row(weights=window.length).astype(np.int32))
                loss_tokens.append(by_row(weights=window.loss_length).astype(np.int32))
                numbers.append(rows)
                ledger += self._count(window)
            if progress is not None:
                progress(int(self._edges[min(start + _CHUNK, total)]), self._order.total)
        self._ledgers.append(ledger)
        self._first_rows = np.cumsum(numbers)
        self._row_tokens, self._row_loss_tokens = np.concatenate(tokens), np.concatenate(loss_tokens)

    def _windows(self, start: int, stop: int) -> list[Window]:
        """Consecutive windows; the order and the lengths are looked up for all of them together."""
        edges = self._edges[start : stop + 1].tolist()
        stretch = self._order.stretch(edges[0], edges[-1])
        lengths = self._lengths.look_up(stretch.task, stretch.example, stretch.template)
        out = []
        for number, (first, last) in enumerate(itertools.pairwise(edges), start=start):
            part = slice(first - edges[0], last - edges[0])
            row = self._row_of(number, lengths[part, 0])
            order = np.argsort(row, kind="stable")
            row, (length, loss_length, response_length) = row[order], lengths[part][order].T
            starts = np.cumsum(length) - length
            out.append(
                Window(
                    row=row,
                    offset=starts - starts[np.searchsorted(row, row)],
                    length=length,
                    loss_length=loss_length,
                    response_length=response_length,
                    task=stretch.task[part][order],
                    example=stretch.example[part][order],
                    template=stretch.template[part][order],
                    epoch=stretch.epoch[part][order],
                    use=stretch.use[part][order],
                )
            )
        return out

    def _row_of(self, number: int, length: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Row of each example of a window. Packing opens rows longest first, so a seeded shuffle of rows follows."""
        if self.packing is PackPolicy.PADDED:
            return np.arange(len(length))
        row = best_fit(length, self.seq_len)
        if self._row_key is None:
            return row
        rows = int(row.max()) + 1
        key = keyed(np.full(rows, self._row_key, np.uint64), np.full(rows, number))
        return permute(key, np.full(rows, rows), np.arange(rows))[row]

    def _count(self, window: Window, rows: int | None = None) -> Ledger:
        last = len(window.row) if rows is None else int(np.searchsorted(window.row, rows))
        task, n = window.task[:last], len(self.tasks)

        def summed(values: Int[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
            return np.bincount(task, weights=values[:last], minlength=n).astype(np.int64)

        return Ledger(
            tasks=self.tasks,
            examples=np.bincount(task, minlength=n),
            tokens=summed(window.length),
            loss_tokens=summed(window.loss_length),
            response_tokens=summed(window.response_length),
        )

    def _placements(self, window: Window, part: slice) -> list[Placement]:
        columns = (window.task, window.example, window.template, window.epoch, window.use, window.offset, window.length)
        return [
            Placement(
                task=self.tasks[task_id], task_id=task_id, example=example, template=template, epoch=epoch, use=use,
                offset=offset, length=length,
            )
            for task_id, example, template, epoch, use, offset, length in zip(
                *(column[part].tolist() for column in columns), strict=True
            )
        ]  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_recent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _recent=OrderedDict())


def make_plan(
    table: LengthTable,
    allocation: Allocation,
    layout: RowLayout,
    *,
    seed: int,
    earlier: Sequence[Plan] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Plan a training run.

    `table` holds the lengths of every usable example of the allocation's tasks. `earlier` are plans of the same data
    for fewer examples, shortest first, which the run begins with; at its end the tasks have the counts of `allocation`.
    `progress` is called with (positions planned, positions in all).
    """
    if not allocation.counts:
        raise UserError("a plan needs a budget: give examples, epochs, steps or tokens")
    if table.sizes != dict(allocation.sizes):
        raise ValueError(
            f"the allocation is for other sizes than the lengths: {dict(allocation.sizes)} and {table.sizes}"
        )
    by_task = lambda values: {task: values[task] for task in table.names}
    counts, usable, selection = by_task(allocation.counts), by_task(allocation.usable), allocation.config.selection
    order = MixedOrder(
        table.names,
        counts=np.array(list(counts.values())),
        sizes=np.array(list(table.sizes.values())),
        usable=np.array(list(usable.values())),
        templates=np.array([a.shape[1] for a in table.tokens]),
        seed=seed,
        permuted_subset=selection is Selection.PERMUTED,
        earlier=_earlier_counts(earlier, counts),
    )
    header = {"order": "mixed", "counts": counts, "usable": usable, "selection": selection.value}
    header |= {"earlier": [plan.hash for plan in earlier]} if earlier else {}
    return Plan(
        order, table, layout, seed=seed, header=header, allocation=allocation, earlier=earlier, progress=progress
    )


def _earlier_counts(earlier: Sequence[Plan], counts: Mapping[str, int]) -> list[Int[np.ndarray, " n"]]:
    """Counts by task of the earlier plans. Raises UserError where a task had more than it is to have."""
    found = []
    for plan in earlier:
        assert plan.allocation is not None
        had = plan.allocation.counts
        over = [name for name in counts if had[name] > counts[name]]
        if over:
            raise UserError(
                f"a run of {plan.num_steps} steps cannot be lengthened by so little: {over[0]} had {had[over[0]]} "
                f"examples and would have {counts[over[0]]}"
            )
        found.append(np.array([had[name] for name in counts]))
    return found


def make_eval_plan(table: LengthTable, layout: RowLayout) -> Plan:
    """Plan an evaluation: every example once with its first template, in file order, task after task."""
    order = SequentialOrder(np.array([len(a) for a in table.tokens]))
    return Plan(order, table, layout, seed=None, header={"order": "sequential"})


def _edges(ends: Sequence[int], window: int) -> Int[np.ndarray, " edges"]:
    """Positions at which windows begin, and the last one's end: windows of a plan end where an earlier plan ended."""
    starts = [np.arange(first, last, window) for first, last in itertools.pairwise((0, *ends))]
    return np.append(np.concatenate(starts), ends[-1])


def _share(counts: Int[np.ndarray, " n"]) -> np.ndarray:
    return counts / max(int(counts.sum()), 1)
