"""`jax.jit` with the XLA options that suit the platform, and the dtype in which a platform computes."""

import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.errors import UserError, first_line

YNN = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA gives to the YNN library on a CPU.

On x86 its float32 products took 1.3 times the time of XLA's own and its sum of [1, 8192, 256] over the middle axis
thirty times as long; its products are also a little further from float64 (`experiments/10-step-speed`). In bfloat16 its
products were 1.2 times as fast as XLA's on an x86 that multiplies bfloat16 itself, and slower on one that does not; its
sums were slower on both.
"""
YNN_PRODUCTS = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"

Options = dict[str, str | bool | int]
"""XLA options by name."""

_OLD_EMITTERS: Options = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
COMPILED_FAST: Options = {"xla_backend_optimization_level": 0, **_OLD_EMITTERS}
"""For programs on a CPU that only fill and copy, once. Zeros beside the built-in model's parameters took .06 instead
of .35 CPU-seconds to compile; to fill memory so takes 1.3 times as long, which is .2 seconds more for a gigabyte.
Later versions of XLA have the new emitters alone, and no option for them."""

GATHERS_BESIDE_PRODUCTS: Options = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
"""Let a TPU gather the weights of a layer while it multiplies those of another. Without them every collective of the
step is synchronous on v5p and v6e; they are those that MaxText publishes for these chips."""

PREFERRED: dict[str, Options] = {
    "tpu": GATHERS_BESIDE_PRODUCTS,
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
        "xla_gpu_enable_while_loop_double_buffering": True,
    },
}
"""By platform, options that help its network; those that the installed XLA does not know are left out."""


def flags(options: Options) -> str:
    """Options as XLA_FLAGS names them. XLA ends a process at a flag that it does not know."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def compute_dtype(asked: str, platform: str) -> str:
    """The dtype of activations and products: `auto` is bfloat16, over parameters in their own dtype, but on CPUs."""
    if asked != "auto":
        return asked
    return "float32" if platform == "cpu" else "bfloat16"


def jit(
    function: Callable, *, platform: str, dtype: jax.typing.DTypeLike, options: Mapping[str, str] | None = None,
    fills: bool = False, **settings: Any,
) -> Any:  # fmt: skip
    """`jax.jit(function, **settings)` of a program for `platform` that computes in `dtype`; see `compiler_options`.

    `fills`: the program only fills and copies arrays, and runs once: its compilation is what it costs.
    """
    given = tuple(sorted((options or {}).items()))
    chosen = compiler_options(platform, jnp.dtype(dtype).name, given, fills=fills)
    return jax.jit(function, compiler_options=chosen, **settings)


def parsed_options(given: Mapping[str, str]) -> Options:
    """Options as XLA takes them, from a config's texts."""
    return {name: {"true": True, "false": False}.get(value, value) for name, value in given.items()}


@functools.cache
def compiler_options(
    platform: str, dtype: str, given: tuple[tuple[str, str], ...] = (), *, fills: bool = False
) -> Options | None:
    """Options of a program for `platform` ("cpu", "gpu", "tpu") in `dtype`, those of the user among them.

    What XLA_FLAGS and LIBTPU_INIT_ARGS say goes before ours, and what is `given` before both. Programs for a platform
    that is not here (compiled ahead of time) get what is given. Raises UserError for given options that XLA refuses.
    """
    options: Options = {}
    asked = parsed_options(dict(given))
    if platform == jax.default_backend():
        said = os.environ.get("XLA_FLAGS", "") + os.environ.get("LIBTPU_INIT_ARGS", "")
        ours = {} if (ynn := ynn_operations(dtype)) is None or platform != "cpu" else {YNN: ynn}
        ours = {**ours, **PREFERRED.get(platform, {})}
        ours = {**ours, **COMPILED_FAST} if platform == "cpu" and fills else ours
        options = {name: value for name, value in ours.items() if name not in said and _refusal({name: value}) is None}
        if refused := _refusal(asked):
            raise UserError(f"compiler_options: XLA refuses {dict(given)}: {refused}")
    return {**options, **asked} or None


def ynn_operations(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The operations that a program in `dtype` leaves to the YNN library on this CPU; None: those that XLA chooses.

    Float32 leaves nothing to it. Bfloat16 leaves its products on an x86 that multiplies bfloat16 itself, nothing on one
    that does not, and what XLA decides on other CPUs, which were not measured.
    """
    if dtype == "float32":
        return ""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    if flags is None:
        return None
    return YNN_PRODUCTS if {"avx512_bf16", "amx_bf16"} & set(flags[1].split()) else ""


def _refusal(options: Options) -> str | None:
    """What XLA says against these options; None if it takes them."""
    if not options:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not any(name in str(error) for name in options):
            raise
        return first_line(error)
    return None
