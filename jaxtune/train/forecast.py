"""Forecast of the seconds that a run still spends besides its training steps, from how long those things took."""

import dataclasses
import time
from collections.abc import Callable
from typing import TypeVar

from jaxtune.train.decisions import Rules

Result = TypeVar("Result")


@dataclasses.dataclass
class Forecast:
    """Seconds of a validation, of a checkpoint, and of the answers to the test questions, each as last measured."""

    validation: float = 0.0
    saving: float = 0.0
    answers: float = 0.0

    def timed(self, part: str, work: Callable[[], Result]) -> Result:
        """Do the work; its seconds are those of the part."""
        started = time.monotonic()
        result = work()
        setattr(self, part, time.monotonic() - started)
        return result

    def seconds(self, rules: Rules, settled: int) -> float:
        """Seconds beside the steps until the run ends at its last step, when `settled` updates have been dealt with.

        Early stopping is not foreseen. The end scores the answers, and the losses of seen examples, once more.
        """
        validations = times(rules.validate_every or 0, settled, rules.total) if rules.validate_every is not None else 0
        at_end = self.validation + self.answers if settled < rules.total else 0.0
        saves = times(rules.save_every, settled, rules.total)
        return validations * self.validation + saves * self.saving + at_end


def times(every: int, settled: int, total: int) -> int:
    """Occasions after `settled` of `total` steps of what is done every so many steps and after the last; 0: only then.

    >>> times(40, 40, 150), times(0, 3, 10), times(5, 10, 10)
    (3, 1, 0)
    """
    if settled >= total:
        return 0
    regular = total // every - settled // every if every else 0
    return regular + (1 if not every or total % every else 0)
