"""From a budget to a plan: how many examples fill so many steps, and what a lengthened run begins with."""

import math
from collections.abc import Callable

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import OverCaps, allocate, resolve_budget
from jaxtune.mixture.settings import Budget, MixtureConfig
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.packing import PackPolicy, RowLayout
from jaxtune.plan.planning import Plan, make_plan


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
    the caps of the mixture end the run before. That of a lengthened run begins with the plans it had before.
    """
    totals = table.unit_totals(mixture.unit)
    earlier: list[Plan] = []
    for number, steps in enumerate(budget.lengthened):
        before = Budget(steps=steps, lengthened=budget.lengthened[:number])
        earlier.append(plan_for_budget(before, table, mixture, layout, seed=seed))

    def plan(examples: int) -> Plan:
        examples = max(examples, earlier[-1].num_examples + 1) if earlier else examples
        allocation = allocate(table.sizes, mixture, examples, unit_totals=totals)
        return make_plan(table, allocation, layout, seed=seed, earlier=earlier, progress=progress)

    try:
        return fitted(budget, table, mixture, layout, plan)
    except OverCaps as error:
        name, asked = next(
            (name, n) for name in ("steps", "tokens", "epochs", "examples") if (n := getattr(budget, name))
        )
        if name == "examples":
            raise
        fits = f"{error.share * asked:.3g}" if name == "epochs" else math.floor(error.share * asked)
        raise UserError(f"duration.{name}={asked} is too long, about {fits} {name} fit: {error}") from error


def fitted(
    budget: Budget, table: LengthTable, mixture: MixtureConfig, layout: RowLayout, plan: Callable[[int], Plan], *,
    behind: Plan | None = None,
) -> Plan:  # fmt: skip
    """The plan of a budget; `plan` makes one of so many examples, those of the plan it comes `behind` included."""
    one_a_row, rows = layout.packing is PackPolicy.PADDED, layout.rows_per_step
    had, done = (behind.num_examples, behind.num_steps) if behind else (0, 0)
    examples = resolve_budget(
        budget, table.sizes, mixture, mean_tokens=table.mean_tokens, tokens_per_step=rows * layout.seq_len,
        examples_per_step=rows if one_a_row else None, unit_totals=table.unit_totals(mixture.unit),
    )  # fmt: skip
    if budget.steps is None or one_a_row:
        return plan(had + examples)
    return _fill_rows(plan, had + examples, (done + budget.steps) * rows)


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
