"""Scores of text, and forgetting from scores."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.errors import UserError
from jaxtune.tasks import metrics

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [(" Paris\n", "Paris", 1), ("paris", "Paris", 0), ("Paris.", "Paris", 0), ("a  b", "a b", 0), ("", " ", 1)],
)
def test_exact_match_disregards_outer_whitespace_only(prediction, reference, score):
    assert metrics.exact_match(prediction, reference) == score


@pytest.mark.parametrize(
    ("prediction", "score"), [("It is PARIS, of course.", 1), ("the City of Light", 1), ("London", 0), ("", 0)]
)
def test_contains_any_accepts_any_line_of_the_reference(prediction, score):
    assert metrics.contains_any(prediction, "Paris\n\n city of light ") == score


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("3 apples and 4 pears make 7.", "#### 7", 1),
        ("7 in all, not 8", "7", 0),
        ("$1,200.00", "1200", 1),
        ("It costs 1,200", "200", 0),
        ("minus: -5", "-5", 1),
        ("10-5", "5", 1),
        ("10-5", "-5", 0),
        ("10 - 5", "5", 1),
        ("0.50", ".5", 1),
        ("version 2.5", "5", 0),
        ("no idea", "5", 0),
        ("[1, 2, 30]", "30", 1),
    ],
)
def test_last_number_compares_values(prediction, reference, score):
    assert metrics.last_number(prediction, reference) == score


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("so it is 1/2", "0.5", 1),
        ("5e-1", "1/2", 1),
        (r"Hence \boxed{\frac{3}{4}} of 12", ".75", 1),
        (r"\boxed{1} then \boxed{7}", "7", 1),
        ("#### 1,234.50 $", "1234.5", 1),
        ("50%", "50", 1),
        ("0.3333333", "1/3", 1),
        ("0.333", "1/3", 0),
        ("\N{MINUS SIGN}3", "-3", 1),
        ("7/0", "7", 0),
        ("no idea", "5", 0),
        ("1e999", "5", 0),
    ],
)
def test_a_numeric_answer_is_compared_in_value(prediction, reference, score):
    assert metrics.numeric_answer(prediction, reference) == score


SQUAD_CASES = [
    ("The Eiffel-Tower!", "eiffeltower", 1, 1.0),
    ("a an the", "", 1, 1.0),
    ("", "Paris", 0, 0.0),
    ("in the year 1912", "1912", 0, 0.5),
    ("to be to be", "to be", 0, 2 / 3),
    ("Then an answer", "Then answer", 1, 1.0),
    ("Zürich (CH)", "zürich ch", 1, 1.0),
]


@pytest.mark.parametrize(("prediction", "reference", "exact", "f1"), SQUAD_CASES)
def test_squad_scores_follow_the_official_normalisation(prediction, reference, exact, f1):
    assert metrics.squad_em(prediction, reference) == exact
    assert metrics.squad_f1(prediction, reference) == pytest.approx(f1)


def test_rouge_n_counts_words_and_pairs_of_them():
    """4 of 5 words against 5, and 2 of 4 pairs, by hand."""
    ours, theirs = "the cat sat on mats", "The cat lay on mats!"
    assert metrics.rouge_1(ours, theirs) == pytest.approx(4 / 5)
    assert metrics.rouge_2(ours, theirs) == pytest.approx(2 / 4)
    assert metrics.rouge_2("cat", "dog") == 0 and metrics.rouge_1("", "dog") == 0


def test_the_best_reference_counts():
    assert metrics.score("squad_f1", "the city of Rome", ["Rome", "city of Rome"]) == 1
    assert metrics.score("squad_f1", "city", ["Rome", "city of Rome"]) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("metric", "reference"), [("last_number", "seven"), ("numeric_answer", "seven"), ("contains_any", " \n ")]
)
def test_a_reference_that_a_metric_cannot_use_is_refused(metric, reference):
    with pytest.raises(UserError, match=metric):
        metrics.METRICS[metric]("7", reference)


def test_token_f1_counts_shared_words_as_bags():
    assert metrics.token_f1("the cat, the hat", "The cat") == pytest.approx(2 * 2 / (4 + 2))
    assert metrics.token_f1("cat", "dog") == 0
    assert metrics.token_f1("", "") == 1


def test_rouge_l_of_the_published_example():
    """Lin (2004), section 3: "police killed the gunman" against two candidates; recall and precision are equal."""
    assert metrics.rouge_l("Police kill the gunman.", "police killed the gunman") == pytest.approx(3 / 4)
    assert metrics.rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)


def slow_common_subsequence(left, right) -> int:
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@given(WORDS, WORDS)
def test_rouge_l_equals_the_plain_dynamic_programme(left, right):
    total = len(left) + len(right)
    expected = 2 * slow_common_subsequence(left, right) / total if total else 1.0
    assert metrics.rouge_l(" ".join(left), " ".join(right)) == pytest.approx(expected)


@given(WORDS)
def test_every_metric_gives_one_to_the_reference_itself(words):
    text = "answer 7 " + " ".join(words)
    assert {metric(text, text) for metric in metrics.METRICS.values()} == {1.0}


def test_bleu_and_chrf_are_those_of_sacrebleu():
    """Counted by hand: 4 of 5 words, 2 of 4 pairs, 0 of 3 and 2 (smoothed: halves and quarters), the same length."""
    ours, theirs = "the cat sat on mats", "the cat lay on mats"
    precisions = (4 / 5, 2 / 4, 1 / (2 * 3), 1 / (4 * 2))
    assert metrics.bleu(ours, theirs) == pytest.approx(math.prod(precisions) ** 0.25)
    assert metrics.chrf(ours, theirs) == pytest.approx(sacrebleu.sentence_chrf(ours, [theirs]).score / 100)
    assert 0 < metrics.chrf("cat", "cats") < 1 and metrics.chrf("", "cats") == 0


def test_a_metric_without_its_package_is_refused_where_the_task_is_made(monkeypatch):
    monkeypatch.setitem(metrics.PACKAGES, "bleu", "a_package_that_is_not_here")
    with pytest.raises(UserError, match=r"'bleu' needs a_package.*jaxtune\[translation\]"):
        metrics.check_metric("bleu", "fr")
    with pytest.raises(UserError, match=r"task fr: no metric 'beu'.*did you mean bleu\?"):
        metrics.check_metric("beu", "fr")


def test_forgetting_is_what_untrained_tasks_lost():
    base, tuned = {"qa": 0.5, "math": 0.5, "code": 0.25}, {"qa": 0.75, "math": 0.25, "code": 0.5}
    assert metrics.forgetting(base, tuned, trained={"qa"}) == {"math": 0.25, "code": -0.25}


def test_scores_of_different_tasks_are_not_compared():
    with pytest.raises(UserError, match=r"only one of base and tuned model: \['code', 'math'\]"):
        metrics.forgetting({"qa": 1.0, "math": 1.0}, {"qa": 1.0, "code": 1.0}, trained=())
