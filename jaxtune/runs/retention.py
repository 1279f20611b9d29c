"""Retention of checkpoints: their folder, when they are written, and which of them stay."""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from etils import epath

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.runs.bucket import Bucket
from jaxtune.storage.stores import is_url

DOCUMENT = "checkpoint.json"
"""The file that makes a checkpoint complete."""
WATCHED = "loss"
"""Name of the validation loss that ranks checkpoints, in their metrics; early stopping watches the same number."""
BUCKETS = {"gs": "gcsfs"}
"""Object stores that Orbax writes to, and the package that reaches each. Others get copies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Settings of checkpoints: when they are written and which of them stay."""

    save_every: Annotated[int, Range(1, 1e9)] = 500
    """Steps between two checkpoints, at least 1. The last step and a stop signal save as well."""
    keep_latest: Annotated[int, Range(1, 1e6)] = 2
    """How many of the newest checkpoints stay, at least 1; 2 leaves one to resume from if the newest is damaged."""
    keep_best: Annotated[int, Range(0, 1e6)] = 1
    """How many of the checkpoints with the lowest validation loss stay besides the newest, at least 0.

    The best one stays also with 0: it is what the run exports at its end.
    """
    directory: str | None = None
    """Folder of this run's checkpoints, e.g. gs://bucket/my-run; None: in the run folder.

    Where Orbax cannot write (s3://, az:// and what else fsspec reaches) they are written in the run folder and copied.
    """

    def kept_at(self, url: str | None) -> "CheckpointConfig":
        """The same for a run folder at `url`: its checkpoints lie there as well, where no other place is asked for."""
        here = self.directory is not None or url is None
        return self if here else dataclasses.replace(self, directory=f"{url}/checkpoints")

    def folder(self, run_dir: str | os.PathLike[str]) -> str:
        """Folder of a run's checkpoints."""
        copied = self.directory is None or self.bucket() is not None
        return os.path.join(run_dir, "checkpoints") if copied else str(self.directory)

    def written_by_all(self, run_dir: str | os.PathLike[str], *, remote: bool = False) -> pathlib.Path | None:
        """The local folder into which every process of a job writes checkpoints; None where there is none.

        `remote`: the run folder is in a bucket. Then process 0 alone writes those that are copied to a bucket.
        """
        if self.directory is None or self.bucket() is not None:
            return None if remote else pathlib.Path(run_dir)
        return None if is_url(self.directory) else pathlib.Path(self.directory)

    def bring(self, run_dir: str | os.PathLike[str]) -> None:
        """Make the checkpoints of a run folder those that its bucket holds; nothing where they are read there."""
        bucket = self.bucket()
        if bucket is not None:
            bucket.bring(pathlib.Path(self.folder(run_dir)))

    def can_resume(self, run_dir: str | os.PathLike[str]) -> bool:
        """Whether there is a committed checkpoint of a run folder, here or in the bucket."""
        return has_checkpoint(self.folder(run_dir)) or self.in_use()

    def in_use(self) -> bool:
        """Whether `directory`, a place outside the run folder, holds a committed checkpoint."""
        if self.directory is None:
            return False
        bucket = self.bucket()
        return has_checkpoint(self.directory) if bucket is None else bool(bucket.steps())

    def bucket(self) -> Bucket | None:
        """The store that gets a copy of each checkpoint, if Orbax cannot write to `directory`."""
        scheme, separator, _ = (self.directory or "").partition("://")
        return Bucket(str(self.directory), DOCUMENT, MARKS) if separator and scheme not in BUCKETS else None

    def __post_init__(self):
        check_fields(self, "checkpoint")
        if self.directory is not None and self.bucket() is None:
            open_folder(self.directory)  # both refuse what cannot hold checkpoints before anything else is done


def open_folder(name: str) -> epath.Path:
    """A place that Orbax writes to; UserError for others, and where the package that reaches it is missing."""
    scheme, separator, _ = name.partition("://")
    if not separator:
        return epath.Path(os.path.abspath(name))  # Orbax refuses relative paths
    package = BUCKETS.get(scheme)
    if package is None:
        raise UserError(f"Orbax cannot write to {name}; with checkpoint.directory it gets copies of a folder")
    if importlib.util.find_spec(package) is None:
        raise UserError(f"checkpoints at {scheme}:// need the package {package}: pip install {package}")
    return epath.Path(name)


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a committed checkpoint, damaged or not. Opens nothing."""
    path = open_folder(os.fspath(folder))
    steps = [step for step in path.iterdir() if is_step(step)] if path.exists() else []
    return any((step / DOCUMENT).exists() or (step / "commit_success.txt").exists() for step in steps)


def is_step(folder: epath.Path) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return re.fullmatch(r"\d{8,}", folder.name) is not None


MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that Orbax writes into a checkpoint at its commit."""
COMMITTED = (DOCUMENT, *MARKS)
"""Files of a checkpoint that its document does not digest: itself, and what Orbax writes at the commit."""


class Keep:
    """Orbax preservation policy: the newest and the best checkpoints stay (see `kept_steps`)."""

    def __init__(self, config: CheckpointConfig, metrics_of: Callable[[int], dict[str, float] | None]):
        self.config, self.metrics_of = config, metrics_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        kept = kept_steps(self.config, {step: self.metrics_of(step) for step in steps})
        return [info.step in kept for info in checkpoints]


Metrics = Mapping[int, Mapping[str, float] | None]
"""Step of a checkpoint -> the metrics that it holds."""


def kept_steps(config: CheckpointConfig, metrics: Metrics) -> set[int]:
    """The steps that stay: the newest and the best. The very best stays in any case."""
    best = ranked(metrics)
    return {*sorted(metrics)[-config.keep_latest :], *best[: max(1, config.keep_best)]}


def ranked(metrics: Metrics) -> list[int]:
    """Steps that have a finite `WATCHED` loss, lowest first, the earlier first among equals."""
    values = {step: m[WATCHED] for step, m in metrics.items() if m and math.isfinite(m.get(WATCHED, math.nan))}
    return sorted(values, key=lambda step: (values[step], step))
