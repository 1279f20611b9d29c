"""Kinds of TPU and their slices, as their makers and XLA's compiler describe them; none needs to be here."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jaxtune.errors import UserError, did_you_mean, first_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of TPU, by its maker's data sheet, and how XLA's compiler calls it."""

    topology: str
    """Name of its slices for the compiler."""
    cores: str
    """The compiler's configuration of a chip's cores."""
    dimensions: int
    """Dimensions of its network."""
    ring: int
    """An axis of a slice is closed to a ring where its length is a multiple of this."""
    peak: float
    """bfloat16 operations a second."""
    bytes: float
    """Memory that a program can have."""
    receives: float
    """Bytes a second that a chip receives on all its links together."""
    clock: float
    """Cycles a second."""


GIB = 2.0**30
CHIPS = {
    "v4": Chip(
        topology="v4", cores="megacore", dimensions=3, ring=4, peak=275e12, bytes=31.25 * GIB, receives=300e9,
        clock=1.05e9,
    ),
    "v5e": Chip(
        topology="v5e", cores="default", dimensions=2, ring=16, peak=197e12, bytes=15.75 * GIB, receives=200e9,
        clock=1.5e9,
    ),
    "v5p": Chip(
        topology="v5", cores="megacore", dimensions=3, ring=4, peak=459e12, bytes=95.0 * GIB, receives=600e9,
        clock=1.75e9,
    ),
    "v6e": Chip(
        topology="v6e", cores="default", dimensions=2, ring=16, peak=918e12, bytes=31.25 * GIB, receives=400e9,
        clock=1.75e9,
    ),
}  # fmt: skip
"""Kinds of TPU by the names that people use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """TPUs that are joined by their own network, such as `v5p:4x4x4`."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Whether each axis is a ring, as in slices that are rented; for the compiler three axes in any case."""
        rings = tuple(size % self.chip.ring == 0 for size in self.sizes)
        return rings + (False,) * (3 - len(rings))

    def devices(self) -> Sequence[Any]:
        """Devices of the slice, for the compiler alone. Raises UserError for a slice that libtpu does not know."""
        for name, value in (
            ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5p-128"),
        ):  # fmt: skip
            os.environ.setdefault(name, value)  # without them libtpu asks for the machine's own TPU, and waits
        shape = "x".join(map(str, self.sizes))
        try:
            return topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.topology}:{shape}", chip_config_name=self.chip.cores,
                chips_per_host_bounds=host_of(self.sizes), wrap=self.wrap,
            ).devices  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--compile {self.name}: libtpu describes no such slice: {first_line(error)}") from error


def host_of(sizes: Sequence[int]) -> tuple[int, int, int]:
    """The chips of one host, 2 x 2 of them in a slice that has as many."""
    return min(2, sizes[0]), min(2, sizes[1]), 1


def parse_slice(text: str) -> Slice:
    """`v5p:4x4x4` or `v6e:4x4`. Raises UserError for others, and where XLA's TPU compiler is not installed."""
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--compile {text}: a kind of TPU ({', '.join(CHIPS)}){did_you_mean(kind, CHIPS)} and a shape")
    chip = CHIPS[kind]
    size = r"[1-9]\d{0,3}"
    if not re.fullmatch("x".join([size] * chip.dimensions), shape):
        example = "x".join(["4"] * chip.dimensions)
        raise UserError(
            f"--compile {text}: a slice of {kind} has {chip.dimensions} sizes, for example {kind}:{example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--compile needs XLA's TPU compiler, which needs no TPU: pip install jaxtune[tpu], or the libtpu that "
            f"jax[tpu]=={jax.__version__} names"
        )
    return Slice(name=text, chip=chip, sizes=tuple(map(int, shape.split("x"))))
