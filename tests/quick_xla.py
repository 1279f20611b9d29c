"""XLA's cheapest passes for programs of tests, no slower when small and compiled in a sixth of the time."""

from typing import Any

from jaxtune.parallel.compilation import COMPILED_FAST, flags

OPTIONS: dict[str, Any] = dict(COMPILED_FAST)
"""Of one program."""
FLAGS = flags(COMPILED_FAST)
"""Of processes, as XLA_FLAGS."""
