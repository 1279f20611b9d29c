"""The plan of a run in stages: the stages whose shares are known, each planned behind the ones before it.

A stage begins with a step and a window of its own, as the further part of a lengthened run does; what the stages before
it drew counts against the caps, and its examples go on where theirs ended, pass by pass.
"""

from collections.abc import Callable
from fractions import Fraction

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import OverCaps, allocate
from jaxtune.mixture.settings import Budget, MixtureConfig
from jaxtune.mixture.stages import shares_by_stage, stage_ends, stage_mixture, with_stage
from jaxtune.plan.budgets import fitted
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.packing import RowLayout
from jaxtune.plan.planning import Plan, make_plan


def plan_for_stages(
    budget: Budget,
    table: LengthTable,
    mixture: MixtureConfig,
    layout: RowLayout,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The plan of the stages whose shares are known; the first has those of the mixture itself.

    Raises UserError for a budget that is not in steps, and where the caps end a stage before its last step.
    """
    if budget.steps is None or budget.lengthened:
        raise UserError(
            "a mixture in stages needs its length in steps from the start, so that every stage knows its own: give "
            "duration.steps, and a longer run a folder of its own"
        )
    ends = stage_ends(budget.steps, mixture.stages)
    mixtures = [mixture, *(stage_mixture(mixture, one) for one in shares_by_stage(mixture, table.names))]
    parts: list[Plan] = []
    for number, (own, end) in enumerate(zip(mixtures, ends, strict=False), start=1):
        try:
            plan = _with_stage(parts, own, end, table, layout, seed=seed, progress=progress)
        except OverCaps as error:
            first = parts[-1].num_steps + 1 if parts else 1
            raise UserError(
                f"stage {number} of {mixture.stages}, steps {first} to {end}, cannot be planned: {error}"
            ) from error
        if plan.num_steps < end:
            raise UserError(
                f"stage {number} of {mixture.stages} would end at step {plan.num_steps} of {end}, because "
                "mixture.max_repeats leaves no more examples; raise it, or train for fewer steps"
            )
        parts.append(plan)
    return parts[-1]


def _with_stage(
    parts: list[Plan], mixture: MixtureConfig, end: int, table: LengthTable, layout: RowLayout, *, seed: int,
    progress: Callable[[int, int], None] | None,
) -> Plan:  # fmt: skip
    """The plan of `parts` and one more stage up to step `end`, its last rows as full as a few tries make them."""
    totals = table.unit_totals(mixture.unit)
    means = {task: totals[task] / size if size else Fraction(1) for task, size in table.sizes.items()}
    before = parts[-1] if parts else None
    had, done = (before.num_examples, before.num_steps) if before else (0, 0)

    def plan(examples: int) -> Plan:
        earlier = before.allocation if before else None
        drawn = None if earlier is None else earlier.counts
        stage = allocate(table.sizes, mixture, max(1, examples - had), unit_totals=totals, drawn=drawn)
        whole = stage if earlier is None else with_stage(earlier, stage, means)
        return make_plan(table, whole, layout, seed=seed, earlier=parts, progress=progress)

    return fitted(Budget(steps=end - done), table, mixture, layout, plan, behind=before)
