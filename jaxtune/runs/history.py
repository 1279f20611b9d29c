"""The rows of a run's metrics.jsonl and the files of its folder, read back as typed records."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from jaxtune.errors import UserError
from jaxtune.runs import documents
from jaxtune.storage.documents import Json, UnreadableDocument, number, read_text
from jaxtune.storage.schemas import check_shape

METRICS = "metrics.jsonl"
KINDS = ("train", "eval", "score", "answers", "retention")
"""Kinds of rows that are no events."""
ORIGIN = ".jaxtune-url"
"""The file beside a copy of a run folder that holds the URL of the folder."""


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
        if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("kind"), str):
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
    answers: tuple[Json, ...]
    """Rows of answers to the fixed questions, as they are."""
    events: tuple[Json, ...]
    """Rows of any other kind, as they are."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def place(self) -> str:
        """Path of the run folder, or its URL where the path is a copy of one in a bucket."""
        if (url := origin_of(self.path)) is not None:
            return url
        sweep = self.path.parent.parent
        url = origin_of(sweep)
        return str(self.path) if url is None else f"{url}/{self.path.relative_to(sweep).as_posix()}"

    @property
    def task_names(self) -> list[str]:
        """Every task the run mentions: the mixture's first, in its order, then those only evaluated."""
        seen = {share.task: None for share in self.tasks}
        for row in (*self.train, *self.evals):
            seen |= dict.fromkeys(row.task_loss)
        for row in self.scores:
            seen |= dict.fromkeys(row.task_score)
        return list(seen)


def origin_of(folder: Path) -> str | None:
    """The URL of which a folder is a copy in the cache; None for any other."""
    beside = folder.parent / ORIGIN
    return read_text(beside) if beside.is_file() else None


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
    mixture = _optional(path / "mixture.json", documents.MixtureFile)
    shares = mixture.pop("tasks", [])
    return Run(
        path=path.resolve(),
        config=_optional(path / "config.json", documents.ConfigFile),
        environment=_optional(path / "environment.json", documents.EnvironmentFile),
        manifest=_optional(path / "manifest.json", documents.ManifestChanges),
        mixture=mixture,
        tasks=task_shares(shares, path / "mixture.json"),
        samples=_samples(path / "samples.json"),
        generations=_optional(path / "generations.json", documents.Generations),
        summary=_optional(path / "summary.json", documents.SummaryFile),
        train=tuple(_typed(TrainRow, row, path / METRICS) for row in rows if row["kind"] == "train"),
        evals=tuple(_typed(EvalRow, row, path / METRICS) for row in rows if row["kind"] == "eval"),
        scores=tuple(_typed(ScoreRow, row, path / METRICS) for row in rows if row["kind"] == "score"),
        answers=_of_kind(rows, lambda kind: kind == "answers", documents.AnswersRow, path / METRICS),
        events=_of_kind(rows, lambda kind: kind not in KINDS, documents.EventRow, path / METRICS),
    )


def task_shares(rows: Sequence[Json], path: Path = Path("mixture.json")) -> tuple[TaskShare, ...]:
    """The task rows of a `mixture.json`, typed; `path` is what an error names."""
    return tuple(_typed(TaskShare, row, path) for row in rows)


def _optional(path: Path, shape: Any) -> Json:
    return documents.read_as(path, shape) if path.exists() else {}


def _samples(path: Path) -> Json:
    samples = _optional(path, documents.Samples)
    for task, rows in samples.items():
        for row in rows:
            parts = (row["tokens"], row["weights"], row.get("controls", row["tokens"]))
            if len({len(part) for part in parts}) > 1:
                raise UnreadableDocument(
                    f"{path}: an example of {task!r} has {' and '.join(str(len(part)) for part in parts)} tokens, "
                    "weights and marks; put back a whole copy of the file"
                )
    return samples


def _of_kind(rows: Sequence[Json], kind: Callable[[str], bool], shape: Any, path: Path) -> tuple[Json, ...]:
    """Rows of a kind as they are, each of the same shape."""
    found = tuple(row for row in rows if kind(row["kind"]))
    for row in found:
        check_shape(row, shape, f"{path}, a row of step {row['step']}")
    return found


def check_row(kind: type, row: Json, path: Path) -> None:
    """Raises UserError where a field of a row is not of the type that `kind` has for it."""
    place = f"{path}, a row of step {row['step']}" if "step" in row else path
    check_shape(row, documents.RowDetails, place)
    for name, field in FIELDS[kind].items():
        if name in row:
            check_shape(row[name], field.type, f"{place}, `{name}`")


Record = TypeVar("Record", TrainRow, EvalRow, ScoreRow, TaskShare)


def _typed(kind: type[Record], row: Json, path: Path) -> Record:
    """The row as its dataclass: unknown keys go to `extra`, null numbers become NaN, a missing required key raises."""
    fields = FIELDS[kind]
    check_row(kind, row, path)
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
