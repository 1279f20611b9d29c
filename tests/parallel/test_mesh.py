"""Which device stands where in a mesh, for devices that are not here."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtune.errors import UserError
from jaxtune.parallel import mesh
from jaxtune.parallel.mesh import AXES, MeshConfig, mesh_shape


@dataclasses.dataclass(frozen=True)
class Device:
    """What arranging asks a device for."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "H100"


def nodes(count: int, each: int = 8) -> list[Device]:
    """GPUs of a job: XLA gives every node a slice of its own."""
    return [
        Device(id=node * each + i, process_index=node, slice_index=node) for node in range(count) for i in range(each)
    ]


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=1, fsdp=32), MeshConfig(data=2, fsdp=16), MeshConfig(data=1, fsdp=4, tensor=8), MeshConfig()],
    ids=lambda config: f"data{config.data}-fsdp{config.fsdp}-tensor{config.tensor}",
)
def test_any_axis_may_run_over_gpu_nodes_and_the_last_ones_stay_inside_a_node(config):
    devices = nodes(4)
    placed = mesh._arrange(mesh_shape(config, 32), [devices[i] for i in np.random.default_rng(0).permutation(32)])
    assert placed.shape == mesh_shape(config, 32)
    assert [device.id for device in placed.flat] == list(range(32))
    inside = placed.reshape(-1, placed.shape[AXES.index("tensor")])
    assert all(len({device.process_index for device in group}) == 1 for group in inside)


@pytest.mark.parametrize(
    ("shape", "across"),
    [((1, 4, 4), (1, 2, 1)), ((2, 1, 8), (2, 1, 1)), ((4, 2, 2), (2, 1, 1)), ((3, 2, 4), (1, 2, 1))],
)
def test_tpu_slices_are_split_along_trials_or_else_data(shape, across, monkeypatch):
    rest = (1,) * (len(AXES) - len(shape))
    given = []

    def create(within, across, devices, **_):
        given.append((within, across))
        return np.array(devices)

    monkeypatch.setattr(mesh.mesh_utils, "create_hybrid_device_mesh", create)
    mesh._arrange((*shape, *rest), [dataclasses.replace(device, platform="tpu") for device in nodes(2)])
    within = tuple(n // m for n, m in zip(shape, across, strict=True))
    assert given == [((*within, *rest), (*across, *rest))]


def test_tpu_slices_are_split_along_no_other_axis():
    devices = [dataclasses.replace(device, platform="tpu") for device in nodes(2)]
    with pytest.raises(UserError, match="mesh.trial is 1 and mesh.data is 1; with 2 TPU slices one of them must be"):
        mesh._arrange((1, 1, 16, *(1,) * (len(AXES) - 3)), devices)


def test_a_mesh_of_the_devices_here_has_all_axes():
    assert mesh.make_mesh(MeshConfig(devices=1)).axis_names == AXES and jax.device_count() >= 1
