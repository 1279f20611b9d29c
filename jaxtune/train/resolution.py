"""A config resolved against its files: tokenizer, template, tokenised tasks, mixture, plan. No device is touched."""

import dataclasses
import datetime
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtune import chat
from jaxtune.chat import TEMPLATES, ChatTemplate, MaskPolicy, Reasoning, Tokenizer, load_template, load_tokenizer
from jaxtune.config import ExperimentConfig, ModelSource
from jaxtune.data.encoding import Encoding
from jaxtune.data.jobs import tokenize
from jaxtune.data.store import TaskTokens
from jaxtune.data.subset import Encoded, Subset
from jaxtune.data.together import tokenize_together
from jaxtune.errors import UserError
from jaxtune.evaluate.answers import Question
from jaxtune.evaluate.asked import ask
from jaxtune.evaluate.code_runs import check_containment
from jaxtune.evaluate.harness import check_tasks
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.hf.text_files import end_tokens, read_generation
from jaxtune.model.settings import ModelConfig
from jaxtune.plan.planning import Plan
from jaxtune.step.room import Room
from jaxtune.storage.fetching import fetched_file, fetched_folder
from jaxtune.storage.stores import Store, default_cache, is_url, refuse_unserved
from jaxtune.storage.userfiles import locate, looked_for
from jaxtune.tasks import ProblemLog, Shape, Task, hold_out
from jaxtune.tasks.splits import TEST, TRAIN, VALIDATION
from jaxtune.train import plans
from jaxtune.train.staging import check_stages
from jaxtune.train.texts import read_texts

BUILTIN = "builtin"
"""Model path that means the small base model inside the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a run: model, tokenizer, tasks, tokens and plans that a config names, read and checked."""

    config: ExperimentConfig
    folder: pathlib.Path
    """The base model's folder."""
    model: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    tasks: Mapping[str, Task]
    """Tasks that are trained on."""
    held: Mapping[str, Task]
    """Tasks that are only evaluated."""
    train: Mapping[str, TaskTokens]
    validation: Mapping[str, Subset]
    plan: Plan
    eval_plan: Plan | None
    """None where no task has validation data."""
    questions: tuple[Question, ...]
    """Test questions for generation."""
    yardstick: Encoding
    """How examples are encoded where their loss is measured."""
    generation: Mapping[str, Any]
    """The base model's settings for generation, as in its generation_config.json."""
    room: Room | None = None
    """Room of the program that the run shares with others; None: its own plan decides."""
    retention: Mapping[str, Encoded] = dataclasses.field(default_factory=dict)
    """Texts that are measured before and after tuning, by name."""

    @property
    def task_names(self) -> list[str]:
        """Trained tasks, then held-out ones."""
        return [*self.tasks, *self.held]

    @property
    def unwatched(self) -> list[str]:
        """Trained tasks of which nothing is measured while training: they have no validation split."""
        return [name for name in self.tasks if name not in self.validation]

    @property
    def unasked(self) -> list[str]:
        """Tasks with test records of which none is asked: token ids have no text to compare an answer with."""
        if not self.config.eval.generate:
            return []
        everyone = [*self.tasks.items(), *self.held.items()]
        return [name for name, task in everyone if TEST in task.splits and task.shape_in(TEST) is Shape.TOKENS]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run; the plan of one in stages has those of the stages whose shares are known."""
        steps = self.config.duration.steps
        return steps if self.config.mixture.staged and steps is not None else self.plan.num_steps

    @property
    def measures_as_it_trains(self) -> bool:
        """Whether the tokens of training carry the weights with which losses are measured."""
        return self.config.data.mask_policy is MaskPolicy.ASSISTANT and not self.trains_prompts

    @property
    def trains_prompts(self) -> bool:
        """Whether prompts carry loss weight in training; their validation loss then stands beside the responses'."""
        return self.config.data.prompt_loss_weight > 0

    @property
    def micro_rows(self) -> int:
        """Rows of one forward pass, over all devices."""
        return self.config.batch.rows // self.config.batch.micro_batches

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a generated answer."""
        return chat.stop_ids(self.template, self.tokenizer, end_tokens(self.generation))

    def describe_step(self, step: int) -> list[str]:
        """`task: file:line` of every example in a step, with its epoch where it is not the first."""
        placed = [placement for row in self.plan.rows(step) for placement in row]
        return [self.describe(p.task, p.example, p.epoch) for p in placed]

    def describe(self, task: str, example: int, epoch: int = 0) -> str:
        """Place of an example of the plan in its source."""
        where = self.tasks[task].source(TRAIN).where(self.train[task].record(example))
        return f"{task}: {where}" + (f" (epoch {epoch + 1})" if epoch else "")

    def examples_in(self, step: int) -> dict[str, int]:
        """Number of examples of each task in a step."""
        counts: dict[str, int] = {}
        for row in self.plan.rows(step):
            for placement in row:
                counts[placement.task] = counts.get(placement.task, 0) + 1
        return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Parts that a config names besides its records, found and checked: no record has been read."""

    config: ExperimentConfig
    folder: pathlib.Path
    """The base model's folder."""
    model: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    kept: Mapping[str, Task]
    """Tasks that are trained on."""
    held: Mapping[str, Task]
    """Tasks that are only evaluated."""
    encoding: Encoding

    @property
    def everyone(self) -> list[Task]:
        """Trained tasks, then held-out ones."""
        return [*self.kept.values(), *self.held.values()]

    @property
    def yardstick(self) -> Encoding:
        """Encoding for measuring loss: responses weigh 1, whatever the run trains with.

        So the validation losses of two objectives, of another mask or prompt weight, are of the same tokens.
        """
        return dataclasses.replace(self.encoding, mask_policy=MaskPolicy.ASSISTANT, prompt_loss_weight=0.0)

    def encoding_of(self, split: str) -> Encoding:
        """Encoding that turns the records of a split into tokens."""
        return self.encoding if split == TRAIN else self.yardstick

    @property
    def tokenised(self) -> dict[str, list[Task]]:
        """By split, the tasks whose records become tokens."""
        return {
            TRAIN: list(self.kept.values()),
            VALIDATION: [task for task in self.everyone if VALIDATION in task.splits],
        }

    def questions(self, log: ProblemLog) -> list[Question]:
        """The test questions of the run, none where generation is off; those that cannot be asked go into `log`."""
        if not self.config.eval.generate:
            return []
        return ask(
            self.everyone, self.template, self.tokenizer,
            limit=self.config.eval.generate_examples, context=self.model.max_seq_len, log=log,
        )  # fmt: skip


def prepare(config: ExperimentConfig) -> Prepared:
    """Find and check model, tokenizer, template and tasks of a config. Raises UserError for what cannot be used."""
    folder = model_folder(config.model)
    shape = dataclasses.replace(hf.load_config(folder), remat=config.model.remat, attention=config.model.attention)
    words, template = load_text(config.model, folder, config.data.reasoning)
    if config.data.seq_len > shape.max_seq_len:
        raise UserError(
            f"data.seq_len={config.data.seq_len} is longer than the model's context of {shape.max_seq_len} tokens"
        )
    if config.lora is not None and config.lora.start is not None:
        peft.starting_adapters(shape, config.lora)
    parted = hold_out([task.cached_in(cache_folder(config)) for task in config.tasks], config.held_out)
    if not parted.kept:
        raise UserError(f"held_out={list(config.held_out)} leaves no task to train on")
    check_watched(config, parted.kept)
    check_stages(config, parted.kept)
    check_tasks(config.eval.lm_eval)
    check_code(config, [*parted.kept.values(), *parted.held.values()])
    encoding = Encoding(
        template=template, tokenizer=words, max_length=config.data.seq_len, mask_policy=config.data.mask_policy,
        length_policy=config.data.length_policy, prompt_loss_weight=config.data.prompt_loss_weight,
        embedding_rows=shape.vocab_size,
    )  # fmt: skip
    return Prepared(
        config=config, folder=folder, model=shape, tokenizer=words, template=template,
        kept=parted.kept, held=parted.held, encoding=encoding,
    )  # fmt: skip


def check_watched(config: ExperimentConfig, kept: Mapping[str, Task]) -> None:
    """Raises UserError when early stopping would watch a validation loss that no trained task has."""
    watched, stopping = [name for name, task in kept.items() if VALIDATION in task.splits], config.early_stopping
    if stopping.task is not None and stopping.task not in watched:
        raise UserError(
            f"early_stopping.task is {stopping.task!r}; trained tasks that have a validation split are: "
            f"{', '.join(watched) or 'none'}"
        )
    if stopping.forget_weight and not config.eval.retention:
        raise UserError(
            f"early_stopping.forget_weight={stopping.forget_weight} watches what is forgotten of retention texts; "
            "name some with eval.retention, or leave it 0"
        )
    if stopping.patience is not None and not watched:
        raise UserError(
            f"early_stopping.patience={stopping.patience} needs a validation loss to watch, and no trained task has a "
            "validation split; give one a split named 'validation', or leave patience out"
        )


def check_code(config: ExperimentConfig, tasks: Iterable[Task]) -> None:
    """Raises UserError when answers would have to be run, and that is not allowed or cannot be contained here."""
    tried = [task.name for task in tasks if task.scoring.tries and TEST in task.splits]
    if not config.eval.generate or not tried:
        return
    if not config.eval.code.run:
        raise UserError(
            f"task {tried[0]}: the metric pass_at_k runs programs that the model wrote; allow it with "
            "--eval.code.run (they can read files, but not write any or reach a network), or choose another metric"
        )
    check_containment(config.eval.code)


def resolve(config: ExperimentConfig, *, questions: bool = True, show_progress: bool = True) -> Inputs:
    """Read, check and plan everything. Raises UserError for whatever in the input cannot be used."""
    prepared = prepare(config)
    place = config.data.cache_dir or ""
    shared = Store(f"{place.rstrip('/')}/tokens", "tokens") if is_url(place) else None
    tokens, folder = {}, cache_folder(config) / "tokens"
    how: dict[str, Any] = {"processes": config.data.processes, "show_progress": show_progress}
    for split, tasks in prepared.tokenised.items():
        if shared is not None:
            tokenize_together(tasks, split, prepared.encoding_of(split), folder, shared, **how)
        tokens[split] = tokenize(tasks, split, prepared.encoding_of(split), folder, shared=shared, **how)
    validation = plans.choose(tokens[VALIDATION], config)
    plan = plans.make_training_plan(config, tokens[TRAIN], list(prepared.kept.values()))
    texts = read_texts(config.eval.retention, prepared.tokenizer, config.data.seq_len, tokens[TRAIN])
    log = ProblemLog()
    asked = prepared.questions(log) if questions else []
    log.raise_if_any("the test questions")
    return Inputs(
        config=config, folder=prepared.folder, model=prepared.model, tokenizer=prepared.tokenizer,
        template=prepared.template, tasks=prepared.kept, held=prepared.held, train=tokens[TRAIN],
        validation=validation, plan=plan, eval_plan=plans.make_validation_plan(config, validation),
        questions=tuple(asked), yardstick=prepared.yardstick,
        generation=read_generation(prepared.folder), retention=texts, room=room_of_any_stage(config),
    )  # fmt: skip


def room_of_any_stage(config: ExperimentConfig) -> Room | None:
    """Room for rows of any shares, where those of later stages are not known yet; None where the plan decides."""
    return Room(rank=None if config.lora is None else config.lora.rank) if config.mixture.staged else None


def model_folder(model: ModelSource) -> pathlib.Path:
    """The base model's folder on this machine."""
    if model.path == BUILTIN:
        return pathlib.Path(__file__).parent.parent / "assets" / "base"
    return hf.resolve(model.path)


def load_text(model: ModelSource, folder: pathlib.Path, reasoning: Reasoning) -> tuple[Tokenizer, ChatTemplate]:
    """Tokenizer and chat template of a config's model; `folder` is that of its base."""
    source = _place(model.tokenizer) if model.tokenizer else folder
    template = dataclasses.replace(
        _find_template(model.template, source), variables=model.template_variables,
        today=datetime.date.fromisoformat(model.template_date), exact_marks=model.exact_marks,
        bos=model.bos, reasoning=reasoning,
    )  # fmt: skip
    return load_tokenizer(source), template


def _place(named: str) -> pathlib.Path:
    """The file or folder on this disk of a tokenizer or template that a config names by a path or a URL.

    A tokenizer's file at a URL comes with the text files beside it, which say which of its tokens are special.
    """
    if not is_url(named):
        return locate(named)
    refuse_unserved(named, "tokenizers and templates")
    folder, _, name = named.rstrip("/").rpartition("/")
    kind = pathlib.PurePosixPath(name).suffix
    if kind == ".jinja":
        return fetched_file(named, default_cache())
    if kind not in (".json", ".model"):
        return fetched_folder(named, default_cache(), hf.TEXT_FILES)
    file = fetched_folder(folder, default_cache(), hf.TEXT_FILES) / name
    if not file.is_file():
        raise UserError(f"{named} cannot be read: no such object")
    return file


def _find_template(named: str | None, folder: pathlib.Path) -> ChatTemplate:
    """A built-in template by name, one in a file or folder, or, without a name, the one of the tokenizer's folder."""
    if named is None:
        return load_template(folder)
    if named in TEMPLATES:
        return TEMPLATES[named]
    if is_url(named) or locate(named).exists():
        return load_template(_place(named))
    raise UserError(
        f"model.template {named!r} is neither a file{looked_for(named)} nor a built-in template "
        f"({', '.join(TEMPLATES)})"
    )


def cache_folder(config: ExperimentConfig) -> pathlib.Path:
    """Cache folder, on this disk, of tokenised data and of copies of the config's files.

    Where `data.cache_dir` is a URL, finished tokens are shared there, and they lie in the default folder as well.
    """
    place = config.data.cache_dir
    return default_cache() if place is None or is_url(place) else pathlib.Path(place)
