"""Every option of a config with values that make no sense, as one JSON report; run by tests/test_config.py."""

import dataclasses
import json
import math
import re
import sys
import time
from typing import Any

from jaxtune import config
from jaxtune.config import Budget, DataConfig, ExperimentConfig, LoraConfig, ModelSource, OptimConfig
from jaxtune.errors import UserError
from jaxtune.tasks import Task, from_list

SILLY = (math.nan, -math.inf, 1e300, -1e300, 10**400, "x", object())
"""Values that no option of a number takes."""
DOUBTFUL = (math.inf, -1, 0, 2**63, None, True, [], {})
"""Values that some take."""


def with_option(settings, name, value):
    """The config with one option changed; the other ways to say how long a run is are left out."""
    head, _, rest = name.partition(".")
    if not rest:
        only = {"examples": None, "epochs": None, "steps": None, "tokens": None} if isinstance(settings, Budget) else {}
        return dataclasses.replace(settings, **(only | {head: value}))
    return dataclasses.replace(settings, **{head: with_option(getattr(settings, head), rest, value)})


def numbers():
    """Options of numbers; values taken that should not be; refusals that do not name the option; the longest time."""
    task = Task(name="a", splits={"train": from_list([{"prompt": "a", "completion": "b"}])})
    settings = ExperimentConfig(name="n", model=ModelSource(path="builtin"), tasks=(task,), lora=LoraConfig())
    names = [name for name, hint in config.leaves().items() if re.search(r"\b(int|float)\b", str(hint))]
    taken, unclear, slowest = [], [], 0.0
    for name in names:
        for value in (*SILLY, *DOUBTFUL):
            began = time.perf_counter()
            try:
                json.dumps(config.to_json(with_option(settings, name, value)), allow_nan=False)
            except UserError as error:
                if name.rpartition(".")[2] not in str(error) and "exactly one of" not in str(error):
                    unclear.append(f"{name} = {value!r:.40}: {error}")
            except Exception as error:
                unclear.append(f"{name} = {value!r:.40}: {error!r}")
            else:
                if any(value is silly for silly in SILLY):
                    taken.append(f"{name} = {value!r:.40}")
            slowest = max(slowest, time.perf_counter() - began)
    return {"options": names, "taken": taken, "unclear": unclear, "slowest": slowest}


def choices():
    """What becomes of texts and numbers where a choice belongs."""
    named: Any = {"schedule": "cosine"}
    found = {"cosine": str(OptimConfig(**named).schedule)}
    wrong: list[tuple[Any, str, Any]] = [(OptimConfig, "schedule", "cosin"), (DataConfig, "packing", 3)]
    for kind, field, value in wrong:
        try:
            found[str(value)] = str(kind(**{field: value}))
        except UserError as error:
            found[str(value)] = str(error)
    return found


if __name__ == "__main__":
    json.dump({"numbers": numbers, "choices": choices}[sys.argv[1]](), sys.stdout)
