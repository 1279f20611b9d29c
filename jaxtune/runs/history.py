"""What a run writes while it goes, and how a run folder is read back."""

import dataclasses
import enum
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import orjson

from jaxtune.errors import UserError

Json = dict[str, Any]
"""A JSON object as Python holds it."""

METRICS = "metrics.jsonl"


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dataclasses, enums, paths and arrays become dicts, strings and lists.

    JSON has no non-finite numbers: NaN becomes null, infinities become "inf" and "-inf" (`number` reads both back).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float | np.floating):
        return _finite(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _key(key: Any) -> str:
    return str(key.value if isinstance(key, enum.Enum) else key)


def _finite(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def number(value: Any) -> float:
    """A number that `plain` wrote: null is NaN, "inf" and "-inf" are infinities."""
    return math.nan if value is None else float(value)


def write_json(path: Path, value: Any) -> None:
    """Write `value` aside, then rename: a reader sees the whole old file or the whole new one."""
    replace_file(path, orjson.dumps(plain(value), option=orjson.OPT_INDENT_2) + b"\n")


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step that survives a kill at any moment."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: Path) -> Any:
    """The JSON value in a file; a missing or broken file is a `UserError` that names it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None


@runtime_checkable
class Tracker(Protocol):
    """Where the rows of a run go. A row is one JSON object with at least `kind` and `step`."""

    def log(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends rows to `metrics.jsonl`, each flushed at once, so that a killed process loses at most a torn last line.

    A new run starts an empty file and refuses one that holds rows. `resume_step=n` keeps the rows up to step n,
    drops those of steps that will be trained again and the scores of an end that will be reached again, and removes
    a torn last line.
    """

    def __init__(self, run_dir: Path | str, *, resume_step: int | None = None):
        self.path = Path(run_dir) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            self._keep_up_to(resume_step)
        elif self.path.exists() and self.path.stat().st_size:
            raise UserError(f"{self.path} already holds a run; resume it, or choose another run folder")
        self._file = self.path.open("ab")

    def _keep_up_to(self, step: int) -> None:
        if self.path.exists():
            kept = [
                row
                for row in read_rows(self.path)
                if row["step"] <= step and not (row["kind"] == "score" and row["step"])
            ]
            replace_file(self.path, b"".join(orjson.dumps(row) + b"\n" for row in kept))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        assert "kind" in row and "step" in row, f"a row needs kind and step: {row}"
        self._file.write(orjson.dumps(plain(row)) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close; a second call does nothing."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)

    def log(self, row: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def read_rows(path: Path) -> list[Json]:
    """The rows of a `metrics.jsonl`. A torn last line (a killed writer) is left out; a broken line elsewhere raises."""
    return list(_rows(path))


def _rows(path: Path) -> Iterator[Json]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        lines[-1] = b""  # no newline at the end: the writer was killed inside this line
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UserError(f"{path}:{index}: not JSON ({error.msg}); the file was changed or damaged") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "kind" not in row:
            raise UserError(f"{path}:{index}: a row is an object with `kind` and an integer `step`")
        yield row


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRow:
    """One logged optimizer update."""

    step: int
    """Updates done, this one included."""
    loss: float
    """Token-weighted mean over the step, in nats."""
    learning_rate: float = math.nan
    grad_norm: float = math.nan
    tokens: int = 0
    """Real (not padding) tokens since the start of the run."""
    loss_tokens: int = 0
    """Trained tokens since the start of the run."""
    tokens_per_s: float = math.nan
    loss_tokens_per_s: float = math.nan
    padding: float = math.nan
    """Share of the step's slots that hold padding."""
    task_loss: Mapping[str, float] = dataclasses.field(default_factory=dict)
    task_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped: bool = False
    extra: Json = dataclasses.field(default_factory=dict)
    """What else the run logged with the step (data wait, memory, share of peak)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Held-out loss after `step` updates."""

    step: int
    split: str
    loss: float
    """Mean over tokens, in nats."""
    macro_loss: float = math.nan
    """Mean over tasks, in nats."""
    task_loss: Mapping[str, float] = dataclasses.field(default_factory=dict)
    task_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    extra: Json = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Generation scores after `step` updates."""

    step: int
    split: str
    task_score: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Task -> {"exact_match": share, "n": prompts, ...}."""
    macro_exact_match: float = math.nan
    extra: Json = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskShare:
    """One task's line of `mixture.json`."""

    task: str
    size: int
    usable: int = 0
    probability: float = math.nan
    """Nominal share."""
    realised: float = math.nan
    """Share of the examples that the plan holds."""
    count: int = 0
    """Examples trained on, repeats included."""
    epochs: float = math.nan
    full_passes: int = 0
    partial: int = 0
    capped: bool = False
    prompt_tokens: int = 0
    response_tokens: int = 0
    loss_tokens: int = 0
    token_share: float = math.nan
    loss_token_share: float = math.nan
    extra: Json = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read. Files that the run has not written yet are empty mappings; arrays of rows may be empty."""

    path: Path
    config: Json
    environment: Json
    manifest: Json
    mixture: Json
    """`mixture.json` without its tasks."""
    tasks: tuple[TaskShare, ...]
    """The tasks of `mixture.json`, in its order."""
    samples: Mapping[str, Sequence[Json]]
    generations: Mapping[str, Mapping[str, Sequence[Json]]]
    summary: Json
    train: tuple[TrainRow, ...]
    evals: tuple[EvalRow, ...]
    scores: tuple[ScoreRow, ...]
    events: tuple[Json, ...]
    """Rows of any other kind, as they are."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def task_names(self) -> list[str]:
        """Every task the run mentions: the mixture's first, in its order, then those only evaluated."""
        seen = {share.task: None for share in self.tasks}
        for row in (*self.train, *self.evals):
            seen |= dict.fromkeys(row.task_loss)
        for row in self.scores:
            seen |= dict.fromkeys(row.task_score)
        return list(seen)


def read_run(run_dir: Path | str) -> Run:
    """Read a run folder, finished or not. A folder that is not a run is a `UserError` that says what is missing."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    missing = [name for name in ("config.json", METRICS) if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{path} is not a run folder: it has no {' and no '.join(missing)}. "
            "`jaxtune train CONFIG --run-dir FOLDER` writes one."
        )
    rows = read_rows(path / METRICS)
    mixture = _optional(path / "mixture.json")
    shares = mixture.pop("tasks", [])
    return Run(
        path=path.resolve(),
        config=_optional(path / "config.json"),
        environment=_optional(path / "environment.json"),
        manifest=_optional(path / "manifest.json"),
        mixture=mixture,
        tasks=task_shares(shares, path / "mixture.json"),
        samples=_optional(path / "samples.json"),
        generations=_optional(path / "generations.json"),
        summary=_optional(path / "summary.json"),
        train=tuple(_typed(TrainRow, row, path / METRICS) for row in rows if row["kind"] == "train"),
        evals=tuple(_typed(EvalRow, row, path / METRICS) for row in rows if row["kind"] == "eval"),
        scores=tuple(_typed(ScoreRow, row, path / METRICS) for row in rows if row["kind"] == "score"),
        events=tuple(row for row in rows if row["kind"] not in ("train", "eval", "score")),
    )


def task_shares(rows: Sequence[Json], path: Path = Path("mixture.json")) -> tuple[TaskShare, ...]:
    """The task rows of a `mixture.json`, typed; `path` is what an error names."""
    return tuple(_typed(TaskShare, row, path) for row in rows)


def _optional(path: Path) -> Json:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


Record = TypeVar("Record", TrainRow, EvalRow, ScoreRow, TaskShare)


def _typed(kind: type[Record], row: Json, path: Path) -> Record:
    """The row as its dataclass: unknown keys go to `extra`, null numbers become NaN, a missing required key raises."""
    fields = FIELDS[kind]
    known = {name: _numbers(value, fields[name].type) for name, value in row.items() if name in fields}
    for name, field in fields.items():
        if name not in row and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}: a row without `{name}`: {orjson.dumps(row)[:200].decode()}")
    return kind(**known, extra={key: value for key, value in row.items() if key not in fields and key != "kind"})


FIELDS: dict[Any, dict[str, dataclasses.Field[Any]]] = {
    kind: {field.name: field for field in dataclasses.fields(kind) if field.name != "extra"}
    for kind in (TrainRow, EvalRow, ScoreRow, TaskShare)
}


def _numbers(value: Any, kind: Any) -> Any:
    if kind is float:
        return number(value)
    if kind == Mapping[str, float]:
        return {key: number(item) for key, item in value.items()}
    if kind == Mapping[str, Mapping[str, float]]:
        return {task: {key: number(item) for key, item in scores.items()} for task, scores in value.items()}
    return value
