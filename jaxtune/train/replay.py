"""Steps of a run trained again, beside what the run logged and saved. All processes of a job train them together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxtune.batch import Batch
from jaxtune.step.update import StepMetrics, TrainState
from jaxtune.storage.documents import number
from jaxtune.terminal.display import Phase
from jaxtune.train.session import Session

TOLERANCE = 1e-4
"""Largest relative difference of a replayed loss where code, libraries or hardware differ from the run's."""


def start_step(saved: Sequence[int], logged: int, steps: int) -> int:
    """From where to replay: so that another checkpoint is reached, if possible, else the latest that leaves room."""
    starts = [0, *saved]
    reaching = [a for a in starts if any(a < b <= a + steps for b in saved)]
    if reaching:
        return max(reaching, key=lambda start: (min(steps, logged - start), start))
    return max(start for start in starts if start + steps <= logged or start == 0)


def differences(
    session: Session, state: TrainState, rows: Mapping[int, Mapping[str, Any]], states: Mapping[int, TrainState],
    last: int, *, exact: bool,
) -> list[str]:  # fmt: skip
    """Train from `state` up to step `last`; what differs from the logged row of each step and from saved states."""
    start, lines = int(state.step), []
    with Phase("replay", last - start, unit="steps") as phase:
        for step, batch in zip(range(start, last), stream(session, start, last), strict=True):
            state, metrics = session.program.train_step(state, session.base.frozen, batch, session.numbers_at(step))
            lines += compare_row(rows[step + 1], jax.device_get(metrics), exact=exact)
            if step + 1 in states:
                lines += compare_state(step + 1, state, states[step + 1], exact=exact)
            phase.advance()
    return lines


def stream(session: Session, start: int, stop: int) -> Iterator[Batch]:
    """Device batches of the steps [start, stop)."""
    batches = session.train_batches(start)
    try:
        for _ in range(start, stop):
            yield session.put(next(batches))
    finally:
        batches.close()


def compare_row(row: Mapping[str, Any], metrics: StepMetrics, *, exact: bool) -> list[str]:
    """Differences between a logged step and its replay."""
    lines = []
    for name, value in (("loss", float(metrics.loss)), ("grad_norm", float(metrics.grad_norm))):
        limit = 0.0 if exact else TOLERANCE
        logged = number(row.get(name))
        if not abs(value - logged) <= limit * abs(logged):
            lines.append(f"step {row['step']}: {name} was {logged!r}, the replay has {value!r}")
    return lines


def compare_state(step: int, replayed: TrainState, saved: TrainState, *, exact: bool) -> list[str]:
    """Leaves of the state that differ from the checkpoint's."""
    different, worst = [], 0.0
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(replayed), jax.tree.leaves(saved), strict=True):
        pairs = zip(parts_here(ours), parts_here(theirs), strict=True)
        gaps, sizes = zip(*((np.abs(a - b), np.abs(b)) for a, b in pairs), strict=True)
        gap = max(float(np.max(part, initial=0.0)) for part in gaps)
        if gap > (0.0 if exact else TOLERANCE * max(1.0, *(float(np.max(part, initial=0.0)) for part in sizes))):
            different.append(jax.tree_util.keystr(path, simple=True, separator="."))
            worst = max(worst, gap)
    if not different:
        return []
    return [f"state after step {step}: {len(different)} leaves differ by up to {worst:g}: {', '.join(different[:5])}"]


def parts_here(leaf: Any) -> list[Float[np.ndarray, "..."]]:
    """The parts of a leaf that this process holds: all of it where it is alone."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return [np.asarray(leaf, np.float64)]
    return [np.asarray(shard.data, np.float64) for shard in leaf.addressable_shards]
