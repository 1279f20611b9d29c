"""Task sizes to sampling probabilities to exact example counts, under caps and a budget.

sizes -> `max_examples` -> rates -> groups -> probabilities -> `max_repeats` -> integers. All arithmetic is on integers
and fractions, so a mixture is the same on every platform.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from jaxtune.errors import UserError
from jaxtune.mixture.apportion import Number, as_fraction, largest_remainder, normalised, water_fill
from jaxtune.mixture.rates import RateRule, shares
from jaxtune.mixture.settings import LARGEST, Budget, Group, MixingUnit, MixtureConfig, OnCap, Strategy, check_number

_TEMPERATURE = {Strategy.PROPORTIONAL: 1.0, Strategy.EQUAL: math.inf, Strategy.UNIMAX: math.inf}
"""Temperatures that strategies fix."""

TOKEN_COLUMNS = (
    *("tokens", "loss_tokens", "response_tokens", "prompt_tokens"),
    *("token_share", "loss_token_share"),
)
"""Columns of a task's row that need the lengths of its examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """A mixture resolved to integers. Mappings are by task name, in the order of the given sizes."""

    config: MixtureConfig
    sizes: Mapping[str, int]
    """n: usable examples before `max_examples`."""
    usable: Mapping[str, int]
    """n': examples that take part."""
    probabilities: Mapping[str, float]
    """Nominal shares, in the mixing unit."""
    example_probabilities: Mapping[str, float]
    """The same as shares of examples; they differ from `probabilities` only when the mixing unit is tokens."""
    caps: Mapping[str, int | None]
    """C: the most examples the task may supply, repeats included; None: no limit."""
    requested: int | None
    """The budget asked for, in examples."""
    budget: int | None
    """The budget met, in examples: the sum of `counts`."""
    counts: Mapping[str, int]
    """Examples drawn from each task, repeats included; empty without a budget."""
    realised: Mapping[str, float]
    """Share of each task in the mixing unit by the counts; empty without a budget."""
    epochs: Mapping[str, float]
    """Passes over the task: count / usable; empty without a budget."""
    capped: Mapping[str, bool]
    """Whether the task supplies all that its cap allows."""

    @property
    def effective_tasks(self) -> float:
        """exp(entropy) of the realised shares (of the nominal ones without a budget): tasks, if all were alike."""
        shares = self.realised or self.probabilities
        return math.exp(-math.fsum(p * math.log(p) for p in shares.values() if p > 0))

    @property
    def total_variation(self) -> float:
        """Half the sum of |realised - nominal|: the share of the run that the caps and the rounding moved."""
        if not self.realised:
            return 0.0
        return 0.5 * math.fsum(abs(self.realised[t] - self.probabilities[t]) for t in self.probabilities)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: one row a task and the totals. A row's `TOKEN_COLUMNS` are None until a plan fills them."""
        return {
            "tasks": [{**_task_row(self, task), **dict.fromkeys(TOKEN_COLUMNS)} for task in self.sizes],
            "strategy": self.config.strategy.value,
            "temperature": _json_number(self.config.temperature),
            "unit": self.config.unit.value,
            "on_cap": self.config.on_cap.value,
            "requested": self.requested,
            "budget": self.budget,
            "effective_tasks": self.effective_tasks,
            "total_variation": self.total_variation,
        }


def allocate(
    sizes: Mapping[str, int],
    config: MixtureConfig,
    budget: int | None,
    *,
    unit_totals: Mapping[str, int | Fraction] | None = None,
    drawn: Mapping[str, int] | None = None,
) -> Allocation:
    """Probabilities and exact counts of a mixture.

    With n' = min(n, E), m = min(n' * scale, K), r = m ** (1/T), p = r / sum r (the order scale, clip, temperature is
    SeqIO's) and C = floor(R * n'), `redistribute` gives x = min(C, lambda * p) with lambda solving sum x = budget: the
    Kullback-Leibler projection of p onto the capped simplex. Counts are the floors of x, then one more for the largest
    remainders, ties by task name. A `budget` of None (a run without an end) allows no repetition cap.

    `unit_totals` (tokens or loss tokens of all `sizes` examples, by task) is needed when the mixing unit is not
    examples: sizes, scale and K then count that unit, p is a share of it, and counts follow p over an example's mean.
    `drawn` are examples that were taken before, by task: they count against the caps.

    Raises UserError for unknown task names, impossible values, and a budget that the caps cannot meet.
    """
    found = _shares(sizes, config, unit_totals)
    if drawn is not None:
        left = {task: None if cap is None else max(0, cap - drawn[task]) for task, cap in found.caps.items()}
        found = dataclasses.replace(found, caps=left)
    counts = {} if budget is None else _counts(found, budget, config)
    if budget is None and any(cap is not None for cap in found.caps.values()):
        raise UserError("max_repeats needs a budget: a run without an end repeats every task without limit")
    met = normalised({task: counts[task] * found.means[task] for task in counts}) if counts else {}
    return Allocation(
        config=config,
        sizes=dict(sizes),
        usable=found.usable,
        probabilities=_floats(found.nominal),
        example_probabilities=_floats(found.drawn),
        caps=found.caps,
        requested=budget,
        budget=sum(counts.values()) if counts else None,
        counts=counts,
        realised=_floats(met),
        epochs={task: count / max(found.usable[task], 1) for task, count in counts.items()},
        capped={task: task in counts and found.drawn[task] > 0 and counts[task] == found.caps[task] for task in sizes},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shares:
    """What a mixture is before its budget, exactly."""

    usable: dict[str, int]
    means: dict[str, Fraction]
    """Mixing units per example."""
    nominal: dict[str, Fraction]
    """Shares in the mixing unit."""
    drawn: dict[str, Fraction]
    """Shares of examples."""
    caps: dict[str, int | None]


def _shares(
    sizes: Mapping[str, int], config: MixtureConfig, unit_totals: Mapping[str, int | Fraction] | None
) -> _Shares:
    _check_sizes(sizes, config)
    usable = {task: _limited(size, _setting(config.max_examples, task)) for task, size in sizes.items()}
    means = _unit_means(sizes, config, unit_totals)
    rule = RateRule(
        temperature=_TEMPERATURE.get(config.strategy, config.temperature),
        rate_max=config.rate_max,
        scale=config.scale,
        weights=config.weights,
    )
    nominal = shares({task: usable[task] * means[task] for task in sizes}, config.groups, rule)
    return _Shares(
        usable=usable,
        means=means,
        nominal=nominal,
        drawn=normalised({task: nominal[task] / means[task] for task in sizes}),
        caps={task: _cap(_setting(config.max_repeats, task), usable[task]) for task in sizes},
    )


def resolve_budget(
    budget: Budget,
    sizes: Mapping[str, int],
    config: MixtureConfig,
    *,
    mean_tokens: Mapping[str, Number] | None = None,
    examples_per_step: int | None = None,
    tokens_per_step: Number | None = None,
    unit_totals: Mapping[str, int | Fraction] | None = None,
) -> int:
    """Budget in examples.

    Epochs count the natural total. Tokens give the largest budget whose expected tokens (`mean_tokens` of an example,
    by task) are at most that many. Steps give `steps * examples_per_step` where a row holds one example, and the tokens
    of `steps * tokens_per_step` where rows are packed (an estimate, which `plan.plan_for_budget` corrects).
    """
    if budget.examples is not None:
        return budget.examples
    if budget.epochs is not None:
        nominal = allocate(sizes, dataclasses.replace(config, max_repeats=math.inf), None, unit_totals=unit_totals)
        total = sum(n for task, n in nominal.usable.items() if nominal.probabilities[task] > 0)
        return max(1, math.floor(as_fraction(budget.epochs) * total))
    if budget.steps is not None and examples_per_step is not None:
        return budget.steps * examples_per_step
    tokens = budget.tokens if budget.steps is None else budget.steps * (tokens_per_step or 0)
    if not tokens or mean_tokens is None:
        raise UserError("a budget in steps or tokens needs the tokenised lengths of the tasks")
    return _budget_for_tokens(as_fraction(tokens), sizes, config, mean_tokens, unit_totals)


# Budgets and integers


class OverCaps(UserError):
    """A budget that is more than the caps of the mixture allow; `share` of it fits."""

    def __init__(self, message: str, *, share: float):
        super().__init__(message)
        self.share = share


def _counts(found: _Shares, budget: int, config: MixtureConfig) -> dict[str, int]:
    """Integer counts of a budget."""
    counts = largest_remainder(_expected(found.drawn, found.caps, budget, config))
    if not any(counts.values()):
        raise UserError("max_repeats leaves no example at all; raise it")
    return counts


def _expected(
    p: Mapping[str, Fraction], caps: Mapping[str, int | None], budget: int, config: MixtureConfig
) -> dict[str, Fraction]:
    """Exact expected examples of each task, x."""
    check_number("the budget in examples", budget)
    if budget > LARGEST:
        raise UserError(f"the budget in examples must be at most {LARGEST}")
    wanted = {task: share * budget for task, share in p.items()}
    over = {task: cap for task, cap in caps.items() if cap is not None and wanted[task] > cap}
    if not over:
        return wanted
    longest = math.floor(min(cap / p[task] for task, cap in over.items()))
    if config.on_cap is OnCap.ERROR:
        raise OverCaps(
            f"max_repeats binds for {_listed(over)} at a budget of {budget} examples; "
            f"at most {longest} fit. Lower the budget, raise mixture.max_repeats, or choose another mixture.on_cap",
            share=longest / budget,
        )
    if config.on_cap is OnCap.STOP:
        return {task: share * longest for task, share in p.items()}
    if config.on_cap is OnCap.SHRINK:
        return {task: Fraction(over.get(task, x)) for task, x in wanted.items()}
    return _redistributed(p, caps, budget, config)


def _redistributed(
    p: Mapping[str, Fraction], caps: Mapping[str, int | None], budget: int, config: MixtureConfig
) -> dict[str, Fraction]:
    """Water-filling under the caps; an underfilled budget is refused or allowed, as the config says."""
    limits = {task: cap for task, cap in caps.items() if cap is not None and p[task] > 0}
    most = sum(limits.values())
    underfilled = most < budget and all(task in limits for task, share in p.items() if share > 0)
    if underfilled and not config.allow_underfill:
        raise OverCaps(
            f"a budget of {budget} examples is more than the {most} that max_repeats allows; a budget of {most} fits. "
            "Lower it, raise mixture.max_repeats, or allow less: mixture.allow_underfill (--mixture.allow-underfill)",
            share=most / budget,
        )
    return water_fill(p, limits, Fraction(budget))


def _budget_for_tokens(
    tokens: Fraction,
    sizes: Mapping[str, int],
    config: MixtureConfig,
    mean_tokens: Mapping[str, Number],
    unit_totals: Mapping[str, int | Fraction] | None,
) -> int:
    """Largest budget whose expected tokens are at most `tokens`, by bisection (they grow with the budget)."""
    _check_names("mean_tokens", mean_tokens, sizes)
    on_cap = OnCap.REDISTRIBUTE if config.on_cap is OnCap.ERROR else config.on_cap  # the found budget is checked later
    config = dataclasses.replace(config, on_cap=on_cap, allow_underfill=True)
    means = {task: Fraction(mean_tokens[task]) for task in sizes}
    found = _shares(sizes, config, unit_totals)

    def expected(examples: int) -> Fraction:
        counts = _counts(found, examples, config)
        return sum((count * means[task] for task, count in counts.items()), Fraction(0))

    low, high = 1, max(2, math.ceil(tokens / min(means.values())) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if expected(middle) <= tokens else (low, middle)
    return low


# Checks and small conversions


def _check_sizes(sizes: Mapping[str, int], config: MixtureConfig) -> None:
    if not sizes:
        raise UserError("a mixture needs at least one task; got none")
    for field in ("weights", "max_examples", "max_repeats"):
        value = getattr(config, field)
        if isinstance(value, Mapping):
            _check_names(field, value, sizes)
    for name, group in config.groups.items():
        _check_group(name, group, sizes)
    if config.weights is not None and (missing := [task for task in sizes if task not in config.weights]):
        raise UserError(f"no weight for {_listed(missing)}; give every task a weight, 0 to leave it out")
    for task, size in sizes.items():
        absent = config.weights is not None and config.weights[task] == 0
        if size < 1 and not absent:
            raise UserError(f"task {task!r} has {size} usable examples; remove it from the mixture or give it weight 0")
        if size > LARGEST:
            raise UserError(f"the size of task {task!r} must be at most {LARGEST}")


def _check_group(name: str, group: Group, sizes: Mapping[str, int]) -> None:
    _check_names(f"group {name!r}", group.tasks, sizes)
    if len(set(group.tasks)) < len(group.tasks):
        raise UserError(f"group {name!r} names a task twice: {_listed(group.tasks)}")
    if not group.tasks and not group.groups:
        raise UserError(f"group {name!r} is empty; give it tasks or groups")
    if group.weight is not None:
        check_number(f"weight of group {name!r}", group.weight, zero=True)
    if group.temperature is not None:
        check_number(f"temperature of group {name!r}", group.temperature, infinite=True)
    for sub, inner in group.groups.items():
        _check_group(sub, inner, sizes)


def _check_names(where: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}" if close else ""
            raise UserError(f"{where}: unknown task {name!r}{hint}. Tasks: {_listed(known)}")


def _unit_means(
    sizes: Mapping[str, int], config: MixtureConfig, unit_totals: Mapping[str, int | Fraction] | None
) -> dict[str, Fraction]:
    """Mixing units per example, by task."""
    if config.unit is MixingUnit.EXAMPLES:
        return dict.fromkeys(sizes, Fraction(1))
    if unit_totals is None:
        raise UserError(f"mixing by {config.unit.value} needs the tokenised lengths of the tasks")
    if bad := [task for task, size in sizes.items() if size > 0 and unit_totals[task] <= 0]:
        raise UserError(f"mixing by {config.unit.value}: {_listed(bad)} hold none; remove them or mix by examples")
    return {task: Fraction(unit_totals[task]) / size if size > 0 else Fraction(1) for task, size in sizes.items()}


def _setting(value: Number | Mapping[str, Number] | None, task: str) -> Number | None:
    return value.get(task) if isinstance(value, Mapping) else value


def _limited(size: int, limit: Number | None) -> int:
    return int(size) if limit is None else min(int(size), int(limit))


def _cap(max_repeats: Number | None, usable: int) -> int | None:
    if max_repeats is None or math.isinf(max_repeats):
        return None
    return math.floor(as_fraction(max_repeats) * usable)


def _floats(values: Mapping[str, Fraction]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _listed(names: Iterable[str], shown: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + rest


def _json_number(value: Number) -> Number | str:
    return "inf" if math.isinf(value) else value


def _task_row(allocation: Allocation, task: str) -> dict[str, Any]:
    count = allocation.counts.get(task)
    usable = allocation.usable[task]
    full = None if count is None else count // max(usable, 1)
    return {
        "task": task,
        "size": allocation.sizes[task],
        "usable": usable,
        "probability": allocation.probabilities[task],
        "realised": allocation.realised.get(task),
        "count": count,
        "epochs": allocation.epochs.get(task),
        "full_passes": full,
        "partial": None if count is None or full is None else count - full * usable,
        "cap": allocation.caps[task],
        "capped": allocation.capped[task],
    }
