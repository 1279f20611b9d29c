"""Instruction tuning as a research instrument, in JAX: `import jaxtune` gives the public names.

Each name is imported when it is first used, so that `jaxtune.allocate` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers; a test compares the two lists
    from jaxtune.batch import Batch as Batch
    from jaxtune.batch import Example as Example
    from jaxtune.chat import Conversation as Conversation
    from jaxtune.chat import Message as Message
    from jaxtune.config import BatchConfig as BatchConfig
    from jaxtune.config import CheckpointConfig as CheckpointConfig
    from jaxtune.config import DataConfig as DataConfig
    from jaxtune.config import EarlyStoppingConfig as EarlyStoppingConfig
    from jaxtune.config import EvalConfig as EvalConfig
    from jaxtune.config import ExperimentConfig as ExperimentConfig
    from jaxtune.config import HealthConfig as HealthConfig
    from jaxtune.config import LoraConfig as LoraConfig
    from jaxtune.config import LossConfig as LossConfig
    from jaxtune.config import MeshConfig as MeshConfig
    from jaxtune.config import ModelSource as ModelSource
    from jaxtune.config import OptimConfig as OptimConfig
    from jaxtune.errors import UserError as UserError
    from jaxtune.mixture import Allocation as Allocation
    from jaxtune.mixture import Budget as Budget
    from jaxtune.mixture import Group as Group
    from jaxtune.mixture import MixtureConfig as MixtureConfig
    from jaxtune.mixture import OnCap as OnCap
    from jaxtune.mixture import Strategy as Strategy
    from jaxtune.mixture import allocate as allocate
    from jaxtune.runs.history import Run as Run
    from jaxtune.runs.history import read_run as load_run  # noqa: F401
    from jaxtune.tasks import Task as Task
    from jaxtune.tasks import Template as Template
    from jaxtune.tasks import from_array_record as from_array_record
    from jaxtune.tasks import from_file as from_file
    from jaxtune.tasks import from_hf_folder as from_hf_folder
    from jaxtune.tasks import from_hub as from_hub
    from jaxtune.tasks import from_jsonl as from_jsonl
    from jaxtune.tasks import from_list as from_list
    from jaxtune.tasks import from_parquet as from_parquet
    from jaxtune.tasks import from_tfds as from_tfds
    from jaxtune.train.run import train as train

__version__ = "0.1.0"

_CONFIGS = (
    *("BatchConfig", "CheckpointConfig", "DataConfig", "EarlyStoppingConfig", "EvalConfig", "ExperimentConfig"),
    *("HealthConfig", "LoraConfig", "LossConfig", "MeshConfig", "ModelSource", "OptimConfig"),
)
_SOURCES = ("array_record", "file", "hf_folder", "hub", "jsonl", "list", "parquet", "tfds")
_HOMES: dict[str, tuple[str, str]] = {
    **{name: ("batch", name) for name in ("Batch", "Example")},
    **{name: ("chat", name) for name in ("Conversation", "Message")},
    **{name: ("config", name) for name in _CONFIGS},
    "UserError": ("errors", "UserError"),
    **{name: ("mixture", name) for name in ("Allocation", "Budget", "Group", "MixtureConfig", "OnCap", "Strategy")},
    "allocate": ("mixture", "allocate"),
    "Run": ("runs.history", "Run"),
    "load_run": ("runs.history", "read_run"),
    **{name: ("tasks", name) for name in ("Task", "Template", *(f"from_{source}" for source in _SOURCES))},
}
"""Public name -> module and name there. (`train` is the package of that name, which can be called.)"""

__all__ = sorted([*_HOMES, "__version__", "train"])


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("jaxtune.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(f"jaxtune.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
