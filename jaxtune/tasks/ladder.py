"""Repeat ladders: bins of one task's training records, each trained on a fixed number of times."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxtune.errors import UserError
from jaxtune.storage.fingerprints import hash64
from jaxtune.tasks.sources.combined import SubsetSource
from jaxtune.tasks.splits import TEST, TRAIN, VALIDATION
from jaxtune.tasks.task import Task
from jaxtune.tasks.values import Unwritable, canonical

REPEATS = (0, 1, 2, 4, 8, 16)
_BIN = re.compile(r"(.+)\.x(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """A task parted into bins, and the weights and the budget that train each bin as often as its name says.

    MixtureConfig(strategy=Strategy.WEIGHTS, weights=ladder.weights) with Budget(examples=ladder.examples). Other tasks
    stand beside it with their own numbers of examples as weights, added to the budget.
    """

    tasks: tuple[Task, ...]
    """A task a bin, named `TASK.xREPEATS`; its validation and test splits are the bin's own records."""
    weights: Mapping[str, int]
    """Training examples of each bin, repeats included; 0 for bin 0, the matched control that is never trained on."""

    @property
    def examples(self) -> int:
        """Training examples of all bins, repeats included."""
        return sum(self.weights.values())


def repeat_ladder(task: Task, repeats: Sequence[int] = REPEATS) -> Ladder:
    """Part a task's training records by their hash into bins of equal size, one for each number of repeats.

    Bin 0 has the same source, wording and lengths as the others and is never trained on. Records are read here. Records
    that do not fill a last bin evenly (fewer than there are bins) are in none. Raises `UserError` for repeats without
    0, and for fewer records than bins.
    """
    wanted = sorted(set(repeats))
    if len(wanted) < len(repeats) or len(wanted) < 2 or wanted[0] != 0:
        raise UserError(f"repeats of a ladder are 0 and one or more different whole numbers above it, got {repeats}")
    source = task.source(TRAIN)
    size = len(source) // len(wanted)
    if size < 1:
        raise UserError(f"task {task.name} has {len(source)} training records, too few for {len(wanted)} bins")
    try:
        keys = [hash64(canonical(source[i])) for i in range(len(source))]
    except Unwritable as error:
        raise UserError(f"task {task.name} cannot be parted into bins: {error}") from error
    order = np.argsort(np.array(keys, np.uint64), kind="stable")
    tasks = []
    for number, times in enumerate(wanted):
        part = SubsetSource(source, np.sort(order[number * size : (number + 1) * size]), label=f"x{times}")
        splits = dict.fromkeys((TRAIN, VALIDATION, TEST), part)
        name = f"{task.name}.x{times}"
        tasks.append(
            dataclasses.replace(task, name=name, records=None, splits=splits, max_examples=None, max_repeats=None)
        )
    weights = {one.name: times * size for one, times in zip(tasks, wanted, strict=True)}
    return Ladder(tasks=tuple(tasks), weights=weights)


def ladders(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Tasks that are bins of a ladder: task -> repeats -> name of the bin. Bins without a control are none."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        parts = _BIN.fullmatch(name)
        if parts:
            found.setdefault(parts[1], {})[int(parts[2])] = name
    return {task: dict(sorted(bins.items())) for task, bins in found.items() if 0 in bins and len(bins) > 1}
