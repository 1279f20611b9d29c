"""Scores of text against SQuAD's script, rouge-score and sacrebleu."""

import collections
import random
import re

import pytest

from jaxtune.tasks import metrics

pytestmark = pytest.mark.parity

WORDS = ["the", "a", "Cat", "sat", "mat.", "on", "An", "hat,", "1912", "e-mail", "it's", "dog", "(two)", "U.S."]


def texts(count):
    draws = random.Random(0)
    return [" ".join(draws.choices(WORDS, k=draws.randint(0, 9))) for _ in range(count)]


PAIRS = list(zip(texts(400)[:200], texts(400)[200:], strict=True))


def official_words(s):
    """`normalize_answer` of SQuAD's evaluate-v2.0.py, https://worksheets.codalab.org, written down from its text."""
    import string

    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def official_f1(gold, said):
    """`compute_f1` of the same script."""
    gold, said = official_words(gold).split(), official_words(said).split()
    if not gold or not said:
        return int(gold == said)
    same = sum((collections.Counter(gold) & collections.Counter(said)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(said), 1.0 * same / len(gold)
    return (2 * precision * recall) / (precision + recall)


def test_squad_scores_are_those_of_its_script():
    for ours, theirs in PAIRS:
        assert " ".join(metrics.squad_words(ours)) == official_words(ours)
        assert metrics.squad_em(ours, theirs) == int(official_words(ours) == official_words(theirs))
        assert metrics.squad_f1(ours, theirs) == pytest.approx(official_f1(theirs, ours))


def test_rouge_is_that_of_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    compared = 0
    for ours, theirs in PAIRS:
        if len(metrics._words(theirs)) < 2 or not metrics._words(ours):
            continue  # where one side has no words or pairs, it gives 0 also to equal texts
        found = scorer.score(theirs, ours)
        for name, metric in (("rouge1", metrics.rouge_1), ("rouge2", metrics.rouge_2), ("rougeL", metrics.rouge_l)):
            assert metric(ours, theirs) == pytest.approx(found[name].fmeasure), (name, ours, theirs)
        compared += 1
    assert compared > 100


def test_bleu_and_chrf_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    for ours, theirs in PAIRS:
        if ours.strip() == theirs.strip():
            continue
        assert metrics.bleu(ours, theirs) == pytest.approx(sacrebleu.sentence_bleu(ours, [theirs]).score / 100)
        assert metrics.chrf(ours, theirs) == pytest.approx(sacrebleu.sentence_chrf(ours, [theirs]).score / 100)
