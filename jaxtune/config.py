"""Configs: the options of a run as typed Python, composed of every package's own; overrides, dump and difference.

A config file needs one import for settings: every config class and every choice of one is a name of this module.
"""

import contextlib
import dataclasses
import difflib
import io
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from jaxtune.chat import Bos, MaskPolicy, Reasoning
from jaxtune.data.fit import LengthPolicy
from jaxtune.errors import Range, UserError, check_fields, peers_word
from jaxtune.evaluate.code_runs import CodeConfig
from jaxtune.evaluate.harness import LmEvalConfig
from jaxtune.evaluate.hooks import Hook, check_hook
from jaxtune.evaluate.loss import Aggregate, EarlyStoppingConfig, EvalConfig
from jaxtune.hf.source import ComputeDtype, Dtype, ModelSource
from jaxtune.mixture.settings import Budget, Group, MixingUnit, MixtureConfig, OnCap, Policy, Selection, Strategy
from jaxtune.model.attention.core import Backend
from jaxtune.model.lora import LoraConfig, Scaling, Variant
from jaxtune.model.quantize import Bits
from jaxtune.model.settings import Remat
from jaxtune.optim import OptimConfig, Optimizer, Schedule
from jaxtune.parallel.mesh import Indivisible, MeshConfig
from jaxtune.plan.packing import PackPolicy
from jaxtune.runs import folder as runfolder
from jaxtune.runs.mirrors import MirrorKind
from jaxtune.runs.retention import CheckpointConfig
from jaxtune.step.programs import check_programs_folder
from jaxtune.step.update import LossConfig, Normalization
from jaxtune.storage import userfiles
from jaxtune.storage.documents import dotted, json_bytes, plain
from jaxtune.storage.stores import refuse_unserved
from jaxtune.tasks import Task

__all__ = [
    "Aggregate", "Backend", "BatchConfig", "Bits", "Bos", "Budget", "CheckpointConfig", "CodeConfig", "ComputeDtype",
    "DataConfig", "Dtype", "EarlyStoppingConfig", "EvalConfig", "ExperimentConfig", "Group", "HealthConfig",
    "Indivisible", "LengthPolicy", "LmEvalConfig", "LoraConfig", "LossConfig", "MaskPolicy", "MeshConfig", "MirrorKind",
    "MixingUnit", "MixtureConfig", "ModelSource", "Normalization", "OnCap", "OptimConfig", "Optimizer",
    "PackPolicy", "Policy", "Reasoning", "Remat", "Scaling", "Schedule", "Selection", "Strategy", "Task", "Variant",
    "describe", "diff", "dump", "leaves", "load", "of_run", "override", "to_json",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From conversations to rows."""

    seq_len: Annotated[int, Range(8, 2**24)] = 512
    """Tokens in a row; also the longest example."""
    packing: PackPolicy = PackPolicy.BEST_FIT
    mask_policy: MaskPolicy = MaskPolicy.ASSISTANT
    reasoning: Reasoning = Reasoning.LAST
    """Reasoning of the assistant: `last` trains on it where the template shows it and gives no weight to turns that are
    shown without theirs; `keep` refuses such conversations; `drop` takes all of it out."""
    prompt_loss_weight: Annotated[float, Range(0, 1)] = 0.0
    """Loss weight of prompt tokens, in [0, 1]; response tokens weigh 1."""
    length_policy: LengthPolicy = LengthPolicy.DROP
    """What happens to an example longer than `seq_len`; every case is counted per task."""
    workers: Annotated[int, Range(0, 1024)] = 0
    """Grain worker processes; 0 reads in threads of this process. No batch depends on it."""
    prefetch: Annotated[int, Range(1, 4096)] = 2
    """Batches made ahead of the device."""
    cache_dir: str | None = None
    """Folder of tokenised data and of copies of data files; by default `$JAXTUNE_CACHE`, else `.cache/jaxtune` in the
    working folder. At a URL, hosts share tokens, which lie in the default folder as well."""
    processes: Annotated[int, Range(1, 1024)] | None = None
    """Processes that tokenise; None: the cores, as far as there is work for them; in a Python script one."""

    def __post_init__(self):
        check_fields(self, "data")
        refuse_unserved(self.cache_dir, "tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Rows per update, and how many of them fit at once."""

    rows: Annotated[int, Range(1, 2**20)] = 64
    """Global batch: rows per optimizer step (effective batches of 64 to 256 examples are usual)."""
    micro_rows: Annotated[int, Range(1, 2**20)] | None = None
    """Rows per forward pass over all devices; a step accumulates `rows / micro_rows` passes. None: all rows at once."""

    def __post_init__(self):
        check_fields(self, "batch")
        if self.micro_rows is not None and self.rows % self.micro_rows:
            raise UserError(f"batch.micro_rows={self.micro_rows} must divide batch.rows={self.rows}")

    @property
    def micro_batches(self) -> int:
        return 1 if self.micro_rows is None else self.rows // self.micro_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Limits on updates that are not finite or jump, and measurements of the step."""

    skip_budget: Annotated[int, Range(0, 1e9)] = 0
    """Steps with a non-finite loss or gradient that may be skipped (and are counted) before the run stops."""
    spike_factor: Annotated[float, Range(0, 1e6, above=True)] = 3.0
    """A step whose loss exceeds this multiple of the running median is logged with its examples."""
    peak_flops: Annotated[float, Range(0, 1e24, above=True)] | None = None
    """Matrix-multiply rate of all devices together, FLOP/s, for the share of peak (MFU) in the metrics."""
    profile_steps: tuple[Annotated[int, Range(1, 1e9)], Annotated[int, Range(1, 1e9)]] | None = None
    """First and last step, counted from 1, of a profiler trace that is written to `profile/` in the run folder."""

    def __post_init__(self):
        check_fields(self, "health")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise UserError(
                "health.profile_steps are the first and the last step of a trace, counted from 1; "
                f"got {self.profile_steps[0]} and {self.profile_steps[1]}"
            )


_OPAQUE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="",
    instance_from_str=lambda _: (),
    is_instance=lambda _: True,
    str_from_instance=lambda _: [""],
)
Hidden = TypeVar("Hidden")
FileOnly = Annotated[Hidden, _OPAQUE, tyro.conf.Suppress]
"""Marks a field that has no form on the command line: without the opaque form tyro would look inside its objects."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One run, complete: data, model, mixture, optimisation, evaluation."""

    name: str
    """Name of the experiment: the title of its report, and the project of its mirrors."""
    model: ModelSource
    tasks: FileOnly[tuple[Task, ...]]
    """Task objects; written in the config file, not on the command line."""
    duration: Budget = Budget(epochs=1)
    """How long to train: exactly one of examples, epochs (of the natural total), steps, tokens."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Decides the order, template choice and every other random number."""
    mixture: MixtureConfig = MixtureConfig()
    held_out: tuple[str, ...] = ()
    """Clusters (or tasks) that are evaluated but never trained on."""
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    lora: LoraConfig | None = None
    """Adapters over a frozen base; None trains every parameter."""
    eval: EvalConfig = EvalConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    health: HealthConfig = HealthConfig()
    mirrors: tuple[MirrorKind, ...] = ()
    """Optional copies of the metrics: tensorboard, wandb, mlflow, trackio."""
    mirror_group: str | None = None
    """Group of the run in W&B and MLflow; None: for a run of a sweep, the name of the sweep's folder."""
    mirror_tags: tuple[str, ...] = ()
    """Tags of the run in W&B and MLflow."""
    on_validation: FileOnly[Hook | None] = None
    """Called at every validation as `on_validation(step, params, metrics)` (see `jaxtune.evaluate.hooks`)."""
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Options of XLA for the compiled step, by name, over those that jaxtune chooses for the platform."""
    compilation_cache: str | None = ".cache/jax"
    """Folder of compiled programs, kept between runs, here or at gs://; None compiles anew."""

    def __post_init__(self):
        _check_tasks(self.tasks)
        check_fields(self, "")
        check_hook(self.on_validation)
        check_programs_folder(self.compilation_cache)
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"tasks named more than once: {twice}; give each task its own name")
        if not names:
            raise UserError(f"config {self.name!r} has no tasks; put Task objects into `tasks=`")
        if self.loss.normalization is Normalization.RESPONSE and self.data.prompt_loss_weight == 1:
            raise UserError(
                "loss.normalization `response` divides by the weights of responses, and with data.prompt_loss_weight 1 "
                "nothing tells them from prompts; give a weight just below 1, such as 0.9999"
            )


def _check_tasks(tasks: Any) -> None:
    """Raises UserError unless `tasks` is a tuple (or list) of tasks."""
    if isinstance(tasks, Task):
        raise UserError(f"tasks must be a tuple of tasks; got the task {tasks.name!r} alone: write tasks=(task,)")
    if not isinstance(tasks, tuple | list):
        raise UserError(f"tasks must be a tuple of tasks, tasks=(Task(...), ...); got {tasks!r}")
    for task in tasks:
        if not isinstance(task, Task):
            hint = "; a tuple of tasks in it is joined with +" if isinstance(task, tuple | list) else ""
            raise UserError(f"tasks must hold Task(...) objects; got {task!r}{hint}")


def load(path: str | pathlib.Path) -> ExperimentConfig:
    """Run `config()` of a config file."""
    path = pathlib.Path(path)
    userfiles.check_exists(path)
    with userfiles.told(f"config file {path}", hint=_nearest):
        factory = getattr(userfiles.load_module(path), "config", None)
    if not callable(factory):
        raise UserError(f"{path} defines no function `config() -> ExperimentConfig`")
    with userfiles.told(f"config() of {path}", hint=_nearest), userfiles.importable(path.resolve().parent):
        config = factory()
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"config() of {path} returned {type(config).__name__}, not ExperimentConfig")
    return config


def _nearest(error: BaseException) -> str:
    """The field that an unknown keyword of a config class probably means."""
    kinds = [kind for name in __all__ if isinstance(kind := globals()[name], type) and dataclasses.is_dataclass(kind)]
    return userfiles.nearest_keyword(error, kinds)


AS_WRITTEN = (tyro.conf.EnumChoicesFromValues, tyro.conf.AvoidSubcommands)
"""Choices on the command line are spelled as in config.json; no part of the config is a command of its own."""


def override(config: ExperimentConfig, arguments: Sequence[str]) -> ExperimentConfig:
    """Apply strict command-line overrides such as `--optim.peak-lr 1e-5`; an unknown one raises with the nearest.

    `--lora` or any `--lora.OPTION` turns adapters on, `--no-lora` turns them off.
    """
    if not arguments:
        return config
    changed, printed = _parse(config, arguments)
    if changed is not None:
        return changed
    lines = [line.strip() for line in printed.splitlines()]  # the first that is not blank is a heading
    said = [f"  {line}" for line in lines if line.strip(" -") and not line.startswith(_BESIDE_THE_POINT)]
    said += [f"  {hint}" for hint in map(_without_its_part, arguments) if hint]
    raise UserError("\n".join(["options after the config:", *said[1:], "`jaxtune options CONFIG` lists them all"]))


def _without_its_part(argument: str) -> str:
    """Whole names of options whose last word is meant: `--temperature` for `--mixture.temperature`, `--optim.lr`."""
    part_given, _, word = argument.split("=")[0].removeprefix("--").replace("-", "_").rpartition(".")
    if not argument.startswith("--"):
        return ""
    parts = [part for part in dataclasses.fields(ExperimentConfig) if part_given in ("", part.name)]
    fields = [(part.name, field.name) for part in parts for field in _fields_of(part)]
    names = [name for _, name in fields]
    near = [] if part_given else difflib.get_close_matches(word, names, n=1, cutoff=0.8)  # else tyro's own
    near = near or [peers_word(word, names)]
    whole = [f"--{part}.{name}".replace("_", "-") for part, name in fields if name in near]
    return f"{argument.split('=')[0]}: did you mean {' or '.join(whole)}?" if whole else ""


def _fields_of(part: dataclasses.Field) -> tuple[dataclasses.Field, ...]:
    """The fields of a part of the config; none for a value."""
    kinds = [kind for kind in (part.type, *get_args(part.type)) if dataclasses.is_dataclass(kind)]
    return dataclasses.fields(kinds[0]) if kinds and part.name != "tasks" else ()


def of_run(run_dir: pathlib.Path) -> ExperimentConfig:
    """The config that a run was started with, from its config file as that is now."""
    path, overrides = runfolder.read_command(run_dir)
    userfiles.started_in(runfolder.read_working_folder(run_dir))
    return override(load(path), overrides)


def describe(config: ExperimentConfig) -> str:
    """Every option of the command line: its type, its meaning, and its value in this config."""
    state = "off here" if config.lora is None else "on here"
    adapters = f"Adapters are {state}: --lora or any --lora.OPTION turns them on, --no-lora off.\n"
    return _parse(config, ["--lora", "--help"])[1] + adapters


_BESIDE_THE_POINT = ("For full helptext", "in jaxtune --help")
"""How lines of an error begin that speak of a help text which our command line shows elsewhere."""


def _parse(config: ExperimentConfig, arguments: Sequence[str]) -> tuple[ExperimentConfig | None, str]:
    """The config with the options applied, or None; and what was printed."""
    if "--no-lora" in arguments:
        config = dataclasses.replace(config, lora=None)
    elif config.lora is None and any(argument.split(".")[0] == "--lora" for argument in arguments):
        config = dataclasses.replace(config, lora=LoraConfig())
    arguments = [argument for argument in arguments if argument not in ("--lora", "--no-lora")]
    config = _with_alternatives(config, arguments)
    printed, changed = io.StringIO(), None
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        changed = tyro.cli(ExperimentConfig, default=config, args=arguments, prog="jaxtune", config=AS_WRITTEN)
    return changed, printed.getvalue()


def _with_alternatives(config: ExperimentConfig, arguments: Sequence[str]) -> ExperimentConfig:
    """The config without what an option on the command line stands for: `--duration.steps` replaces epochs."""
    given = {argument.split("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    lengths = [name for name in ("examples", "epochs", "steps", "tokens") if f"duration.{name}" in given]
    if lengths and getattr(config.duration, lengths[0]) is None:
        length: dict[str, Any] = {lengths[0]: 1}
        config = dataclasses.replace(config, duration=Budget(**length))
    if "mixture.strategy" in given and "mixture.weights" not in given and config.mixture.weights is not None:
        mixture = dataclasses.replace(config.mixture, weights=None, strategy=Strategy.TEMPERATURE)
        config = dataclasses.replace(config, mixture=mixture)
    return config


def to_json(value: Any) -> Any:
    """A config (or part of one) as plain JSON types; enums by value, callables and objects by name."""
    return plain(value, other=lambda item: getattr(item, "__qualname__", None) or type(item).__qualname__)


def leaves(kind: Any = ExperimentConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all options with their types, without those of the config classes that only hold others.

    A config class that may be absent is itself an option, beside its own: `lora` and `lora.rank`.
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        inside = [part for part in parts if dataclasses.is_dataclass(part)]
        if not inside or hint is not inside[0]:
            found[prefix + name] = hint
        if inside:
            found |= leaves(inside[0], f"{prefix}{name}.")
    return found


def diff(left: ExperimentConfig, right: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, with both values."""
    a, b = dotted(to_json(left)), dotted(to_json(right))
    return {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def dump(config: ExperimentConfig) -> str:
    """The complete config as JSON text."""
    return json_bytes(to_json(config)).decode()
