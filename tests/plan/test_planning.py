import dataclasses
import math
import pickle
import re

import numpy as np
import pytest

from jaxtune.batch import Example, assemble, count_batch
from jaxtune.errors import UserError
from jaxtune.mixture.allocation import allocate
from jaxtune.mixture.settings import Budget, MixingUnit, MixtureConfig, OnCap, Selection, Strategy
from jaxtune.plan.budgets import plan_for_budget
from jaxtune.plan.ledger import Ledger
from jaxtune.plan.lengths import LengthTable
from jaxtune.plan.order import permutation
from jaxtune.plan.packing import PackPolicy, RowLayout
from jaxtune.plan.planning import make_eval_plan, make_plan

SIZES = {"qa": 900, "math": 60, "code": 240}
TEMPLATES = {"qa": 1, "math": 3, "code": 2}
SEQ_LEN, ROWS = 64, 4


GOLDEN_ROW = (
    33,
    [
        ("b", 1, 0, 0, 3, 0, 4),
        ("a", 29, 0, 0, 35, 4, 5),
        ("a", 34, 0, 0, 36, 9, 5),
        ("a", 3, 1, 0, 37, 14, 5),
        ("a", 2, 0, 0, 38, 19, 5),
    ],
)


def draw_lengths(sizes, templates, seq_len, seed=0):
    rng = np.random.default_rng(seed)
    lengths, loss_lengths = {}, {}
    for task, n in sizes.items():
        shape = (n, templates.get(task, 1))
        lengths[task] = np.clip(rng.lognormal(2.7, 0.7, shape), 3, seq_len).astype(np.int32)
        loss_lengths[task] = rng.integers(1, lengths[task]).astype(np.int32)
    return lengths, loss_lengths


LENGTHS, LOSS_LENGTHS = draw_lengths(SIZES, TEMPLATES, SEQ_LEN)


TABLE = LengthTable(LENGTHS, LOSS_LENGTHS)


def layout(rows_per_step=ROWS, seq_len=SEQ_LEN, **options):
    return RowLayout(seq_len=seq_len, rows_per_step=rows_per_step, **options)


def small_plan(budget=2000, *, config=None, seed=3, table=TABLE, progress=None, window=256, **rows):
    allocation = allocate(SIZES, config or MixtureConfig(max_repeats=4), budget)
    return make_plan(table, allocation, layout(window=window, **rows), seed=seed, progress=progress)


def counts(plan):
    assert plan.allocation is not None
    return dict(plan.allocation.counts)


def placements(plan, steps=None):
    return [p for step in steps or range(plan.num_steps) for row in plan.rows(step) for p in row]


@pytest.mark.parametrize("packing", list(PackPolicy))
def test_the_plan_places_exactly_what_the_allocation_counted(packing):
    plan = small_plan(packing=packing)
    placed = placements(plan)
    counted = {task: sum(p.task == task for p in placed) for task in SIZES}
    assert counted == counts(plan)
    assert len(placed) == plan.num_examples == 2000
    for task in SIZES:
        assert sorted(p.use for p in placed if p.task == task) == list(range(counted[task]))
    first_pass = {p.example for p in placed if p.task == "math" and p.epoch == 0}
    assert first_pass == set(range(60))


@pytest.mark.parametrize("packing", list(PackPolicy))
def test_no_row_overflows_overlaps_or_leaves_a_gap(packing):
    plan = small_plan(packing=packing)
    for number in range(plan.num_rows):
        end = 0
        for p in plan.row(number):
            assert p.offset == end
            assert p.length == LENGTHS[p.task][p.example, p.template]
            end += p.length
        assert 0 < end <= SEQ_LEN


def test_padded_rows_hold_one_example_each_in_order():
    plan = small_plan(packing=PackPolicy.PADDED)
    assert plan.num_rows == 2000
    assert all(len(plan.row(number)) == 1 for number in range(2000))
    qa = [p.example for p in placements(plan) if p.task == "qa"]
    assert qa[:900] == permutation(3, "qa", 0, 900).tolist()[: len(qa[:900])]


@pytest.mark.parametrize("packing", list(PackPolicy))
@pytest.mark.parametrize("upto", [0, 1, 7, 31, None])
def test_the_ledger_is_the_sum_of_the_steps(packing, upto):
    plan = small_plan(packing=packing)
    ledger = plan.ledger(upto)
    placed = placements(plan, range(plan.num_steps if upto is None else upto)) if upto != 0 else []
    for i, task in enumerate(plan.tasks):
        mine = [p for p in placed if p.task == task]
        assert ledger.examples[i] == len(mine)
        assert ledger.tokens[i] == sum(p.length for p in mine)
        assert ledger.loss_tokens[i] == sum(LOSS_LENGTHS[task][p.example, p.template] for p in mine)


def test_a_ledger_late_in_a_long_plan_starts_from_a_stored_one():
    lengths, losses = draw_lengths({"a": 900, "b": 150}, {}, 32)
    allocation = allocate({"a": 900, "b": 150}, MixtureConfig(), 2600)
    plan = make_plan(LengthTable(lengths, losses), allocation, layout(8, 32, window=16), seed=0)
    for step in (plan.num_steps - 1, plan.num_steps // 2):
        placed = placements(plan, range(step))
        assert plan.ledger(step).tokens.sum() == sum(p.length for p in placed)
        assert plan.ledger(step).examples.tolist() == [sum(p.task == t for p in placed) for t in ("a", "b")]


def test_steps_found_alone_are_the_steps_found_in_a_row():
    straight = small_plan()
    rows = [straight.rows(step) for step in range(straight.num_steps)]
    for step in (straight.num_steps - 1, 0, 11):
        assert small_plan().rows(step) == rows[step]
    assert pickle.loads(pickle.dumps(straight)).rows(5) == rows[5]


def test_rows_of_the_last_step_beyond_the_end_are_empty():
    plan = small_plan()
    last = plan.rows(plan.num_steps - 1)
    assert plan.num_rows % ROWS
    assert [bool(row) for row in last] == [True] * (plan.num_rows % ROWS) + [False] * (ROWS - plan.num_rows % ROWS)
    with pytest.raises(IndexError, match="in none of the"):
        plan.row(plan.num_steps * ROWS)


def test_rows_of_a_window_are_shuffled():
    plan = small_plan(window=4096)
    lengths = [max(p.length for p in plan.row(number)) for number in range(plan.num_rows)]
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.15


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_static_sizes_are_the_most_that_any_group_of_rows_trains_and_holds(rows):
    plan = small_plan()
    trained = [
        sum(LOSS_LENGTHS[p.task][p.example, p.template] for p in row)
        for step in range(plan.num_steps)
        for row in plan.rows(step)
    ]
    groups = np.array(trained).reshape(-1, rows).sum(1)
    assert plan.max_loss_tokens(rows) == groups.max()
    real = [sum(p.length for p in row) for step in range(plan.num_steps) for row in plan.rows(step)]
    assert plan.max_tokens(rows) == np.array(real).reshape(-1, rows).sum(1).max()
    with pytest.raises(ValueError, match="do not divide"):
        plan.max_loss_tokens(3)


def test_packed_rows_are_full_at_512_tokens():
    sizes = {"a": 6000, "b": 9000}
    lengths, losses = draw_lengths(sizes, {}, 512)
    lengths = {task: np.minimum(a * 6, 512) for task, a in lengths.items()}
    allocation = allocate(sizes, MixtureConfig(), 15_000)
    plan = make_plan(LengthTable(lengths, losses), allocation, layout(8, 512), seed=0)
    assert plan.fill > 0.985


def test_one_epoch_is_one_epoch_with_packing_on():
    sizes = dict(SIZES)
    plan = plan_for_budget(Budget(epochs=1), TABLE, MixtureConfig(temperature=1, max_repeats=1), layout(), seed=0)
    placed = [(p.task, p.example) for p in placements(plan)]
    assert sorted(placed) == sorted((task, i) for task, n in sizes.items() for i in range(n))
    tokens = plan.ledger().tokens.sum()
    assert plan.num_steps == math.ceil(plan.num_rows / ROWS)
    assert tokens / (plan.num_rows * SEQ_LEN) == plan.fill > 0.97


# Identity


def test_the_order_of_the_length_table_is_the_order_of_the_tasks():
    """Counts go by name, whatever the order in which the allocation lists the tasks."""
    turned = LengthTable({task: LENGTHS[task] for task in reversed(LENGTHS)}, LOSS_LENGTHS)
    plan = small_plan(table=turned)
    assert plan.tasks == tuple(reversed(SIZES))
    assert dict(zip(plan.tasks, plan.ledger().examples.tolist(), strict=True)) == counts(small_plan())


def test_the_plan_hash_sees_everything_that_decides_a_batch():
    base = small_plan()
    assert small_plan().hash == base.hash
    longer = {task: a.copy() for task, a in LENGTHS.items()}
    longer["code"][5, 1] += 1
    others = [
        small_plan(seed=4),
        small_plan(1999),
        small_plan(seq_len=SEQ_LEN + 1),
        small_plan(rows_per_step=ROWS * 2),
        small_plan(window=128),
        small_plan(packing=PackPolicy.PADDED),
        small_plan(config=MixtureConfig(max_repeats=4, max_examples=800)),
        small_plan(config=MixtureConfig(max_repeats=4, selection=Selection.HEAD)),
        small_plan(table=LengthTable(longer, LOSS_LENGTHS), seq_len=SEQ_LEN + 1),
        small_plan(table=LengthTable(LENGTHS, {t: np.maximum(a - 1, 0) for t, a in LOSS_LENGTHS.items()})),
    ]
    assert len({base.hash, *(plan.hash for plan in others)}) == len(others) + 1


def test_a_plan_does_not_move_between_versions():
    """Change the golden only together with the plan's version number; runs can then no longer be resumed."""
    lengths = {"a": np.full((50, 2), 5, np.int32), "b": np.arange(3, 23, dtype=np.int32)[:, None]}
    losses = {task: a - 2 for task, a in lengths.items()}
    allocation = allocate({"a": 50, "b": 20}, MixtureConfig(), 90)
    plan = make_plan(LengthTable(lengths, losses), allocation, layout(2, 24, window=64), seed=0)
    row = [(p.task, p.example, p.template, p.epoch, p.use, p.offset, p.length) for p in plan.row(3)]
    assert (plan.num_rows, row) == GOLDEN_ROW


def test_resuming_arms_share_the_order_within_tasks():
    """Two temperatures of an ablation draw the same examples of a task in the same order."""
    cool, warm = (small_plan(config=MixtureConfig(temperature=t), packing=PackPolicy.PADDED) for t in (1, math.inf))
    for task in SIZES:
        a, b = ([(p.example, p.template) for p in placements(plan) if p.task == task] for plan in (cool, warm))
        shared = min(len(a), len(b))
        assert a[:shared] == b[:shared]


# Budgets


@pytest.mark.parametrize("steps", [3, 40, 111])
def test_a_budget_in_steps_gives_that_many_steps_nearly_full(steps):
    plan = plan_for_budget(Budget(steps=steps), TABLE, MixtureConfig(), layout(16), seed=0)
    assert plan.num_steps == steps
    assert plan.num_rows > 16 * steps - 8
    one_a_row = layout(16, packing=PackPolicy.PADDED)
    padded = plan_for_budget(Budget(steps=steps), TABLE, MixtureConfig(), one_a_row, seed=0)
    assert (padded.num_steps, padded.num_examples) == (steps, 16 * steps)


def test_a_budget_in_steps_is_cut_short_by_caps_that_end_the_run():
    config = MixtureConfig(max_repeats=1, on_cap=OnCap.STOP, temperature=1)
    plan = plan_for_budget(Budget(steps=100_000), TABLE, config, layout(16), seed=0)
    assert counts(plan) == SIZES


@pytest.mark.parametrize("name, asked", [("steps", 100_000), ("tokens", 10**9), ("epochs", 500.0)])
def test_a_budget_over_the_caps_is_refused_with_about_what_fits_in_its_own_unit(name, asked):
    config = MixtureConfig(max_repeats=2)
    with pytest.raises(UserError, match=rf"duration\.{name}={asked} is too long.*--mixture.allow-underfill") as raised:
        plan_for_budget(Budget(**{name: asked}), TABLE, config, layout(16), seed=0)
    said = re.search(rf"about ([0-9.]+) {name} fit", str(raised.value))
    assert said is not None
    fits = float(said[1])
    whole = int(0.9 * fits)
    budget = {"steps": Budget(steps=whole), "tokens": Budget(tokens=whole), "epochs": Budget(epochs=fits)}[name]
    assert (
        0.8 < plan_for_budget(budget, TABLE, config, layout(16), seed=0).num_examples / (2 * sum(SIZES.values())) <= 1
    )


def test_a_budget_in_tokens_is_met_within_a_few_examples():
    plan = plan_for_budget(Budget(tokens=30_000), TABLE, MixtureConfig(), layout(16), seed=0)
    assert abs(plan.ledger().tokens.sum() / 30_000 - 1) < 0.02


@pytest.mark.parametrize("unit", [MixingUnit.TOKENS, MixingUnit.LOSS_TOKENS])
def test_mixing_by_tokens_evens_out_the_shares_of_the_ledger(unit):
    config = MixtureConfig(strategy=Strategy.EQUAL, unit=unit)
    plan = plan_for_budget(Budget(examples=5000), TABLE, config, layout(16), seed=0)
    counted = plan.ledger().tokens if unit is MixingUnit.TOKENS else plan.ledger().loss_tokens
    assert counted / counted.sum() == pytest.approx([1 / 3] * 3, rel=0.03)
    totals = TABLE.unit_totals(unit)
    table = LENGTHS if unit is MixingUnit.TOKENS else LOSS_LENGTHS
    assert totals["math"] * 3 == table["math"].sum()


def test_the_json_holds_the_mixture_with_its_tokens():
    plan = small_plan()
    out = plan.to_json()
    assert [row["task"] for row in out["tasks"]] == list(SIZES)
    assert sum(row["tokens"] for row in out["tasks"]) == plan.ledger().tokens.sum()
    assert sum(row["loss_token_share"] for row in out["tasks"]) == pytest.approx(1)
    assert sum(row["count"] for row in out["tasks"]) == out["budget"] == out["examples"] == 2000
    assert (out["steps"], out["fill"], out["plan_hash"]) == (plan.num_steps, plan.fill, plan.hash)


# Scale


def test_eighteen_hundred_tasks_are_all_drawn_as_counted():
    sizes = {f"t{i}": 3 + i % 7 for i in range(1836)}
    lengths, losses = draw_lengths(sizes, {}, SEQ_LEN)
    plan = make_plan(LengthTable(lengths, losses), allocate(sizes, MixtureConfig(), 12_000), layout(16), seed=0)
    assert plan.ledger().examples.tolist() == list(counts(plan).values())
    assert plan.ledger().examples.min() > 0


def test_lengths_in_files_are_read_from_them_and_pickle_as_their_names(tmp_path):
    mapped = {}
    for task, a in LENGTHS.items():
        mapped[task] = np.memmap(tmp_path / task, np.int32, "w+", shape=a.shape)
        mapped[task][:] = a
        mapped[task].flush()
    allocation = allocate(SIZES, MixtureConfig(), 2000)
    plan = make_plan(LengthTable(mapped, mapped), allocation, layout(), seed=3)
    pickled = pickle.dumps(plan)
    assert len(pickled) < 40_000
    assert pickle.loads(pickled).rows(3) == plan.rows(3)


def test_tables_too_large_to_copy_are_looked_up_where_they_are(monkeypatch):
    copied = small_plan()
    monkeypatch.setattr("jaxtune.plan.lengths._SMALL_TABLE", 0)
    monkeypatch.setattr("jaxtune.plan.lengths._BYTES_PER_EXAMPLE", 0)
    in_place = small_plan(table=LengthTable(LENGTHS, LOSS_LENGTHS))
    assert in_place.rows(9) == copied.rows(9)
    assert in_place.max_loss_tokens(4) == copied.max_loss_tokens(4)


def test_planning_reports_its_progress():
    seen = []
    small_plan(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2000, 2000)


# Evaluation and accounting


@pytest.mark.parametrize("packing", list(PackPolicy))
def test_an_evaluation_plan_holds_every_example_once_with_its_first_wording(packing):
    plan = make_eval_plan(TABLE, layout(packing=packing))
    placed = [(p.task, p.example, p.template) for p in placements(plan)]
    assert sorted(placed) == sorted((task, i, 0) for task, n in SIZES.items() for i in range(n))
    assert plan.ledger().examples.tolist() == list(SIZES.values())


def test_prompts_and_responses_are_told_apart_where_both_carry_weight():
    all_but_the_first = {task: a - 1 for task, a in LENGTHS.items()}
    plan = small_plan(table=LengthTable(LENGTHS, all_but_the_first, LOSS_LENGTHS))
    rows = plan.to_json()["tasks"]
    assert plan.ledger().response_tokens.tolist() == small_plan().ledger().loss_tokens.tolist()
    assert [row["prompt_tokens"] + row["response_tokens"] for row in rows] == plan.ledger().tokens.tolist()
    assert [row["loss_tokens"] for row in rows] == (plan.ledger().tokens - plan.ledger().examples).tolist()


def test_a_batch_counts_to_the_ledger_of_its_step():
    plan = small_plan()
    total = plan.ledger(0)
    for step in range(plan.num_steps):
        rows = [[(planned_example(p), p.task_id) for p in row] for row in plan.rows(step)]
        total += Ledger(tasks=plan.tasks, **count_batch(assemble(rows, SEQ_LEN), len(plan.tasks)))
    assert total.to_json() == plan.ledger().to_json()


def planned_example(p):
    """An example with as many tokens and loss tokens as the plan expects."""
    weights = np.zeros(p.length, np.float32)
    weights[p.length - LOSS_LENGTHS[p.task][p.example, p.template] :] = 1
    return Example(tokens=np.ones(p.length, np.int32), loss_weights=weights)


# Refusals


def test_examples_longer_than_the_row_are_refused_with_their_task():
    with pytest.raises(UserError, match="examples of qa.* longer than rows of 20 tokens"):
        small_plan(seq_len=20)


def test_a_plan_needs_a_budget():
    allocation = allocate(SIZES, MixtureConfig(), None)
    with pytest.raises(UserError, match="needs a budget"):
        make_plan(TABLE, allocation, layout(), seed=0)


def test_lengths_of_another_data_set_are_refused():
    allocation = allocate(SIZES | {"qa": 901}, MixtureConfig(), 100)
    with pytest.raises(ValueError, match="other sizes"):
        make_plan(TABLE, allocation, layout(), seed=0)
    short = dict(LOSS_LENGTHS, qa=LOSS_LENGTHS["qa"][:-1])
    with pytest.raises(ValueError, match="must agree in shape"):
        LengthTable(LENGTHS, short)


def test_placements_are_plain_data():
    p = small_plan().row(0)[0]
    assert dataclasses.asdict(p).keys() >= {"task", "example", "template", "epoch", "use", "offset", "length"}


# Lengthened runs


@pytest.mark.parametrize("options", [{}, {"packing": PackPolicy.PADDED}, {"window": 100}])
def test_a_lengthened_plan_begins_with_the_shorter_ones_row_by_row_and_ends_with_the_counts_of_its_length(options):
    rows = layout(16, **options)
    config = MixtureConfig(temperature=2)
    make = lambda **budget: plan_for_budget(Budget(**budget), TABLE, config, rows, seed=0)
    short, middle, long = make(steps=7), make(steps=20, lengthened=(7,)), make(steps=33, lengthened=(7, 20))
    assert (short.num_steps, middle.num_steps, long.num_steps) == (7, 20, 33)
    for step in range(33):
        before = [plan for plan in (short, middle) if step < plan.num_steps]
        assert all(plan.rows(step) == long.rows(step) for plan in before), step
    assert long.earlier == {short.hash: 7, middle.hash: 20}
    assert len({short.hash, middle.hash, long.hash, make(steps=33).hash}) == 4
    assert long.allocation is not None and counts(long) == dict(long.allocation.counts) == long_counts(long)
    uses = {task: sorted(p.use for p in placements(long) if p.task == task) for task in SIZES}
    assert all(use == list(range(len(use))) for use in uses.values())  # no example is skipped or given twice
    assert (long.ledger(7).examples == short.ledger().examples).all()
    assert (long.ledger(20).tokens == middle.ledger().tokens).all()
    assert long.max_tokens(4) >= short.max_tokens(4)
    again = pickle.loads(pickle.dumps(long))
    assert again.rows(6) == short.rows(6) and again.rows(32) == long.rows(32)


def long_counts(plan):
    """Counts of an allocation of as many examples, without any history."""
    return dict(allocate(SIZES, MixtureConfig(temperature=2), plan.num_examples).counts)


def test_a_plan_cannot_be_lengthened_by_so_little_that_a_task_would_lose_examples():
    earlier = [small_plan(2000, config=MixtureConfig(temperature=1))]
    allocation = allocate(SIZES, MixtureConfig(temperature=math.inf), 2010)
    with pytest.raises(UserError, match="a run of .* steps cannot be lengthened by so little: qa had 1500 examples"):
        make_plan(TABLE, allocation, layout(window=256), seed=3, earlier=earlier)


@pytest.mark.parametrize("budget", [{"steps": 5, "lengthened": (5,)}, {"steps": 9, "lengthened": (5, 3)}])
def test_a_budget_is_lengthened_only_to_more_steps(budget):
    with pytest.raises(UserError, match=r"duration.lengthened holds the steps before, each fewer than the next"):
        Budget(**budget)
    with pytest.raises(UserError, match="duration.lengthened"):
        Budget(epochs=2, lengthened=(5,))
