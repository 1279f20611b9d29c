"""A config resolved against its files: tokenizer, template, tokenised tasks, mixture, plan. No device is touched."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxtune.batch import Batch, Example, PackPolicy
from jaxtune.chat import mask_view as masks
from jaxtune.chat import rendering as chat
from jaxtune.chat import tokenizer
from jaxtune.chat.template import TEMPLATES, ChatTemplate, load_template
from jaxtune.chat.tokenizer import Tokenizer
from jaxtune.config import ExperimentConfig, to_json
from jaxtune.data.batches import StepBatches
from jaxtune.data.encoding import Encoding, tokenize
from jaxtune.data.store import TaskTokens
from jaxtune.errors import UserError
from jaxtune.evaluate import loss as evaluate
from jaxtune.evaluate.loss import Question
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.mixture.allocation import MixtureConfig
from jaxtune.model.transformer import ModelConfig
from jaxtune.plan import order
from jaxtune.plan.planning import Plan, make_eval_plan, plan_for_budget
from jaxtune.runs import manifest
from jaxtune.tasks import Task, hold_out

BUILTIN = "builtin"
"""Model path that means the small base model inside the package."""
TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Some examples of a tokenised split, renumbered from 0."""

    store: TaskTokens
    numbers: Int[np.ndarray, " chosen"]

    @property
    def lengths(self) -> Int[np.ndarray, "chosen templates"]:
        """Tokens of each example under each template."""
        return np.asarray(self.store.lengths)[self.numbers]

    @property
    def loss_lengths(self) -> Int[np.ndarray, "chosen templates"]:
        """Trained tokens of each example under each template."""
        return np.asarray(self.store.loss_lengths)[self.numbers]

    def example(self, number: int, template: int = 0) -> Example:
        """One example in one wording."""
        return self.store.example(int(self.numbers[number]), template)

    def check_unchanged(self) -> None:
        """Raises UserError when the tokenised data changed since they were opened."""
        self.store.check_unchanged()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that is known before a device is touched."""

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
    validation: Mapping[str, Chosen]
    plan: Plan
    eval_plan: Plan | None
    """None where no task has validation data."""
    questions: tuple[Question, ...]
    """Test questions for generation."""

    @property
    def task_names(self) -> list[str]:
        """Trained tasks, then held-out ones."""
        return [*self.tasks, *self.held]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.plan.num_steps

    @property
    def micro_rows(self) -> int:
        """Rows of one forward pass, over all devices."""
        return self.config.batch.rows // self.config.batch.micro_batches

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a generated answer: the trained terminator, and the tokenizer's own end of text."""
        ends = {chat.terminator_id(self.template, self.tokenizer), self.tokenizer.eos_id}
        return frozenset(i for i in ends if i is not None)

    def describe_step(self, step: int) -> list[str]:
        """`task: file:line` of every example in a step, with its epoch where it is not the first."""
        placed = [placement for row in self.plan.rows(step) for placement in row]
        return [self.describe(p.task, p.example, p.epoch) for p in placed]

    def describe(self, task: str, example: int, epoch: int = 0) -> str:
        """Where an example of the plan stands in its source."""
        where = self.tasks[task].source(TRAIN).where(self.train[task].record(example))
        return f"{task}: {where}" + (f" (epoch {epoch + 1})" if epoch else "")

    def examples_in(self, step: int) -> dict[str, int]:
        """How many examples of each task a step holds."""
        counts: dict[str, int] = {}
        for row in self.plan.rows(step):
            for placement in row:
                counts[placement.task] = counts.get(placement.task, 0) + 1
        return counts


def resolve(config: ExperimentConfig, *, questions: bool = True, show_progress: bool = True) -> Experiment:
    """Read, check and plan everything. Raises UserError for whatever in the input cannot be used."""
    folder = model_folder(config)
    shape = dataclasses.replace(hf.load_config(folder), remat=config.model.remat, attention=config.model.attention)
    words, template = load_text(config, folder)
    hf.check_tokenizer(shape, words.vocab_size, config.model.tokenizer or folder)
    if config.data.seq_len > shape.max_seq_len:
        raise UserError(
            f"data.seq_len={config.data.seq_len} is longer than the model's context of {shape.max_seq_len} tokens"
        )
    if config.lora is not None and config.lora.start is not None:
        peft.starting_adapters(shape, config.lora)
    parted = hold_out(config.tasks, config.held_out)
    if not parted.kept:
        raise UserError(f"held_out={list(config.held_out)} leaves no task to train on")
    encoding = Encoding(
        template=template, tokenizer=words, max_length=config.data.seq_len, mask_policy=config.data.mask_policy,
        length_policy=config.data.length_policy, prompt_loss_weight=config.data.prompt_loss_weight,
    )  # fmt: skip
    where = cache_folder(config)
    options = {"processes": config.data.processes, "show_progress": show_progress}
    train = tokenize(list(parted.kept.values()), TRAIN, encoding, where, **options)
    evaluated = [task for task in (*parted.kept.values(), *parted.held.values()) if VALIDATION in task.splits]
    validation = choose(tokenize(evaluated, VALIDATION, encoding, where, **options), config)
    plan = make_training_plan(config, train, list(parted.kept.values()))
    asked = []
    if questions and config.eval.generate:
        everyone = [*parted.kept.values(), *parted.held.values()]
        asked = evaluate.questions(everyone, TEST, template, words, limit=config.eval.generate_examples)
    return Experiment(
        config=config, folder=folder, model=shape, tokenizer=words, template=template,
        tasks=parted.kept, held=parted.held, train=train, validation=validation, plan=plan,
        eval_plan=make_validation_plan(config, validation), questions=tuple(asked),
    )  # fmt: skip


def model_folder(config: ExperimentConfig) -> pathlib.Path:
    """The base model's folder on this machine."""
    if config.model.path == BUILTIN:
        return pathlib.Path(__file__).parent.parent / "assets" / "base"
    return hf.resolve(config.model.path)


def load_text(config: ExperimentConfig, folder: pathlib.Path) -> tuple[Tokenizer, ChatTemplate]:
    """Tokenizer and chat template of a config."""
    source = pathlib.Path(config.model.tokenizer) if config.model.tokenizer else folder
    words = tokenizer.load(source)
    if config.model.template is None:
        return words, load_template(source)
    if config.model.template in TEMPLATES:
        return words, TEMPLATES[config.model.template]
    if pathlib.Path(config.model.template).exists():
        return words, load_template(config.model.template)
    raise UserError(
        f"model.template {config.model.template!r} is neither a file nor a built-in template ({', '.join(TEMPLATES)})"
    )


def cache_folder(config: ExperimentConfig) -> pathlib.Path:
    """Where tokenised data are kept."""
    return pathlib.Path(config.data.cache_dir or os.environ.get("JAXTUNE_CACHE", ".cache/jaxtune")) / "tokens"


def choose(stores: Mapping[str, TaskTokens], config: ExperimentConfig) -> dict[str, Chosen]:
    """The first `eval.max_examples` of a seeded permutation of each task; the same ones for every seed of the run."""
    limit = config.eval.max_examples
    numbers = {
        name: order.permutation(0, name, 0, len(store))[:limit] if limit is not None else np.arange(len(store))
        for name, store in stores.items()
    }
    return {name: Chosen(store=store, numbers=numbers[name]) for name, store in stores.items()}


def task_mixture(config: MixtureConfig, tasks: list[Task]) -> MixtureConfig:
    """The mixture with the limits that tasks set for themselves; a task's own limit goes before the general one."""

    def merged(field: str) -> Any:
        own = {task.name: value for task in tasks if (value := getattr(task, field)) is not None}
        general = getattr(config, field)
        if not own:
            return general
        if isinstance(general, Mapping):
            return dict(general) | own
        return {task.name: own.get(task.name, general) for task in tasks if task.name in own or general is not None}

    return dataclasses.replace(config, max_examples=merged("max_examples"), max_repeats=merged("max_repeats"))


def make_training_plan(config: ExperimentConfig, stores: Mapping[str, TaskTokens], tasks: list[Task]) -> Plan:
    """Budget, counts, order and rows of the run."""
    return plan_for_budget(
        config.duration,
        {name: store.lengths for name, store in stores.items()},
        {name: store.loss_lengths for name, store in stores.items()},
        task_mixture(config.mixture, tasks),
        seed=config.seed,
        seq_len=config.data.seq_len,
        rows_per_step=config.batch.rows,
        packing=config.data.packing,
    )


def make_validation_plan(
    config: ExperimentConfig, chosen: Mapping[str, Chosen], rows: int | None = None
) -> Plan | None:
    """Every chosen validation example once, in batches of `rows`, by default those of the config."""
    if not chosen:
        return None
    return make_eval_plan(
        {name: part.lengths for name, part in chosen.items()},
        {name: part.loss_lengths for name, part in chosen.items()},
        seq_len=config.data.seq_len,
        rows_per_step=rows or config.eval.rows,
        packing=PackPolicy.BEST_FIT,
    )


def seen_examples(job: Experiment, steps: int) -> dict[str, Chosen]:
    """Examples that the first `steps` steps trained on, by task in order of first use: as many as validation has."""
    wanted = {name: len(part.numbers) for name, part in job.validation.items() if name in job.train}
    found: dict[str, dict[int, None]] = {name: {} for name in wanted}
    for step in range(steps):
        if all(len(found[name]) >= wanted[name] for name in wanted):
            break
        for placement in (placement for row in job.plan.rows(step) for placement in row):
            if len(found.get(placement.task, ())) < wanted.get(placement.task, 0):
                found[placement.task][placement.example] = None
    return {name: Chosen(store=job.train[name], numbers=np.array(list(use))) for name, use in found.items() if use}


def identity(job: Experiment) -> dict[str, Any]:
    """The manifest of a run: what it is bound to."""
    stores = {(name, TRAIN): job.train[name] for name in job.tasks}
    stores |= {(name, VALIDATION): part.store for name, part in job.validation.items()}
    sources = {}
    for (name, split), store in stores.items():
        label = name if split == TRAIN else f"{name} ({split})"
        sources[label] = store.fingerprint
        # A file may change without changing a token.
        sources[f"{label}, its source"] = {**job.tasks, **job.held}[name].source(split).fingerprint
    weights = sorted(
        path for path in job.folder.iterdir() if path.suffix in (".safetensors", ".json") and "token" not in path.name
    )
    return manifest.build_manifest(
        data=sources,
        tokenizer={path.name: manifest.file_fingerprint(path) for path in job.tokenizer.files},
        template=job.template.source,
        plan={"hash": job.plan.hash, "steps": job.plan.num_steps, "examples": job.plan.num_examples},
        config=to_json(job.config),
        seeds={"run": job.config.seed},
        base_model={path.name: manifest.file_fingerprint(path) for path in (*weights, *adapter_files(job.config))},
        blocks={name: job.train[name].block_fingerprints() for name in job.tasks},
        batches={str(step): batch_fingerprint(job, step) for step in pinned_steps(job)},
    )


def adapter_files(config: ExperimentConfig) -> list[pathlib.Path]:
    """Files of the adapters that a run starts from, if it starts from some."""
    if config.lora is None or config.lora.start is None:
        return []
    return [pathlib.Path(config.lora.start) / name for name in ("adapter_config.json", "adapter_model.safetensors")]


def pinned_steps(job: Experiment) -> list[int]:
    """Steps whose batches the manifest holds: the first, the last, and eight of a permutation of the run's seed."""
    last = job.total_steps - 1
    drawn = order.permutation(job.config.seed, "pinned batches", 0, job.total_steps)[:8]
    return sorted({0, last, *map(int, drawn)})


def global_batch(job: Experiment, step: int) -> Batch:
    """The whole batch of a step [rows, seq] on the host, rows in the plan's order."""
    return StepBatches(job.plan, job.train)[step]


def batch_fingerprint(job: Experiment, step: int) -> str:
    """SHA-256 of a step's global batch."""
    batch = global_batch(job, step)
    fields = (batch.tokens, batch.loss_weights, batch.segment_ids, batch.positions, batch.task_ids)
    return manifest.array_fingerprint(*map(np.asarray, fields))


def mixture_json(job: Experiment) -> dict[str, Any]:
    """Contents of mixture.json: the plan's table, with what the tokenised data add."""
    table = job.plan.to_json()
    for row in table["tasks"]:
        store = job.train[row["task"]]
        row["outcomes"] = dict(store.outcomes)
    table["held_out"] = sorted(job.held)
    return table


def samples(job: Experiment, per_task: int = 3) -> dict[str, list[dict[str, Any]]]:
    """The first training examples of each task as pieces with weights, for people to look at."""
    by_task = {}
    for name, store in job.train.items():
        rows = []
        for number in order.permutation(job.config.seed, name, 0, len(store))[:per_task]:
            example = store.example(int(number))
            pieces = masks.shown_tokens(example, job.tokenizer)
            rows.append(
                {
                    "id": job.tasks[name].source(TRAIN).where(store.record(int(number))),
                    "tokens": [piece.text for piece in pieces],
                    "weights": [piece.weight for piece in pieces],
                    "controls": [piece.control for piece in pieces],
                    "length": len(example.tokens),
                    "trained": int((example.loss_weights > 0).sum()),
                }
            )
        by_task[name] = rows
    return by_task
