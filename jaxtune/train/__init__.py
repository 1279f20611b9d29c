"""The training loop and what it stands on. The package is callable: `jaxtune.train(config, "runs/a")` trains a run."""

import pathlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtune.train.run import TrainResult


class CallablePackage(types.ModuleType):
    """A package named like its main function: `jaxtune.train` is both, whichever was imported first."""

    def __call__(self, config: Any, run_dir: pathlib.Path | str, **options: Any) -> "TrainResult":
        """Train a config into a run folder; the options are those of `jaxtune.train.run.train`."""
        from jaxtune.train.run import train

        return train(config, pathlib.Path(run_dir), **options)


sys.modules[__name__].__class__ = CallablePackage
