"""A function of a config that is called at every validation: own measurements beside jaxtune's.

```python
def norms(step, params, metrics):  # parameters as a tree of arrays, losses of the validation by name
    embedding = params["embed"]["embedding"]
    return {"embedding_norm": float(jnp.linalg.norm(embedding))}

ExperimentConfig(..., on_validation=norms)
```
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage import userfiles

Hook = Callable[[int, Any, Mapping[str, Any]], Mapping[str, float] | None]
"""`hook(step, params, metrics)`: updates done; the parameters that were validated as a tree of arrays, adapters merged
in, which must not be kept after the call; the row of metrics.jsonl (`loss`, `macro_loss`, `task_loss`, ...). What it
returns, numbers by name, stands in that row under `hook`, and in the mirrors. In a job of several processes each one
calls it, and all must make the same computations on devices."""


def check_hook(hook: Any) -> None:
    """Raises UserError unless `hook` is None or can be called with step, parameters and metrics."""
    if hook is None:
        return
    if not callable(hook):
        raise UserError(f"on_validation is {hook!r}; it must be a function (step, params, metrics), or None")
    try:
        inspect.signature(hook).bind(0, None, {})
    except TypeError as error:
        name = getattr(hook, "__name__", repr(hook))
        raise UserError(
            f"on_validation: {name}{inspect.signature(hook)} cannot be called as {name}(step, params, metrics): {error}"
        ) from error


def call_hook(hook: Hook, step: int, params: Any, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a hook returns. Raises UserError with the user's own line for whatever goes wrong in it."""
    with userfiles.told(f"on_validation at step {step}"):
        found = hook(step, params, dict(metrics))
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise UserError(f"on_validation returned {found!r} at step {step}; it must return numbers by name, or None")
    numbers: dict[str, float] = {}
    for name, value in found.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"on_validation returned {value!r} for {name!r} at step {step}; it must be a number"
            ) from None
    return {name: value if math.isfinite(value) else math.nan for name, value in numbers.items()}
