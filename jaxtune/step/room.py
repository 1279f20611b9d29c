"""Room of a compiled step: sizes and terms that several runs share, whatever each of them needs itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """Sizes of a step's arrays, and terms of the loss that it computes.

    Sums are taken in the order that sizes give, so a run has the same bits only in the same room: runs that share a
    program record theirs, and a run that goes on or is replayed alone takes the recorded one.
    """

    capacity: int | None = None
    """Most positions with weight in one shard's rows of a micro-batch; None: all positions (see `LossSpec`)."""
    tokens: int | None = None
    """Most tokens in one shard's rows of a micro-batch; given, these rows are laid end to end without their padding
    (see `unpad`)."""
    label_smoothing: bool = False
    """Whether the loss has the term of label smoothing; a run that smooths by 0 then takes it times 0."""
    z_loss: bool = False
    """Whether the loss has the term of the z-loss."""
    rank: int | None = None
    """Columns of adapters; those beyond a run's own rank are zero and stay so."""

    def joined(self, other: "Room") -> "Room":
        """Room for what either has room for."""
        most = lambda a, b: None if a is None or b is None else max(a, b)
        return Room(
            capacity=most(self.capacity, other.capacity),
            tokens=most(self.tokens, other.tokens),
            label_smoothing=self.label_smoothing or other.label_smoothing,
            z_loss=self.z_loss or other.z_loss,
            rank=most(self.rank, other.rank),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Room":
        """The room that `to_json` wrote."""
        return cls(**plain)
