"""Agreement of tasks' gradients, free of the shrinkage that the noise of batches brings to a raw cosine.

A gradient of a batch is the task's own gradient plus noise. The squared norm of a mean gradient holds the noise, the
product of two different batches does not, so every product here is one of different batches: the mean over all ways to
split the batches into two halves.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Cosine of two tasks' gradients with its jackknife interval over batches (95 %)."""

    value: float
    """NaN where a task's gradient cannot be told from noise."""
    low: float
    high: float
    raw: float
    """Cosine of the mean gradients, which noise draws towards 0."""
    reliable: bool
    """Whether both tasks' squared norms are clearly above 0."""


def cosine(gram: Float[np.ndarray, "tasks batches tasks batches"], first: int, second: int) -> Cosine:
    """The cosine of two tasks from the inner products of all their batches' gradients."""
    reliable = all(squared_norm(gram, task)[1] > 0 for task in (first, second))
    found = lambda kept: _cosine(gram, first, second, kept)
    value, low, high = jackknife(found, gram.shape[1])
    mean = gram.mean(axis=(1, 3))
    raw = float(mean[first, second] / math.sqrt(mean[first, first] * mean[second, second]))
    return Cosine(value=value, low=low, high=high, raw=raw, reliable=reliable)


def squared_norm(gram: Float[np.ndarray, "tasks batches tasks batches"], task: int) -> tuple[float, float, float]:
    """Squared norm of a task's gradient without its noise, and its jackknife interval."""
    return jackknife(lambda kept: _product(gram, task, task, kept), gram.shape[1])


def _product(gram: Float[np.ndarray, "t b t b"], first: int, second: int, kept: Float[np.ndarray, " b"]) -> float:
    """Mean inner product over pairs of different batches among those kept."""
    block = gram[first, :, second, :]
    pairs = np.outer(kept, kept) * (1 - np.eye(len(kept)))
    return float((block * pairs).sum() / pairs.sum())


def _cosine(gram: Float[np.ndarray, "t b t b"], first: int, second: int, kept: Float[np.ndarray, " b"]) -> float:
    squares = _product(gram, first, first, kept) * _product(gram, second, second, kept)
    both = (_product(gram, first, second, kept) + _product(gram, second, first, kept)) / 2
    return both / math.sqrt(squares) if squares > 0 else math.nan


def jackknife(statistic: Callable[[Float[np.ndarray, " b"]], float], batches: int) -> tuple[float, float, float]:
    """A statistic of all batches with Student's 95 % interval from leaving out one batch at a time."""
    value = statistic(np.ones(batches))
    without = np.array([statistic(1 - np.eye(batches)[one]) for one in range(batches)])
    error = math.sqrt((batches - 1) / batches * float(np.sum((without - without.mean()) ** 2)))
    half = float(stdtrit(batches - 1, 0.975)) * error
    return value, value - half, value + half


def sketch(vector: Float[np.ndarray, " d"], size: int, *, seed: int = 0) -> Float[np.ndarray, " size"]:
    """A vector thrown onto `size` numbers, each entry with a random sign (count sketch).

    Inner products of sketches are unbiased, with a standard deviation of about |a| |b| / sqrt(size).
    """
    rng = np.random.default_rng([seed, len(vector)])
    place = rng.integers(0, size, len(vector), dtype=np.int64)
    sign = rng.integers(0, 2, len(vector), dtype=np.int8) * 2.0 - 1.0
    return np.bincount(place, weights=vector * sign, minlength=size)


def rank_agreement(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation over pairs where both are finite; NaN with fewer than three."""
    kept = np.isfinite(first) & np.isfinite(second)
    return float(np.asarray(stats.spearmanr(first[kept], second[kept]))[0]) if kept.sum() > 2 else math.nan
