"""What a program is compiled for: `jax.jit` with options that suit the platform, and whether it has one device."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

YNN = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA gives to the YNN library on a CPU.

On x86 its float32 products took 1.3 times the time of XLA's own and its sum of [1, 8192, 256] over the middle axis
thirty times as long; its products are also a little further from float64 (`experiments/10-step-speed`). In bfloat16 it
is the faster one.
"""


def jit(function: Callable, *, platform: str, dtype: jax.typing.DTypeLike, **settings: Any) -> Any:
    """`jax.jit(function, **settings)` of a program for `platform` that computes in `dtype`."""
    return jax.jit(function, compiler_options=compiler_options(platform, jnp.dtype(dtype).name), **settings)


@functools.cache
def compiler_options(platform: str, dtype: str) -> dict[str, str] | None:
    """Options of a program for `platform` ("cpu", "gpu", "tpu") in `dtype`. What XLA_FLAGS says goes first."""
    if platform != "cpu" or dtype != "float32" or YNN in os.environ.get("XLA_FLAGS", ""):
        return None
    options = {YNN: ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if YNN not in str(error):
            raise
        return None  # a version of XLA without that library
    return options
