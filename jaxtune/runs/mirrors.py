"""Optional copies of the metrics in TensorBoard, Weights & Biases, MLflow or trackio; the run folder is the record."""

import dataclasses
import enum
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtune.errors import UserError

Send = Callable[[dict[str, float], int], None]
"""Takes named numbers and the step they belong to."""


class MirrorKind(enum.Enum):
    """Services that get a copy of the metrics. Each needs its own package, and reads its own environment variables."""

    TENSORBOARD = "tensorboard"  # event files in the run folder
    WANDB = "wandb"  # WANDB_MODE=offline writes into the run folder
    MLFLOW = "mlflow"  # MLFLOW_TRACKING_URI, or a database in the run folder
    TRACKIO = "trackio"  # TRACKIO_DIR, or trackio's own folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Place of a run's copied metrics. Group and tags are shown by W&B and MLflow; others know the project."""

    project: str = "jaxtune"
    group: str | None = None
    tags: tuple[str, ...] = ()


class Mirror:
    """A tracker that passes on the numbers of each row under flat names such as `validation/task_loss/qa`."""

    def __init__(self, send: Send, finish: Callable[[], None]):
        self._send = send
        self._finish = finish
        self._open = True

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass on the finite numbers of the row; a row without any is left out."""
        values = scalars(row)
        if values:
            self._send(values, int(row["step"]))

    def close(self) -> None:
        """Flush and end the copy; a second call does nothing."""
        if self._open:
            self._open = False
            self._finish()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, nested names joined by `/`, below the row's split or kind."""
    top = str(row.get("split", row["kind"]))
    found: dict[str, float] = {}
    _collect({key: value for key, value in row.items() if key not in ("kind", "split", "step")}, top, found)
    return found


def _collect(value: Any, name: str, found: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{name}/{key}", found)
    elif hasattr(value, "__float__") and math.isfinite(float(value)):
        found[name] = float(value)


def make_mirror(
    kind: MirrorKind | str,
    run_dir: Path | str,
    *,
    config: Mapping[str, Any],
    labels: Labels = Labels(),
    resume_step: int | None = None,
) -> Mirror:
    """Open a copy of the run's metrics; the run's name is the folder's.

    `config` is stored with it where the destination can. With `resume_step` the same copy is continued.
    A name that is none of the kinds, or a package that is not installed, is a `UserError`.
    """
    if isinstance(kind, str):
        known = [member.value for member in MirrorKind]
        if kind not in known:
            raise UserError(f"unknown mirror {kind!r}; known: {', '.join(known)}")
        kind = MirrorKind(kind)
    return OPENERS[kind](Path(run_dir).resolve(), dict(config), labels, resume_step)


def check_packages(kinds: Iterable[MirrorKind]) -> None:
    """Raises UserError for a mirror whose package is not installed, before anything is written."""
    for kind in kinds:
        if importlib.util.find_spec(kind.value) is None:
            raise UserError(
                f"the mirror {kind.value!r} was asked for, but its package is not installed; "
                f"`pip install {kind.value}`, or take it out of `mirrors`"
            )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"the mirror {package!r} was asked for, but its package cannot be imported ({error}); "
            f"`pip install {package}`, or take it out of `mirrors`"
        ) from None


def _tensorboard(run_dir: Path, config: dict[str, Any], labels: Labels, resume_step: int | None) -> Mirror:
    """Event files under `tensorboard/`; on resume a session mark makes TensorBoard drop the steps trained again."""
    writers = _package("tensorboard.summary.writer.event_file_writer")
    event_pb2 = _package("tensorboard.compat.proto.event_pb2")
    summary_pb2 = _package("tensorboard.compat.proto.summary_pb2")
    writer = writers.EventFileWriter(str(run_dir / "tensorboard"))
    if resume_step is not None:
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def send(values: dict[str, float], step: int) -> None:
        entries = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = summary_pb2.Summary(value=entries)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    return Mirror(send, writer.close)


def _wandb(run_dir: Path, config: dict[str, Any], labels: Labels, resume_step: int | None) -> Mirror:
    """A W&B run whose x-axis is our step, so that steps trained again after a resume are accepted."""
    wandb = _package("wandb")
    try:
        run = wandb.init(
            project=labels.project,
            group=labels.group,
            tags=list(labels.tags) or None,
            name=run_dir.name,
            id=_run_id(run_dir, resume_step, "wandb"),
            dir=str(run_dir),
            config=config,
            resume="allow",
        )
    except wandb.errors.UsageError as error:
        raise UserError(
            f"wandb: {str(error).rstrip('.')}. WANDB_MODE=offline writes the copy into the run folder"
        ) from None
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Mirror(lambda values, step: run.log({**values, "step": step}), run.finish)


def _mlflow(run_dir: Path, config: dict[str, Any], labels: Labels, resume_step: int | None) -> Mirror:
    """An MLflow run; without MLFLOW_TRACKING_URI its database lies in the run folder."""
    mlflow = _package("mlflow")
    server = os.environ.get("MLFLOW_TRACKING_URI")
    client = mlflow.MlflowClient(server or f"sqlite:///{run_dir / 'mlflow.db'}")
    found = client.get_experiment_by_name(labels.project)
    files = None if server else (run_dir / "mlflow").as_uri()
    experiment = found.experiment_id if found else client.create_experiment(labels.project, artifact_location=files)
    note = run_dir / "mlflow_run_id"
    if resume_step is not None and note.exists():
        identity = note.read_text().strip()
        client.update_run(identity, status="RUNNING")
    else:
        tags = {**({"group": labels.group} if labels.group else {}), **dict.fromkeys(labels.tags, "")}
        identity = client.create_run(experiment, run_name=run_dir.name, tags=tags).info.run_id
        note.write_text(identity)
        client.log_dict(identity, config, "config.json")

    def send(values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [mlflow.entities.Metric(_plain_name(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):  # the server's limit for one call
            client.log_batch(identity, metrics=metrics[start : start + 1000])

    return Mirror(send, lambda: client.set_terminated(identity))


def _plain_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. :/` in names."""
    return "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)


def _trackio(run_dir: Path, config: dict[str, Any], labels: Labels, resume_step: int | None) -> Mirror:
    trackio = _package("trackio")
    resume = "never" if resume_step is None else "allow"
    run = trackio.init(project=labels.project, name=run_dir.name, config=config, resume=resume, embed=False)
    return Mirror(lambda values, step: run.log(values, step=step), run.finish)


def _run_id(run_dir: Path, resume_step: int | None, kind: str) -> str:
    """An identity that a resumed run finds again in its folder."""
    note = run_dir / f"{kind}_run_id"
    if resume_step is None or not note.exists():
        note.write_text(f"{run_dir.name[:40]}-{os.urandom(4).hex()}")
    return note.read_text().strip()


OPENERS: dict[MirrorKind, Callable[[Path, dict[str, Any], Labels, int | None], Mirror]] = {
    MirrorKind.TENSORBOARD: _tensorboard,
    MirrorKind.WANDB: _wandb,
    MirrorKind.MLFLOW: _mlflow,
    MirrorKind.TRACKIO: _trackio,
}
