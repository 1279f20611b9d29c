"""The room of a run's program: what the run needs itself, and the room that it shares, as recorded in its folder."""

import pathlib

import jax

from jaxtune.model.attention.core import Backend
from jaxtune.parallel import sharding
from jaxtune.runs.documents import ProgramFile, read_as
from jaxtune.step.room import Room
from jaxtune.storage.documents import write_json
from jaxtune.train.resolution import Inputs

RECORD = "program.json"
"""File of a run folder with the room of a program that other runs share; without it the run's own plan decides."""


def own_room(inputs: Inputs, mesh: jax.sharding.Mesh) -> Room:
    """Room that a run needs itself: the most of any step of its plan, rounded up, and the terms of its loss."""
    loss, adapters = inputs.config.loss, inputs.config.lora
    return Room(
        capacity=capacity(inputs, mesh),
        tokens=strip_tokens(inputs, mesh),
        label_smoothing=loss.label_smoothing != 0,
        z_loss=loss.z_loss != 0,
        rank=None if adapters is None else adapters.rank,
    )


def room_of(inputs: Inputs, mesh: jax.sharding.Mesh) -> Room:
    """The room of the run's program: what it needs, and what it shares. On other devices it may need more."""
    own = own_room(inputs, mesh)
    return own if inputs.room is None else own.joined(inputs.room)


def read_room(run_dir: pathlib.Path) -> Room | None:
    """The room that a run folder records; None where the run's own plan decides."""
    path = run_dir / RECORD
    return Room.from_json(read_as(path, ProgramFile)["room"]) if path.is_file() else None


def write_room(run_dir: pathlib.Path, room: Room) -> None:
    """Record the room of a program that other runs share."""
    write_json(run_dir / RECORD, {"room": room.to_json()})


def capacity(inputs: Inputs, mesh: jax.sharding.Mesh) -> int:
    """Most weighted positions in one device's rows of a micro-batch, rounded up: similar plans share a program."""
    rows = inputs.micro_rows // sharding.row_shards(mesh)
    slots = rows * inputs.config.data.seq_len
    unit = max(1, slots // 8)
    most = slots if inputs.config.data.prompt_loss_weight else inputs.plan.max_loss_tokens(rows)
    return min(slots, -(-most // unit) * unit)


def strip_tokens(inputs: Inputs, mesh: jax.sharding.Mesh) -> int | None:
    """Most tokens in one device's rows of a micro-batch, rounded up; None where rows should stay as they are.

    Rows are laid end to end on CPUs, where attention in blocks skips other examples one by one. Accelerators want all
    rows at once, and their kernels know rows only. Rows whose tokens are split over devices stay so.
    """
    split = mesh.shape["sequence"] > 1 or mesh.devices.flat[0].platform != "cpu"
    if inputs.model.attention is not Backend.BLOCKWISE or split:
        return None
    rows = inputs.micro_rows // sharding.row_shards(mesh)
    slots = rows * inputs.config.data.seq_len
    unit = max(1, slots // 32)
    return min(slots, -(-inputs.plan.max_tokens(rows) // unit) * unit)
