"""The place of examples in packed rows: one example, or all of a window as arrays."""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """One example in a row."""

    task: str
    task_id: int
    example: int
    """Number among the task's usable examples."""
    template: int
    epoch: int
    use: int
    """Uses of the task before this one."""
    offset: int
    """First token's place in the row."""
    length: int
    """Tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The examples of one window, by row and by place in the row. `row` counts from the window's first row."""

    row: Int[np.ndarray, " k"]
    offset: Int[np.ndarray, " k"]
    length: Int[np.ndarray, " k"]
    loss_length: Int[np.ndarray, " k"]
    response_length: Int[np.ndarray, " k"]
    task: Int[np.ndarray, " k"]
    example: Int[np.ndarray, " k"]
    template: Int[np.ndarray, " k"]
    epoch: Int[np.ndarray, " k"]
    use: Int[np.ndarray, " k"]
