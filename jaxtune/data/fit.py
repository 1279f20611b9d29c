"""Length policy: examples that are longer than a row, or have nothing to train on, are dropped, cut or refused."""

import dataclasses
import enum

import numpy as np
from jaxtyping import Bool

from jaxtune.batch import Example
from jaxtune.errors import UserError


class LengthPolicy(enum.Enum):
    """Policy for an example that is longer than a row."""

    ERROR = "error"
    DROP = "drop"
    TRUNCATE_PROMPT = "truncate_prompt"  # from the left; BOS is kept
    TRUNCATE_RESPONSE = "truncate_response"  # from the right; the end-of-turn token goes with the cut text


class FitOutcome(enum.Enum):
    """Verdict of the length policy on an example; the value is the reason to report."""

    KEPT = "kept"
    KEPT_IN_PART = "kept, but turns shown otherwise than they would be generated carry no weight"
    PROMPT_TRUNCATED = "prompt truncated from the left"
    RESPONSE_TRUNCATED = "truncated from the right"
    TOO_LONG = "dropped: longer than the maximum length"
    RESPONSE_TOO_LONG = "dropped: the last response alone is longer than the maximum length"
    NOTHING_TRAINS = "dropped: no token carries loss weight"
    NOTHING_TRAINS_AFTER_CUT = "dropped: the response begins beyond the maximum length"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An example after the length policy; None where it was dropped."""

    example: Example | None
    outcome: FitOutcome


def fit_length(
    example: Example,
    max_length: int,
    policy: LengthPolicy,
    *,
    prompt_loss_weight: float = 0.0,
    bos_id: int | None = None,
) -> Fitted:
    """Bring an example to at most `max_length` tokens, or drop it.

    An example in which nothing trains (no weight above zero past its first token, which is nobody's target) is dropped
    under every policy. `prompt_loss_weight` is what the example was rendered with: tokens of another weight are
    response.

    `TRUNCATE_PROMPT` keeps the end, after BOS if the example begins with it. A response that loses its beginning no
    longer trains (it weighs `prompt_loss_weight`); if that is the last one, the example is dropped.
    `TRUNCATE_RESPONSE` keeps the beginning: the end-of-turn token is cut off, so stopping in mid-answer is not taught.
    `ERROR` raises `UserError`.
    """
    if not _trains(example):
        return Fitted(None, FitOutcome.NOTHING_TRAINS)
    length = len(example.tokens)
    if length <= max_length:
        return Fitted(example, FitOutcome.KEPT)
    if policy is LengthPolicy.ERROR:
        raise UserError(
            f"an example has {length} tokens, more than the maximum length {max_length}. Raise the length, shorten the "
            "example, or choose a length policy: drop, truncate_prompt or truncate_response."
        )
    if policy is LengthPolicy.DROP:
        return Fitted(None, FitOutcome.TOO_LONG)
    if policy is LengthPolicy.TRUNCATE_RESPONSE:
        cut = Example(tokens=example.tokens[:max_length], loss_weights=example.loss_weights[:max_length])
        return (
            Fitted(cut, FitOutcome.RESPONSE_TRUNCATED)
            if _trains(cut)
            else Fitted(None, FitOutcome.NOTHING_TRAINS_AFTER_CUT)
        )
    return _cut_prompt(example, max_length, prompt_loss_weight, bos_id)


def _cut_prompt(example: Example, max_length: int, prompt_loss_weight: float, bos_id: int | None) -> Fitted:
    kept_bos = 1 if bos_id is not None and example.tokens[0] == bos_id else 0
    start = len(example.tokens) - (max_length - kept_bos)
    response = _is_response(example, prompt_loss_weight)
    last_start = _start_of_last_run(response)
    if last_start < start:
        return Fitted(None, FitOutcome.RESPONSE_TOO_LONG)
    weights = example.loss_weights[start:].copy()
    broken = 0
    while response[start - 1] and response[start + broken]:
        broken += 1
    weights[:broken] = prompt_loss_weight
    tokens = np.concatenate([example.tokens[:kept_bos], example.tokens[start:]])
    weights = np.concatenate([example.loss_weights[:kept_bos], weights])
    weights[0] = 0.0
    cut = Example(tokens=tokens, loss_weights=weights)
    return Fitted(cut, FitOutcome.PROMPT_TRUNCATED) if _trains(cut) else Fitted(None, FitOutcome.RESPONSE_TOO_LONG)


def _trains(example: Example) -> bool:
    return bool((example.loss_weights[1:] > 0).any())


def _is_response(example: Example, prompt_loss_weight: float) -> Bool[np.ndarray, " length"]:
    return example.loss_weights != np.float32(prompt_loss_weight)


def _start_of_last_run(response: Bool[np.ndarray, " length"]) -> int:
    """Where the last run of True begins; the length of the array if there is none."""
    inside = np.flatnonzero(response[1:])
    if not len(inside):
        return len(response)
    last = int(inside[-1]) + 1
    breaks = np.flatnonzero(~response[:last])
    return int(breaks[-1]) + 1 if len(breaks) else 0
