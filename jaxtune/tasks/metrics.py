"""Scores of generated text against references, and what a change of scores says about forgetting.

A metric maps (prediction, reference) to a number in [0, 1]. Prediction and reference are stripped of whitespace at both
ends first; each metric says what else it disregards. Where a question has several references, `score` takes the best.

Words are runs of Unicode letters, digits and underscores, case folded: "Straße, naïve" has two. The `rouge-score`
package keeps only runs of a-z and 0-9 and would see four ("stra", "e", "na", "ve"), and it may stem; so numbers of
`rouge_1`, `rouge_2`, `rouge_l` and `token_f1` compare with its numbers on English text without accents, and not beyond.
"""

import collections
import decimal
import fractions
import importlib.util
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtune.errors import UserError, did_you_mean


def exact_match(prediction: str, reference: str) -> float:
    """1.0 if both are the same string, whitespace at either end aside; nothing else is disregarded."""
    return float(prediction.strip() == reference.strip())


def contains_any(prediction: str, reference: str) -> float:
    """1.0 if any line of the reference occurs in the prediction, letter case aside.

    "The capital is Paris." contains one of "Paris\\nCity of Paris". Raises UserError if the reference is blank.
    """
    accepted = [line.strip().casefold() for line in reference.splitlines() if line.strip()]
    if not accepted:
        raise UserError("contains_any: the reference is blank; give one accepted answer a line")
    text = prediction.casefold()
    return float(any(answer in text for answer in accepted))


_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])-?\.\d+")


def last_number(prediction: str, reference: str) -> float:
    """1.0 if the last number of the prediction equals the last number of the reference in value: "1,200.0" is "1200".

    A sign counts where no letter or digit precedes it. Raises UserError if the reference holds no number.
    """
    expected = _NUMBER.findall(reference)
    if not expected:
        raise UserError(f"last_number: the reference holds no number: {reference!r}; use another metric for this task")
    found = _NUMBER.findall(prediction)
    value = lambda text: decimal.Decimal(text.replace(",", ""))
    return float(bool(found) and value(found[-1]) == value(expected[-1]))


_QUANTITY = re.compile(
    r"(?<![\w.])-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\w))?(?:\s?/\s?\d+(?![\d/.]))?"
)
_TOLERANCE = fractions.Fraction(1, 10**6)


def numeric_answer(prediction: str, reference: str) -> float:
    """1.0 if the prediction's answer equals the reference's in value, to a millionth of it: "1/2" is "0.5" is "5e-1".

    The answer is the last number of the last `\\boxed{...}`, else of what follows the last `####` (GSM8K,
    arXiv:2110.14168), else of the text. Units, currency and percent signs are disregarded: "50%" is "50". Raises
    UserError if the reference holds no number.
    """
    expected, found = _quantity(reference), _quantity(prediction)
    if expected is None:
        raise UserError(f"numeric_answer: the reference holds no number: {reference!r}; use another metric")
    if found is None:
        return 0.0
    return float(abs(found - expected) <= _TOLERANCE * max(abs(found), abs(expected)))


def _quantity(text: str) -> fractions.Fraction | None:
    """The value of a text's answer; None where it has no number."""
    boxed = re.findall(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text)
    last = boxed[-1] if boxed else text.rpartition("####")[2] if "####" in text else text
    last = re.sub(r"\\d?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", last)
    found = _QUANTITY.findall(last.replace("\N{MINUS SIGN}", "-"))
    if not found:
        return None
    over, _, under = re.sub(r"[\s,]", "", found[-1]).partition("/")
    value = fractions.Fraction(over)
    return value if not under else value / int(under) if int(under) else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _f1(overlap: int, predicted: int, expected: int) -> float:
    """Harmonic mean of overlap / predicted and overlap / expected; 1.0 where both sides are empty."""
    return 1.0 if predicted == expected == 0 else 2.0 * overlap / (predicted + expected)


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words the two share, as bags (SQuAD, arXiv:1606.05250). Case and punctuation aside; articles count."""
    ours, theirs = collections.Counter(_words(prediction)), collections.Counter(_words(reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(text: str) -> list[str]:
    """Words as SQuAD's evaluate-v2.0.py compares them: in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def squad_em(prediction: str, reference: str) -> float:
    """SQuAD's exact match: 1.0 if both have the same words, by the official normalisation (`squad_words`)."""
    return float(squad_words(prediction) == squad_words(reference))


def squad_f1(prediction: str, reference: str) -> float:
    """SQuAD's F1 of the words the two share, as bags, by the official normalisation (`squad_words`).

    Where either has no words, it is 1.0 if neither has (the rule of version 2.0).
    """
    ours, theirs = collections.Counter(squad_words(prediction)), collections.Counter(squad_words(reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_1(prediction: str, reference: str) -> float:
    """ROUGE-1: F1 of the words the two share, as bags (Lin 2004). Case and punctuation aside, no stemming."""
    return _rouge_n(prediction, reference, 1)


def rouge_2(prediction: str, reference: str) -> float:
    """ROUGE-2: F1 of the pairs of neighbouring words the two share (Lin 2004); pairs of one-word texts are none."""
    return _rouge_n(prediction, reference, 2)


def _rouge_n(prediction: str, reference: str, n: int) -> float:
    ours, theirs = _words(prediction), _words(reference)
    if ours == theirs:
        return 1.0
    runs = lambda words: collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    left, right = runs(ours), runs(theirs)
    return _f1((left & right).total(), left.total(), right.total()) if left or right else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004). Case and punctuation aside, no stemming."""
    ours, theirs = _words(prediction), _words(reference)
    return _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))


def _common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, a row of the dynamic programme at a time in the bits of an integer.

    Bit i of the row is 0 where the length grows at left[i] (Hyyro 2004).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << i
    row = full = (1 << len(left)) - 1
    for word in right:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(left) - row.bit_count()


def bleu(prediction: str, reference: str) -> float:
    """BLEU of one answer by sacrebleu: its tokens (13a), up to four in a row, fewer where the answer is shorter.

    A mean over answers is not the BLEU of a corpus, whose counts are summed before they are divided. Needs the extra
    `translation`.
    """
    from sacrebleu.metrics.bleu import BLEU

    return _share(BLEU(effective_order=True).sentence_score, prediction, reference)


def chrf(prediction: str, reference: str) -> float:
    """chrF by sacrebleu: F2 of up to six characters in a row (Popović 2015). Needs the extra `translation`."""
    from sacrebleu.metrics.chrf import CHRF

    return _share(CHRF().sentence_score, prediction, reference)


def _share(score: Callable[[str, list[str]], Any], prediction: str, reference: str) -> float:
    """A score of sacrebleu, which is in percent, as a share; 1.0 where both sides are empty."""
    ours, theirs = prediction.strip(), reference.strip()
    return 1.0 if ours == theirs else min(float(score(ours, [theirs]).score) / 100, 1.0)


def score(name: str, prediction: str, references: Sequence[str]) -> float:
    """A metric of a prediction, of its best reference where there are several (as SQuAD's script takes it)."""
    return max(METRICS[name](prediction, reference) for reference in references)


def corpus_score(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU or chrF of a whole test set by sacrebleu, as a share: counts are summed over all answers, then divided.

    `references` are the accepted answers of each prediction. Needs the extra `translation`.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = {"corpus_bleu": BLEU, "corpus_chrf": CHRF}[name]()
    most = max(map(len, references))
    columns = [[texts[i].strip() if i < len(texts) else None for texts in references] for i in range(most)]
    return float(metric.corpus_score([text.strip() for text in predictions], columns).score) / 100  # pyright: ignore


def check_metric(name: str, task: str) -> None:
    """Raise UserError where there is no such metric, or the package that computes it is not installed."""
    if name not in METRICS and name not in CORPUS:
        raise UserError(f"task {task}: no metric {name!r}; known: {sorted(METRICS)}{did_you_mean(name, METRICS)}")
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"task {task}: the metric {name!r} needs {package}: pip install 'jaxtune[translation]'")


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains_any": contains_any,
    "last_number": last_number,
    "numeric_answer": numeric_answer,
    "token_f1": token_f1,
    "squad_em": squad_em,
    "squad_f1": squad_f1,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
}
"""The metrics a task may name."""

CORPUS = ("corpus_bleu", "corpus_chrf")
"""Metrics of a whole test set, which no mean over its answers gives (`corpus_score`)."""

PACKAGES: dict[str, str] = dict.fromkeys(("bleu", "chrf", *CORPUS), "sacrebleu")
"""Metric -> the package that computes it, where that is an extra."""


def forgetting(base: Mapping[str, float], tuned: Mapping[str, float], trained: Collection[str]) -> dict[str, float]:
    """Base score minus tuned score of each task that was not trained on; positive is a loss.

    Both must come from the same prompts and decoding. Raises UserError if their tasks differ.
    """
    odd = sorted(base.keys() ^ tuned.keys())
    if odd:
        raise UserError(f"tasks scored for only one of base and tuned model: {odd}; score both on the same tasks")
    return {task: base[task] - tuned[task] for task in base if task not in trained}
