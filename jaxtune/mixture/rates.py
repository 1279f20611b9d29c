"""Task sizes to nominal shares: the rate of a task, and groups of tasks that nest."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

from jaxtune.errors import UserError
from jaxtune.mixture.apportion import Number, as_fraction, root
from jaxtune.mixture.settings import Group


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateRule:
    """Rule that turns a size into a mixing rate; `weights` by task name take the place of sizes."""

    temperature: Number
    rate_max: Number | None
    scale: Number
    weights: Mapping[str, Number] | None

    def of_size(self, size: Fraction, temperature: Number) -> Fraction:
        """min(size * scale, K) ** (1/T)"""
        if math.isinf(temperature):
            return Fraction(1)
        clipped = size * as_fraction(self.scale)
        if self.rate_max is not None and not math.isinf(self.rate_max):
            clipped = min(clipped, as_fraction(self.rate_max))
        return root(clipped, as_fraction(temperature))

    def of_task(self, task: str, size: Fraction, temperature: Number) -> Fraction:
        """A task's rate among its siblings."""
        return self.of_size(size, temperature) if self.weights is None else as_fraction(self.weights[task])

    def of_group(self, name: str, group: Group, sizes: Mapping[str, Fraction], temperature: Number) -> Fraction:
        """A group's rate among its siblings."""
        if group.weight is not None:
            return as_fraction(group.weight)
        if self.weights is not None:
            raise UserError(f"group {name!r} has no weight; the strategy 'weights' needs one for every task and group")
        return self.of_size(sum((sizes[task] for task in set(members(group))), Fraction(0)), temperature)


def shares(sizes: Mapping[str, Fraction], groups: Mapping[str, Group], rule: RateRule) -> dict[str, Fraction]:
    """Nominal shares of the tasks; they sum to 1. A task that several groups hold has the sum of what they give it."""
    grouped = {task for group in groups.values() for task in members(group)}
    root_group = Group(tasks=tuple(task for task in sizes if task not in grouped), groups=groups)
    out = dict.fromkeys(sizes, Fraction(0))
    for task, share in _within("", root_group, sizes, rule, rule.temperature):
        out[task] += share
    return out


def members(group: Group) -> list[str]:
    """Task names in a group and the groups in it."""
    return [*group.tasks, *(task for sub in group.groups.values() for task in members(sub))]


def _within(
    name: str, group: Group, sizes: Mapping[str, Fraction], rule: RateRule, temperature: Number
) -> list[tuple[str, Fraction]]:
    """(task, share) within one group; a task may come twice when it is reached by two ways."""
    if group.temperature is not None:
        temperature = group.temperature
    task_rates = {task: rule.of_task(task, sizes[task], temperature) for task in group.tasks}
    group_rates = {sub: rule.of_group(sub, inner, sizes, temperature) for sub, inner in group.groups.items()}
    total = sum(task_rates.values(), Fraction(0)) + sum(group_rates.values(), Fraction(0))
    if total == 0:
        where = f"group {name!r}" if name else "the mixture"
        raise UserError(f"all rates in {where} are 0: nothing to draw from; give at least one task a weight above 0")
    found = [(task, rate / total) for task, rate in task_rates.items()]
    for sub, rate in group_rates.items():
        if rate > 0:
            inside = _within(sub, group.groups[sub], sizes, rule, temperature)
            found += [(task, rate / total * share) for task, share in inside]
    return found
