"""Plans: the place of every example in the rows and steps of a run, accounted for example by example.

A plan is computed from the tokenised lengths once, and holds only sums and the number of rows in each window; any row
is found by computing its own window again, so every step costs the same to reach.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import Allocation, OverCaps, allocate, resolve_budget
from jaxtune.mixture.settings import Budget, MixtureConfig, Selection
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
        progress: Callable[[int, int], None] | None = None,
    ):
        table.check(layout.seq_len)
        self.tasks, self.layout, self.allocation = table.names, layout, allocation
        self._order, self._lengths = order, table
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
        total = -(-self._order.total // self.layout.window)
        zero = np.zeros(len(self.tasks), np.int64)
        ledger = Ledger(tasks=self.tasks, **dict.fromkeys(COLUMNS, zero))
        self._ledgers, numbers, tokens, loss_tokens = [], [0], [], []
        for start in range(0, total, _CHUNK):
            if start % (_CHUNK * _SNAPSHOT) == 0:
                self._ledgers.append(ledger)
            for window in self._windows(start, min(start + _CHUNK, total)):
                tokens.append(np.bincount(window.row, weights=window.length).astype(np.int32))
                loss_tokens.append(np.bincount(window.row, weights=window.loss_length).astype(np.int32))
                numbers.append(len(tokens[-1]))
                ledger += self._count(window)
            if progress is not None:
                progress(min((start + _CHUNK) * self.layout.window, self._order.total), self._order.total)
        self._ledgers.append(ledger)
        self._first_rows = np.cumsum(numbers)
        self._row_tokens, self._row_loss_tokens = np.concatenate(tokens), np.concatenate(loss_tokens)

    def _windows(self, start: int, stop: int) -> list[Window]:
        """Consecutive windows; the order and the lengths are looked up for all of them together."""
        size = self.layout.window
        stretch = self._order.stretch(start * size, min(stop * size, self._order.total))
        lengths = self._lengths.look_up(stretch.task, stretch.example, stretch.template)
        out = []
        for number in range(start, stop):
            part = slice((number - start) * size, (number - start + 1) * size)
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
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Plan a training run.

    `table` holds the lengths of every usable example of the allocation's tasks. `progress` is called with (positions
    planned, positions in all).
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
    )
    header = {"order": "mixed", "counts": counts, "usable": usable, "selection": selection.value}
    return Plan(order, table, layout, seed=seed, header=header, allocation=allocation, progress=progress)


def make_eval_plan(table: LengthTable, layout: RowLayout) -> Plan:
    """Plan an evaluation: every example once with its first template, in file order, task after task."""
    order = SequentialOrder(np.array([len(a) for a in table.tokens]))
    return Plan(order, table, layout, seed=None, header={"order": "sequential"})


def plan_for_budget(
    budget: Budget,
    table: LengthTable,
    mixture: MixtureConfig,
    layout: RowLayout,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Resolve the budget, allocate and plan.

    A budget in steps gives a plan of that many steps with the last one as full as a few tries make it; fewer only where
    the caps of the mixture end the run before.
    """
    totals = table.unit_totals(mixture.unit)

    def plan(examples: int) -> Plan:
        allocation = allocate(table.sizes, mixture, examples, unit_totals=totals)
        return make_plan(table, allocation, layout, seed=seed, progress=progress)

    try:
        return _planned(budget, table, mixture, layout, totals, plan)
    except OverCaps as error:
        name, asked = next(
            (name, n) for name in ("steps", "tokens", "epochs", "examples") if (n := getattr(budget, name))
        )
        if name == "examples":
            raise
        fits = f"{error.share * asked:.3g}" if name == "epochs" else math.floor(error.share * asked)
        raise UserError(f"duration.{name}={asked} is too long, about {fits} {name} fit: {error}") from error


def _planned(
    budget: Budget, table: LengthTable, mixture: MixtureConfig, layout: RowLayout,
    totals: Mapping[str, int | Fraction] | None, plan: Callable[[int], Plan],
) -> Plan:  # fmt: skip
    """The plan of a budget, with `plan` for a number of examples."""
    one_a_row, rows = layout.packing is PackPolicy.PADDED, layout.rows_per_step
    examples = resolve_budget(
        budget, table.sizes, mixture, mean_tokens=table.mean_tokens, tokens_per_step=rows * layout.seq_len,
        examples_per_step=rows if one_a_row else None, unit_totals=totals,
    )  # fmt: skip
    if budget.steps is None or one_a_row:
        return plan(examples)
    return _fill_rows(plan, examples, budget.steps * layout.rows_per_step)


def _fill_rows(plan: Callable[[int], Plan], examples: int, rows: int, tries: int = 4) -> Plan:
    """The plan with the most rows up to `rows` among a few that close in on them."""
    best, tried = None, plan(examples)
    while True:
        tries -= 1
        if tried.num_rows <= rows and (best is None or tried.num_rows > best.num_rows):
            best = tried
        if best is not None and (tries < 1 or best.num_rows == rows or tried.num_examples < examples):
            return best
        per_row = tried.num_examples / tried.num_rows
        examples = max(1, examples + math.floor((rows - tried.num_rows) * per_row) - (tried.num_rows > rows))
        tried = plan(examples)


def _share(counts: Int[np.ndarray, " n"]) -> np.ndarray:
    return counts / max(int(counts.sum()), 1)
