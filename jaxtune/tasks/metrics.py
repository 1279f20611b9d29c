"""Scores of generated text against a reference, and what a change of scores says about forgetting.

A metric maps (prediction, reference) to a number in [0, 1]. Prediction and reference are stripped of whitespace at both
ends first; each metric says what else it disregards.

Words are runs of Unicode letters, digits and underscores, case folded: "Straße, naïve" has two. The `rouge-score`
package keeps only runs of a-z and 0-9 and would see four ("stra", "e", "na", "ve"), and it may stem; so numbers of
`rouge_l` and `token_f1` compare with its numbers on English text without accents, and not beyond.
"""

import collections
import decimal
import importlib.util
import re
from collections.abc import Callable, Collection, Mapping
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


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _f1(overlap: int, predicted: int, expected: int) -> float:
    """Harmonic mean of overlap / predicted and overlap / expected; 1.0 where both sides are empty."""
    return 1.0 if predicted == expected == 0 else 2.0 * overlap / (predicted + expected)


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words the two share, as bags (SQuAD, arXiv:1606.05250). Case and punctuation aside; articles count."""
    ours, theirs = collections.Counter(_words(prediction)), collections.Counter(_words(reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


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


def check_metric(name: str, task: str) -> None:
    """Raise UserError where there is no such metric, or the package that computes it is not installed."""
    if name not in METRICS:
        raise UserError(f"task {task}: no metric {name!r}; known: {sorted(METRICS)}{did_you_mean(name, METRICS)}")
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"task {task}: the metric {name!r} needs {package}: pip install 'jaxtune[translation]'")


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains_any": contains_any,
    "last_number": last_number,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
}
"""The metrics a task may name."""

PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu"}
"""Metric -> the package that computes it, where that is an extra."""


def forgetting(base: Mapping[str, float], tuned: Mapping[str, float], trained: Collection[str]) -> dict[str, float]:
    """Base score minus tuned score of each task that was not trained on; positive is a loss.

    Both must come from the same prompts and decoding. Raises UserError if their tasks differ.
    """
    odd = sorted(base.keys() ^ tuned.keys())
    if odd:
        raise UserError(f"tasks scored for only one of base and tuned model: {odd}; score both on the same tasks")
    return {task: base[task] - tuned[task] for task in base if task not in trained}
