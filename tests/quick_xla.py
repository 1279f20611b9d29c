"""XLA's cheapest passes, for programs of tests: as flags of processes and as options of one program.

Its dearest passes make small programs no faster and take five sixths of the time to compile them. XLA ends the process
at a flag that it does not know; later versions than the pinned one have the new emitters alone, and no flag for them.
"""

from typing import Any

import jax

OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0} | (
    {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
)
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
