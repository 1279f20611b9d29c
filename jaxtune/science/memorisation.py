"""Memorisation: what repeats of an example change on it beside examples of the same kind that were never trained."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxtune.science.contrasts import Contrast, family, over_seeds


def memorised(by_repeats: Mapping[int, Sequence[float]]) -> dict[int, Contrast]:
    """mem(r) = number of bin 0 - number of bin r, over seeds, adjusted as one family (arXiv 2112.12938, by bins).

    `by_repeats`: repeats -> the bin's loss under each seed, nats per token. For a score, which memorising raises, turn
    its sign. Seeds in which a bin has no finite number are left out of it. ValueError without the control, bin 0.
    """
    if 0 not in by_repeats:
        raise ValueError("a ladder needs bin 0, the examples that are never trained")
    control = np.asarray(by_repeats[0], float)
    found = {}
    for repeats, values in sorted(by_repeats.items()):
        if repeats:
            difference = control - np.asarray(values, float)
            found[repeats] = over_seeds([float(one) for one in difference if np.isfinite(one)])
    return dict(zip(found, family(list(found.values())), strict=True))


def exposure(nll: Float[np.ndarray, "items answers"], true: Int[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """Exposure of each item in bits: log2 |R| - log2 rank of its true answer among all answers (arXiv 1802.08232).

    `nll[i, r]` is the negative log-likelihood of answer r to item i, summed over its tokens, nats; `true[i]` the number
    of the right one. Answers of equal likelihood share the mean of their ranks. A model that knows nothing has log2(e)
    = 1.44 in the mean over many answers (1.38 of 64).
    """
    own = np.take_along_axis(nll, true[:, None], axis=1)
    rank = 1 + (nll < own).sum(axis=1) + ((nll == own).sum(axis=1) - 1) / 2
    return np.log2(nll.shape[1]) - np.log2(rank)
