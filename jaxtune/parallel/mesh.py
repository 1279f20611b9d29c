"""The mesh of devices: its axes, its sizes, and which device stands where."""

import dataclasses
import enum
import math
import os
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxtune.errors import Range, UserError, check_fields, first_line

AXES = ("trial", "data", "expert", "fsdp", "tensor", "sequence")


ROWS = ("data", "expert", "fsdp")
"""Mesh axes that split the rows of a batch."""
BETWEEN_SLICES = ("trial", "data")
"""Mesh axes that may run over TPU slices, whose network is slow: nothing crosses the first, and least the second."""


class Indivisible(enum.Enum):
    """Policy for a parameter dimension that the mesh axis does not divide."""

    ERROR = "error"
    REPLICATE = "replicate"  # every device of that axis holds the whole dimension


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis. One axis may be -1: all devices that the others leave."""

    trial: Annotated[int, Range(-1, 2**20)] = 1
    """Runs of a sweep that train side by side."""
    data: Annotated[int, Range(-1, 2**20)] = -1
    """Copies of the parameters, each with its share of the rows."""
    expert: Annotated[int, Range(-1, 2**20)] = 1
    """Parts into which the experts of mixtures are split; each has its share of the rows."""
    fsdp: Annotated[int, Range(-1, 2**20)] = 1
    """Parts into which parameters, gradients and optimizer state are split; each has its share of the rows."""
    tensor: Annotated[int, Range(-1, 2**20)] = 1
    """Parts into which heads, feed-forward and vocabulary are split."""
    sequence: Annotated[int, Range(-1, 2**20)] = 1
    """Parts into which the tokens of a row are split."""
    devices: Annotated[int, Range(-1, 2**20)] = -1
    """How many devices to use; -1: all."""
    indivisible: Indivisible = Indivisible.ERROR
    """What to do with a parameter dimension that its mesh axis does not divide: 2 key/value heads over tensor=4."""

    def __post_init__(self):
        check_fields(self, "mesh")
        sizes = {axis: getattr(self, axis) for axis in AXES}
        wrong = [f"{axis}={n}" for axis, n in {**sizes, "devices": self.devices}.items() if n != -1 and n < 1]
        if wrong:
            raise UserError(f"mesh sizes must be at least 1, or -1 for what is left; got {', '.join(wrong)}")
        if list(sizes.values()).count(-1) > 1:
            raise UserError(f"only one mesh axis may be -1, got {sizes}")


def all_devices() -> list[Any]:
    """The devices of the job. Raises UserError where JAX finds none of the platform that was asked for."""
    try:
        return list(jax.devices())
    except (RuntimeError, AssertionError) as error:  # which of them depends on what is installed
        asked = os.environ.get("JAX_PLATFORMS")
        wanted = f"JAX_PLATFORMS={asked} asks for devices that JAX cannot use here" if asked else "JAX finds no device"
        reason = first_line(error) if str(error).strip() else "none of that platform was found"
        raise UserError(f"{wanted}: {reason}. Unset it, or install JAX for that platform") from error


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `AXES`, all of type Auto (the compiler places the collectives).

    Devices joined by a data-centre network (TPU slices) are split along `trial`, or along `data`, which of the others
    communicates least.
    """
    devices = all_devices() if devices is None else list(devices)
    if config.devices > len(devices):
        raise UserError(f"mesh.devices is {config.devices}, but there are {len(devices)} devices")
    devices = devices[: config.devices] if config.devices != -1 else devices
    shape = mesh_shape(config, len(devices))
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Sizes of `AXES` for that many devices, the -1 filled in."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    known = math.prod(n for n in sizes.values() if n != -1)
    free = [axis for axis, n in sizes.items() if n == -1]
    if num_devices % known or (not free and known != num_devices):
        given = ", ".join(f"{axis}={n}" for axis, n in sizes.items() if n != 1)
        raise UserError(
            f"the mesh ({given or 'all axes 1'}) needs {'a multiple of ' if free else ''}{known} devices, "
            f"but there are {num_devices}; change the axes, or choose mesh.devices"
        )
    return tuple(num_devices // known if n == -1 else n for n in sizes.values())


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices in mesh order: by network for TPUs, by process and number for others.

    The nodes of a GPU job have a `slice_index` too, but their network is one: any axis may run over nodes. By process
    and number, the last axes stay inside a node, where links are fastest.
    """
    if devices[0].platform != "tpu":
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return np.array(ordered).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    split = [axis for axis in BETWEEN_SLICES if shape[AXES.index(axis)] % slices == 0]
    if not split:
        sizes = " and ".join(f"mesh.{axis} is {shape[AXES.index(axis)]}" for axis in BETWEEN_SLICES)
        raise UserError(f"{sizes}; with {slices} TPU slices one of them must be a multiple of {slices}")
    place = AXES.index(split[0])
    within = tuple(n // slices if i == place else n for i, n in enumerate(shape))
    across = tuple(slices if i == place else 1 for i in range(len(shape)))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def on_one_device() -> bool:
    """Whether the program being traced has one device, so that nothing in it is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def sequence_shards() -> int:
    """Parts into which the program being traced splits the tokens of a row; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["sequence"]
