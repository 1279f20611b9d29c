"""Pace of a job: items per second, and the seconds that are left."""

import collections
import math
from collections.abc import Callable

Clock = Callable[[], float]

WINDOW = 60.0
"""Seconds of history that a rate is taken from."""
LEAST_REPORTS = 20
"""Reports that it is taken from at least."""


class Pace:
    """Items per second over the last minute or the last twenty reports, and the seconds left.

    The clock starts at the first report, not at the start of the job, so compiling the first step is not counted.
    Neither is what `pause` leaves out.
    """

    def __init__(self, total: int, clock: Clock):
        self.total = total
        self.done = 0
        self._clock = clock
        self._paused = 0.0
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def report(self, done: int) -> None:
        """`done` items of the total are finished now."""
        self.done = done
        self._seen.append((self._clock() - self._paused, done))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW and len(self._seen) > LEAST_REPORTS:
            self._seen.popleft()

    def pause(self, seconds: float) -> None:
        """The last seconds were none of this job's: a validation between two steps, a checkpoint."""
        self._paused += seconds

    @property
    def rate(self) -> float:
        """Items per second; NaN before the second report."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return math.nan
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start)

    @property
    def seconds_left(self) -> float:
        """Seconds until the total at the present rate; NaN when unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 else math.nan
