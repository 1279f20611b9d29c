import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import allocate, resolve_budget
from jaxtune.mixture.settings import Budget, Group, MixingUnit, MixtureConfig, OnCap, Strategy

SUPERGLUE = {
    "boolq": 9220,
    "cb": 200,
    "copa": 350,
    "multirc": 27040,
    "record": 100520,
    "rte": 2290,
    "wic": 5220,
    "wsc": 500,
}
GOLDEN_SHARES = [
    (dict(temperature=1.0), [0.063437, 0.001376, 0.002408, 0.186047, 0.691620, 0.015756, 0.035916, 0.003440]),
    (
        dict(temperature=1.0, rate_max=3000),
        [0.195567, 0.013038, 0.022816, 0.195567, 0.195567, 0.149283, 0.195567, 0.032595],
    ),
    (dict(temperature=2.0), [0.127548, 0.018785, 0.024851, 0.218429, 0.421147, 0.063566, 0.095972, 0.029702]),
    (
        dict(temperature=2.0, rate_max=30000),
        [0.157675, 0.023223, 0.030721, 0.270023, 0.284419, 0.078581, 0.118640, 0.036718],
    ),
]
GOLDEN_COUNTS = [
    (dict(max_repeats=1), [2608, 200, 350, 4467, 8612, 1300, 1963, 500]),
    (dict(max_repeats=2), [2551, 376, 497, 4369, 8423, 1271, 1919, 594]),
    (dict(max_repeats=4), [2551, 376, 497, 4369, 8423, 1271, 1919, 594]),
    (dict(strategy=Strategy.UNIMAX, max_repeats=1), [4165, 200, 350, 4165, 4165, 2290, 4165, 500]),
    (dict(strategy=Strategy.UNIMAX, max_repeats=2), [3580, 400, 700, 3580, 3580, 3580, 3580, 1000]),
]


@pytest.mark.parametrize("settings, shares", GOLDEN_SHARES)
def test_superglue_shares_are_the_golden_ones(settings, shares):
    allocation = allocate(SUPERGLUE, MixtureConfig(**settings), None)
    assert [round(p, 6) for p in allocation.probabilities.values()] == shares


@pytest.mark.parametrize("settings, counts", GOLDEN_COUNTS)
def test_superglue_counts_are_the_golden_ones(settings, counts):
    assert list(allocate(SUPERGLUE, MixtureConfig(**settings), 20_000).counts.values()) == counts


@pytest.mark.parametrize("temperature, ratio", [(1.0, 15.0), (2.0, math.sqrt(15)), (math.inf, 1.0)])
def test_temperature_turns_fifteen_to_one_into_its_root(temperature, ratio):
    p = allocate({"qa": 120_000, "math": 8_000}, MixtureConfig(temperature=temperature), None).probabilities
    assert p["qa"] / p["math"] == pytest.approx(ratio, rel=1e-15)


def test_an_underfilled_budget_raises_and_names_the_budget_that_fits():
    with pytest.raises(UserError, match="145340 fits"):
        allocate(SUPERGLUE, MixtureConfig(max_repeats=1), 200_000)
    allocation = allocate(SUPERGLUE, MixtureConfig(max_repeats=1, allow_underfill=True), 200_000)
    assert allocation.counts == SUPERGLUE
    assert (allocation.requested, allocation.budget) == (200_000, 145_340)
    assert all(allocation.capped.values())


def test_shrink_gives_the_handbooks_balanced_set():
    sizes = {"a": 10_000, "b": 5_000, "c": 500}
    config = MixtureConfig(strategy=Strategy.EQUAL, max_repeats=3, on_cap=OnCap.SHRINK)
    allocation = allocate(sizes, config, 15_000)
    assert allocation.counts == {"a": 5_000, "b": 5_000, "c": 1_500}
    assert allocation.capped == {"a": False, "b": False, "c": True}


def test_stop_keeps_exact_proportions_and_ends_at_the_first_exhausted_task():
    config = MixtureConfig(strategy=Strategy.EQUAL, max_repeats=3, on_cap=OnCap.STOP)
    allocation = allocate({"a": 10_000, "b": 5_000, "c": 500}, config, 15_000)
    assert allocation.counts == {"a": 1_500, "b": 1_500, "c": 1_500}
    assert allocation.total_variation == 0


def test_stop_is_exact_where_the_root_is():
    # A root that is a little too large or too small would end the run one example early.
    for a, b, counts in ((16, 9, (12, 9)), (36, 1, (6, 1)), (36, 16, (24, 16))):
        config = MixtureConfig(temperature=2.0, max_repeats=1.0, on_cap=OnCap.STOP)
        assert tuple(allocate({"a": a, "b": b}, config, 100).counts.values()) == counts


def test_error_refuses_a_binding_cap_and_names_task_and_budget():
    config = MixtureConfig(strategy=Strategy.EQUAL, max_repeats=3, on_cap=OnCap.ERROR)
    with pytest.raises(UserError, match=r"'c'.*at most 4500 fit"):
        allocate({"a": 10_000, "b": 5_000, "c": 500}, config, 15_000)
    assert allocate({"a": 10_000, "b": 5_000, "c": 500}, config, 4_500).budget == 4_500


@pytest.mark.parametrize("on_cap", list(OnCap))
def test_without_binding_caps_all_cap_modes_agree(on_cap):
    counts = allocate(SUPERGLUE, MixtureConfig(max_repeats=4, on_cap=on_cap), 20_000).counts
    assert counts == allocate(SUPERGLUE, MixtureConfig(), 20_000).counts


def test_max_examples_limits_the_size_before_the_rate():
    allocation = allocate(SUPERGLUE, MixtureConfig(temperature=1, max_examples={"record": 480}, max_repeats=2), 45_000)
    assert allocation.usable["record"] == 480
    assert allocation.probabilities["record"] == 480 / 45_300
    for_all = allocate(SUPERGLUE, MixtureConfig(temperature=1, max_examples=30_000), 20_000)
    assert list(for_all.usable.values()) == [min(n, 30_000) for n in SUPERGLUE.values()]


def test_a_fractional_max_repeats_means_the_decimal_that_was_typed():
    # The float nearest to 2.3, times 10, is a little below 23.
    assert allocate({"a": 10, "b": 1000}, MixtureConfig(max_repeats={"a": 2.3}), 900).caps == {"a": 23, "b": None}


def test_zero_weight_leaves_a_task_out():
    config = MixtureConfig(strategy=Strategy.WEIGHTS, weights={"a": 2, "b": 1, "c": 0}, max_repeats=1)
    allocation = allocate({"a": 100, "b": 100, "c": 0}, config, 120)
    assert allocation.counts == {"a": 80, "b": 40, "c": 0}
    assert not allocation.capped["c"]


# Properties, against formulas written out again here

sizes_strategy = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 10**7), min_size=1, max_size=12
)


def seqio_rate(num_examples, maximum, scale, temperature):
    """SeqIO's mixing_rate_num_examples, written from its description."""
    rate = num_examples * scale
    if maximum is not None:
        rate = min(rate, maximum)
    return rate if temperature == 1.0 else rate ** (1.0 / temperature)


@hypothesis.given(
    sizes_strategy,
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.floats(0.01, 100),
    st.floats(0.25, 16),
)
def test_rates_are_seqios(sizes, rate_max, scale, temperature):
    config = MixtureConfig(temperature=temperature, scale=scale, rate_max=rate_max)
    rates = {task: seqio_rate(n, rate_max, scale, temperature) for task, n in sizes.items()}
    for task, p in allocate(sizes, config, None).probabilities.items():
        assert p == pytest.approx(rates[task] / sum(rates.values()), rel=1e-9)


@hypothesis.given(sizes_strategy, st.floats(0.5, 8), st.floats(0.1, 5), st.integers(1, 10**6), st.sampled_from(OnCap))
def test_counts_sum_to_the_budget_and_never_pass_a_cap(sizes, temperature, repeats, budget, on_cap):
    config = MixtureConfig(temperature=temperature, max_repeats=repeats, on_cap=on_cap, allow_underfill=True)
    caps = {task: math.floor(Fraction(repr(repeats)) * n) for task, n in sizes.items()}
    try:
        allocation = allocate(sizes, config, budget)
    except UserError:
        assert on_cap is OnCap.ERROR or min(caps.values()) == 0
        return
    assert all(0 <= allocation.counts[task] <= caps[task] for task in sizes)
    assert sum(allocation.counts.values()) == allocation.budget <= budget
    if on_cap is OnCap.REDISTRIBUTE:
        assert allocation.budget == min(budget, sum(caps.values()))


def water_filled(shares, caps, budget):
    """Brute force: find lambda by bisection over the reals, without sorting."""
    low, high = 0.0, 1e18
    for _ in range(300):
        middle = (low + high) / 2
        filled = sum(min(caps[t], middle * shares[t]) for t in shares)
        low, high = (middle, high) if filled < budget else (low, middle)
    return {t: min(caps[t], high * shares[t]) for t in shares}


@hypothesis.given(sizes_strategy, st.floats(0.5, 8), st.floats(0.2, 5), st.integers(1, 10**5))
def test_redistribution_keeps_ratios_and_matches_a_brute_force_search(sizes, temperature, repeats, budget):
    config = MixtureConfig(temperature=temperature, max_repeats=repeats, allow_underfill=True)
    hypothesis.assume(all(math.floor(Fraction(repr(repeats)) * n) > 0 for n in sizes.values()))
    allocation = allocate(sizes, config, budget)
    caps = {task: float(cap or 0) for task, cap in allocation.caps.items()}
    expected = water_filled(allocation.probabilities, caps, min(budget, sum(caps.values())))
    for task, count in allocation.counts.items():
        assert abs(count - expected[task]) < 1 + 1e-6 * expected[task]
    free = [t for t in sizes if expected[t] < caps[t] * (1 - 1e-9)]
    scale = {t: expected[t] / allocation.probabilities[t] for t in free}
    assert not scale or max(scale.values()) <= min(scale.values()) * (1 + 1e-9)


@hypothesis.given(sizes_strategy, st.integers(1, 4), st.integers(1, 10**6))
def test_unimax_is_its_papers_loop(sizes, repeats, budget):
    caps = {task: repeats * n for task, n in sizes.items()}
    budget = min(budget, sum(caps.values()))
    left, expected = Fraction(budget), {}
    for i, task in enumerate(sorted(sizes, key=sizes.__getitem__)):
        expected[task] = min(left / (len(sizes) - i), Fraction(caps[task]))
        left -= expected[task]
    counts = allocate(sizes, MixtureConfig(strategy=Strategy.UNIMAX, max_repeats=repeats), budget).counts
    assert all(abs(counts[task] - expected[task]) < 1 for task in sizes)


@hypothesis.given(sizes_strategy, st.randoms(use_true_random=False), st.integers(1, 10**5))
def test_the_order_of_the_tasks_does_not_matter(sizes, random, budget):
    shuffled = list(sizes)
    random.shuffle(shuffled)
    config = MixtureConfig(max_repeats=2, allow_underfill=True)
    again = allocate({task: sizes[task] for task in shuffled}, config, budget)
    assert again.counts == allocate(sizes, config, budget).counts


def test_equal_remainders_go_to_the_first_name():
    assert allocate({"c": 5, "b": 5, "a": 5}, MixtureConfig(), 4).counts == {"c": 1, "b": 1, "a": 2}


def test_eighteen_hundred_tasks_lose_none():
    sizes = {f"task{i:04d}": 30 + (i * 7919) % 30_000 for i in range(1836)}
    allocation = allocate(sizes, MixtureConfig(temperature=1, rate_max=3000, max_repeats=1), 1_000_000)
    assert allocation.budget == 1_000_000
    assert min(allocation.counts.values()) > 0
    strayed = sum(abs(c - allocation.probabilities[t] * 1_000_000) for t, c in allocation.counts.items())
    assert strayed < len(sizes) / 2 + 1


# Groups


def seqio_nested(node, rates):
    """p_i = sum over members of P_member * p_(i | member), from the definition."""
    total = sum(weight for _, weight in node)
    shares = {}
    for member, weight in node:
        inner = {member: 1.0} if isinstance(member, str) else seqio_nested(member, rates)
        for task, share in inner.items():
            shares[task] = shares.get(task, 0.0) + weight / total * share
    return shares


def test_nested_groups_multiply_shares_and_a_task_in_two_groups_adds_them():
    groups = {
        "read": Group(tasks=("qa", "sum"), weight=3, groups={"hard": Group(tasks=("qa", "math"), weight=2)}),
        "count": Group(tasks=("math",), weight=1),
    }
    weights = {"qa": 1.0, "sum": 2.0, "math": 5.0, "chat": 4.0}
    config = MixtureConfig(strategy=Strategy.WEIGHTS, weights=weights, groups=groups)
    hard = (("qa", 1.0), ("math", 5.0))
    tree = (("chat", 4.0), ((("qa", 1.0), ("sum", 2.0), (hard, 2.0)), 3.0), ((("math", 5.0),), 1.0))
    p = allocate({"qa": 9, "sum": 9, "math": 9, "chat": 9}, config, None).probabilities
    assert p == pytest.approx(seqio_nested(tree, weights))


def test_a_group_without_weight_counts_as_one_task_of_its_summed_size():
    config = MixtureConfig(temperature=2, groups={"g": Group(tasks=("a", "b"), temperature=1)})
    p = allocate({"a": 75, "b": 25, "c": 400}, config, None).probabilities
    assert p == pytest.approx({"a": 1 / 3 * 0.75, "b": 1 / 3 * 0.25, "c": 2 / 3})


# Units, budgets, report


def test_mixing_by_tokens_makes_the_token_shares_even():
    sizes = {"long": 1000, "short": 500}
    config = MixtureConfig(temperature=math.inf, unit=MixingUnit.TOKENS)
    allocation = allocate(sizes, config, 1100, unit_totals={"long": 100_000, "short": 5_000})
    assert allocation.counts == {"long": 100, "short": 1000}
    assert allocation.probabilities == {"long": 0.5, "short": 0.5}
    assert allocation.realised == {"long": 0.5, "short": 0.5}
    assert allocation.example_probabilities == pytest.approx({"long": 1 / 11, "short": 10 / 11})


def test_mixing_by_tokens_at_temperature_one_is_the_natural_mixture():
    config = MixtureConfig(temperature=1, unit=MixingUnit.LOSS_TOKENS)
    allocation = allocate({"a": 30, "b": 10}, config, 40, unit_totals={"a": 60, "b": 500})
    assert allocation.counts == {"a": 30, "b": 10}


@pytest.mark.parametrize(
    "budget, examples",
    [
        (Budget(examples=123), 123),
        (Budget(epochs=1.5), 150),
        (Budget(steps=7), 56),
        (Budget(tokens=1000), 50),
    ],
)
def test_each_spelling_of_the_budget_resolves_to_examples(budget, examples):
    sizes, config = {"a": 50, "b": 50}, MixtureConfig(temperature=1)
    means = {"a": 30.0, "b": 10.0}
    assert resolve_budget(budget, sizes, config, mean_tokens=means, examples_per_step=8) == examples


def test_epochs_count_the_tasks_that_take_part():
    config = MixtureConfig(strategy=Strategy.WEIGHTS, weights={"a": 1, "b": 0}, max_examples=40, max_repeats=1)
    assert resolve_budget(Budget(epochs=1), {"a": 50, "b": 50}, config) == 40


@pytest.mark.parametrize("on_cap", list(OnCap))
def test_a_budget_in_tokens_is_found_under_every_cap_mode(on_cap):
    config = MixtureConfig(temperature=1.0, max_repeats=2, on_cap=on_cap)
    budget = resolve_budget(Budget(tokens=1000), {"a": 50, "b": 50}, config, mean_tokens={"a": 30.0, "b": 10.0})
    assert budget == 50


def test_a_packed_step_budget_is_estimated_from_tokens():
    sizes, config = {"a": 50, "b": 50}, MixtureConfig(temperature=1)
    means = {"a": 30.0, "b": 10.0}
    assert resolve_budget(Budget(steps=10), sizes, config, mean_tokens=means, tokens_per_step=200.0) == 100


@pytest.mark.parametrize("given", [dict(), dict(examples=1, steps=2), dict(steps=0)])
def test_a_budget_has_exactly_one_positive_spelling(given):
    with pytest.raises(UserError):
        Budget(**given)


def test_rows_have_the_same_columns_with_and_without_a_budget():
    rows = allocate({"qa": 120_000, "math": 8_000}, MixtureConfig(max_repeats=3), 100_000).to_json()["tasks"]
    assert [row["count"] for row in rows] == [79_479, 20_521]
    assert rows[1]["epochs"] == 20_521 / 8_000
    (endless,) = allocate({"qa": 120_000}, MixtureConfig(), None).to_json()["tasks"]
    assert rows[0].keys() == endless.keys() >= {"task", "size", "probability", "count", "epochs", "capped"}
    assert (endless["probability"], endless["count"], endless["epochs"], endless["capped"]) == (1, None, None, False)


def test_the_report_counts_effective_tasks_passes_and_variation():
    config = MixtureConfig(strategy=Strategy.EQUAL, max_repeats=2)
    allocation = allocate({"a": 100, "b": 10}, config, 120)
    assert allocation.counts == {"a": 100, "b": 20}
    assert allocation.total_variation == pytest.approx(100 / 120 - 0.5)
    entropy = -(5 / 6 * math.log(5 / 6) + 1 / 6 * math.log(1 / 6))
    assert allocation.effective_tasks == pytest.approx(math.exp(entropy))
    row = allocation.to_json()["tasks"][1]
    assert (row["full_passes"], row["partial"], row["capped"]) == (2, 0, True)


@pytest.mark.parametrize(
    "sizes, settings, budget, message",
    [
        ({}, {}, 1, "at least one task"),
        ({"qa": 0}, {}, 1, "'qa' has 0 usable examples"),
        ({"qa": 5}, dict(max_examples={"qq": 3}), 1, "did you mean 'qa'"),
        ({"qa": 5}, dict(strategy=Strategy.WEIGHTS, weights={"qa": 1, "maths": 2}), 1, "unknown task 'maths'"),
        ({"qa": 5, "m": 5}, dict(strategy=Strategy.WEIGHTS, weights={"qa": 1}), 1, "no weight for 'm'"),
        ({"qa": 5}, dict(strategy=Strategy.WEIGHTS, weights={"qa": 0}), 1, "all rates in the mixture are 0"),
        ({"qa": 5}, dict(strategy=Strategy.WEIGHTS), 1, "go together"),
        ({"qa": 5}, dict(temperature=0), 1, "mixture.temperature is 0"),
        ({"qa": 5}, dict(temperature=math.nan), 1, "mixture.temperature is nan"),
        (
            {"qa": 5, "m": 10**6},
            dict(temperature=1e-300),
            1,
            r"temperature is 1e-300; it must be a number in \[0\.01, ",
        ),
        ({"qa": 5}, {}, 10**400, "budget in examples must be at most 9223372036854775807"),
        ({"qa": 10**400}, {}, 1, "size of task 'qa' must be at most 9223372036854775807"),
        ({"qa": 5}, dict(max_repeats=0), 1, "mixture.max_repeats is 0"),
        ({"qa": 5}, dict(max_examples=0), 1, "max_examples is 0"),
        ({"qa": 5}, dict(max_repeats=2), None, "needs a budget"),
        ({"qa": 5}, {}, 0, "budget in examples must be above 0"),
        ({"qa": 5}, dict(unit=MixingUnit.TOKENS), 1, "needs the tokenised lengths"),
        ({"qa": 5}, dict(groups={"g": Group()}), 1, "group 'g' is empty"),
        ({"qa": 5}, dict(groups={"g": Group(tasks=("qb",))}), 1, "did you mean 'qa'"),
        ({"qa": 5}, dict(strategy=Strategy.UNIMAX, on_cap=OnCap.STOP), 1, "redistributes by definition"),
    ],
)
def test_impossible_mixtures_are_refused_with_a_remedy(sizes, settings, budget, message):
    with pytest.raises(UserError, match=message):
        allocate(sizes, MixtureConfig(**settings), budget)
