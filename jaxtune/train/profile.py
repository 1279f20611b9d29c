"""A profiler trace of some training steps, for TensorBoard or Perfetto."""

import contextlib
import pathlib
from typing import Any

import jax


class StepTrace(contextlib.AbstractContextManager):
    """Records the steps from the first to the last of `steps`, counted from 1; None records nothing.

    Every process writes into a folder of its own. A run that is resumed between the two steps records the rest of them;
    one that ends there, in whatever way, keeps what was recorded.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self.steps, self.folder = steps, folder / f"process_{jax.process_index()}"
        self.recording = False

    def before(self, step: int) -> None:
        """Call before the work of a step, so that the wait for its batch is recorded too."""
        if self.steps is not None and not self.recording and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.recording = True

    def after(self, step: int, results: Any) -> None:
        """Call with the arrays that a step returned; the devices may still be computing them."""
        if self.recording and self.steps is not None and step >= self.steps[1]:
            jax.block_until_ready(results)
            self.stop()

    def stop(self) -> None:
        """End the recording, if one runs, and write it."""
        if self.recording:
            self.recording = False
            jax.profiler.stop_trace()

    def __exit__(self, *_: object) -> None:
        self.stop()
