"""Types of the files of a run folder; readers check a file against its type before they use it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from jaxtune.storage.documents import Json, read_object, read_sealed
from jaxtune.storage.schemas import Real, check_shape


class OptimOptions(TypedDict, total=False):
    """Options of the optimizer that a page names."""

    schedule: str
    warmup_steps: int | None
    warmup_frac: float


class ConfigFile(TypedDict, total=False):
    """config.json, as far as something reads single options of it."""

    name: str
    seed: Any
    model: Mapping[str, Any] | str
    mixture: Mapping[str, Any]
    optim: OptimOptions
    tasks: list[Mapping[str, Any]]


class DevicesOfRun(TypedDict, total=False):
    """The devices of a run."""

    platform: str
    kind: str
    count: int
    processes: int


class EnvironmentFile(TypedDict, total=False):
    """environment.json: where a run ran."""

    commit: str | None
    dirty: bool | None
    python: str
    packages: Mapping[str, str | None]
    devices: DevicesOfRun
    cpu: str
    cpus: int


class OptionChange(TypedDict):
    """An option of a resumed run before and after."""

    then: Any
    now: Any


class AcceptedChanges(TypedDict):
    """Options that changed after a step."""

    after_step: int
    date: str
    options: Mapping[str, OptionChange]


class ManifestChanges(TypedDict):
    """manifest.json, as far as a page reads it."""

    changes: NotRequired[list[AcceptedChanges]]


class ManifestFile(ManifestChanges):
    """manifest.json: what a run is bound to."""

    data: Mapping[str, str]
    tokenizer: Mapping[str, str]
    template: str
    plan: Mapping[str, Any]
    seeds: Mapping[str, int]
    base_model: Mapping[str, str]
    blocks: Mapping[str, str]
    batches: Mapping[str, str]
    config: ConfigFile
    code: Mapping[str, Any]
    environment: EnvironmentFile


class LossesAndScores(TypedDict, total=False):
    """Losses and scores at one moment, in nats and as shares."""

    loss: float
    macro_loss: float
    task_loss: Mapping[str, float]
    task_prompt_loss: Mapping[str, float]
    seen_task_loss: Mapping[str, float]
    task_score: Mapping[str, Mapping[str, float]]
    task_interval: Mapping[str, Mapping[str, list[float]]]
    macro_exact_match: float
    retention: Mapping[str, Mapping[str, Real]]
    lm_eval: Mapping[str, Mapping[str, Any]]


class BestStep(TypedDict):
    """The best step of a run."""

    step: int
    metric: str


class BatchCounts(TypedDict):
    """Examples that were in the batches, by task."""

    examples: NotRequired[Mapping[str, int]]


class SummaryFile(TypedDict):
    """summary.json: how a run ended."""

    status: str
    steps: NotRequired[int]
    total_steps: NotRequired[int]
    before: NotRequired[LossesAndScores]
    after: NotRequired[LossesAndScores]
    best: NotRequired[BestStep]
    exported_step: NotRequired[int | None]
    ledger: NotRequired[BatchCounts]
    tokens: NotRequired[int]
    loss_tokens: NotRequired[int]
    skipped_steps: NotRequired[int]
    empty_steps: NotRequired[int]
    seconds: NotRequired[Real]
    peak_memory_mb: NotRequired[Real]


class StageEntry(TypedDict):
    """A stage of mixture.json."""

    first_step: int
    last_step: int
    shares: Mapping[str, Real]
    drawn: Mapping[str, Mapping[str, int]]


class MixtureFile(TypedDict, total=False):
    """mixture.json without its tasks."""

    tasks: list[Mapping[str, Any]]
    held_out: list[str]
    strategy: str
    temperature: float
    unit: str
    budget: int | None
    effective_tasks: float
    total_variation: float
    seq_len: int
    steps: int
    fill: float
    plan_hash: str
    stages: list[StageEntry]


class SampleEntry(TypedDict):
    """An example of samples.json as the model sees it."""

    id: NotRequired[Any]
    tokens: list[str]
    weights: list[Real]
    trained: NotRequired[int]
    length: NotRequired[int]
    controls: NotRequired[list[bool]]


class AnswerEntry(TypedDict):
    """An answer of generations.json to a test question."""

    id: str
    prediction: str
    correct: bool
    scores: NotRequired[Mapping[str, Real]]
    source: NotRequired[str]


class FileDigest(TypedDict):
    """Size and SHA-256 of a file when it was bound."""

    bytes: int
    sha256: str


class SealFile(TypedDict):
    """seal.json: the files of a run at its end."""

    files: Mapping[str, FileDigest]


class SavedLeaves(TypedDict):
    """[shape, dtype] of every leaf of a checkpoint, by path."""

    params: Mapping[str, list[list[int] | str]]
    rest: Mapping[str, list[list[int] | str]]


class CheckpointFile(TypedDict):
    """checkpoint.json: what was saved, and the digests of its files."""

    extra: Mapping[str, Any]
    metrics: Mapping[str, float]
    leaves: SavedLeaves
    files: Mapping[str, FileDigest]


class SweepEntry(TypedDict):
    """A run of sweep.json."""

    name: str
    overrides: Mapping[str, str | Real | bool]
    seed: int
    dir: str
    tag: NotRequired[str]
    confirms: NotRequired[bool]


class SweepFile(TypedDict):
    """sweep.json: the config of a sweep and its runs."""

    config: NotRequired[Mapping[str, Any]]
    runs: list[SweepEntry]
    rooms: NotRequired[Mapping[str, "RoomOfProgram"]]


class RoomOfProgram(TypedDict):
    """Sizes and loss terms of a compiled step that runs share."""

    capacity: int | None
    tokens: int | None
    label_smoothing: bool
    z_loss: bool
    rank: int | None


class ProgramFile(TypedDict):
    """program.json: the room of a run that shares its program."""

    room: RoomOfProgram


class RungSetting(TypedDict):
    """A setting at a rung."""

    setting: str
    loss: float
    kept: bool


class Rung(TypedDict):
    """A rung of a sweep with halving, in share of the steps."""

    share: Real
    settings: list[RungSetting]


class RankAgreement(TypedDict):
    """Agreement of a rung with the end."""

    share: Real
    settings: int
    compared: int
    tau: float


class HalvingFile(TypedDict):
    """halving.json: what was decided at every rung of a sweep."""

    factor: Real
    decay: float
    rungs: list[Rung]
    rank_agreement: list[RankAgreement]


class RowDetails(TypedDict, total=False):
    """Fields of a row of metrics.jsonl or mixture.json that only some rows have."""

    data_wait: float
    memory_mb: float
    mfu: float
    seen_task_loss: Mapping[str, float]
    task_prompt_loss: Mapping[str, float]
    task_accuracy: Mapping[str, float]
    hook: Mapping[str, float]
    outcomes: Mapping[str, int]
    examples: list[Any]


class FixedAnswer(AnswerEntry):
    """An answer to a fixed question at a validation."""

    reference: Any


class AnswersRow(TypedDict):
    """A row of metrics.jsonl with answers to the fixed questions, by task."""

    answers: Mapping[str, list[FixedAnswer]]


class EventRow(TypedDict):
    """A row of metrics.jsonl of any other kind."""

    loss: NotRequired[float]
    examples: NotRequired[list[Any]]


Samples = Mapping[str, list[SampleEntry]]
"""samples.json: task -> examples."""
Generations = Mapping[str, Mapping[str, list[AnswerEntry]]]
"""generations.json: `before` or `after` -> task -> answers."""


def read_as(path: str | os.PathLike[str], shape: Any) -> Json:
    """A JSON object of a shape. Raises `UnreadableDocument` for any other, naming the file and the place in it."""
    value = read_object(path)
    check_shape(value, shape, path)
    return value


def read_manifest(run_dir: pathlib.Path) -> Json:
    """The manifest of a run. Raises `UnreadableDocument` where the file was changed after it was written."""
    path = run_dir / "manifest.json"
    value = read_sealed(path)
    check_shape(value, ManifestFile, path)
    return value


def read_checkpoint(path: str | os.PathLike[str]) -> Json:
    """The document of a checkpoint. Raises `UnreadableDocument` where the file was changed after it was written."""
    value = read_sealed(path)
    check_shape(value, CheckpointFile, path)
    return value
