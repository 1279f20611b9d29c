"""An experiment placed on devices: parameters, compiled programs, batches; their losses, scores and exports."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Generator, Mapping

import jax
import jax.numpy as jnp

from jaxtune import chat
from jaxtune.batch import Batch
from jaxtune.config import ExperimentConfig
from jaxtune.data import batches as data
from jaxtune.data.batches import StepBatches
from jaxtune.data.subset import Subset
from jaxtune.evaluate import loss as evaluate
from jaxtune.evaluate.decoding import SamplingConfig, generate
from jaxtune.evaluate.loss import LossResult, ScoreResult
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.model import lora
from jaxtune.model import transformer as model
from jaxtune.model.attention import choice as backends
from jaxtune.model.attention.core import Backend
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import make_mesh
from jaxtune.plan.planning import Plan
from jaxtune.step.programs import Program, Programs, ProgramSpec
from jaxtune.step.update import Hparams, Params, TrainState, hparams
from jaxtune.train import plans
from jaxtune.train.resolution import Inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Parameters at step 0: those that train, and those that stay (the base model under adapters; else None)."""

    trainable: Params
    frozen: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """What the training loop holds besides its state."""

    inputs: Inputs
    mesh: jax.sharding.Mesh
    base: Base
    program: Program
    numbers: Hparams
    attention: backends.Resolution
    """The attention backend that runs, and why others do not."""

    @property
    def config(self) -> ExperimentConfig:
        return self.inputs.config

    def initial_state(self) -> TrainState:
        """State at step 0."""
        return self.program.init(self.base.trainable)

    def take_initial_state(self) -> TrainState:
        """State at step 0 in the memory of the base's own arrays: of what trains there, only shapes are left."""
        return self.program.init_in_place(self.base.trainable)

    def train_batches(self, start: int) -> data.BatchIterator:
        """This host's batches [micro_batches, rows, seq] from step `start` on, made ahead."""
        source = StepBatches(
            self.inputs.plan, self.inputs.train, micro_rows=self.inputs.micro_rows,
            local_rows=sharding.local_rows(self.mesh, self.inputs.micro_rows),
        )  # fmt: skip
        return data.batches(source, start=start, workers=self.config.data.workers, prefetch=self.config.data.prefetch)

    def put(self, batch: Batch) -> Batch:
        """A host batch on the devices."""
        return sharding.put_batch(self.mesh, batch, self.inputs.micro_rows)

    def validation_loss(self, params: Params) -> LossResult | None:
        """Per-task loss of the validation examples; None where there are none."""
        plan = self.inputs.eval_plan
        return None if plan is None else self.loss_of(params, plan, self.inputs.validation)

    def seen_loss(self, params: Params, steps: int) -> LossResult | None:
        """Per-task loss of training examples that the first `steps` steps met; None where nothing is validated."""
        chosen = plans.seen_examples(self.inputs.plan, self.inputs.train, self.inputs.validation, steps)
        like = self.inputs.eval_plan  # a batch of its shape needs no other program
        plan = plans.make_validation_plan(self.config, chosen, None if like is None else like.rows_per_step)
        return None if plan is None else self.loss_of(params, plan, chosen)

    def loss_of(self, params: Params, plan: Plan, chosen: Mapping[str, Subset]) -> LossResult:
        """Per-task loss of an evaluation plan's examples."""
        step = functools.partial(self.program.eval_step, params, self.base.frozen)
        with contextlib.closing(self.evaluation_batches(plan, chosen)) as batches:
            return evaluate.per_task_loss(step, batches, list(plan.tasks))

    def evaluation_batches(self, plan: Plan, chosen: Mapping[str, Subset]) -> Generator[Batch, None, None]:
        """Device batches [rows, seq] of an evaluation plan; close it when done."""
        rows = plan.rows_per_step
        source = StepBatches(plan, chosen, local_rows=sharding.local_rows(self.mesh, rows))  # pyright: ignore[reportArgumentType]
        with contextlib.closing(data.batches(source)) as stream:
            for batch in stream:
                yield sharding.put_batch(self.mesh, batch, rows)

    def full_params(self, params: Params) -> Params:
        """Model parameters, adapters merged in."""
        if self.config.lora is None:
            return params
        return lora.merge(self.base.frozen, params, self.config.lora)

    def score(self, params: Params) -> ScoreResult:
        """Greedy answers to the test questions, scored."""
        inputs, settings = self.inputs, self.config.eval

        def answer(prompts: list[list[int]]) -> list[list[int]]:
            return generate(
                self.program.graphdef, self.full_params(params), inputs.model, prompts,
                stop_ids=sorted(inputs.stop_ids), batch_size=settings.generate_rows,
                sampling=SamplingConfig(max_new_tokens=settings.max_new_tokens),
                mesh=self.mesh,
                dtype=jnp.dtype(self.config.model.compute_dtype.value),
            )  # fmt: skip

        metric_of = {task.name: task.metric for task in (*inputs.tasks.values(), *inputs.held.values())}
        return evaluate.generation_scores(
            answer, inputs.questions, inputs.tokenizer, metric_of, stop_ids=inputs.stop_ids
        )

    def export(
        self, params: Params, folder: pathlib.Path, dtype: str | None = None, *, overwrite: bool = False
    ) -> None:
        """Write a Hugging Face folder whose end-of-sequence token is the one that was trained."""
        inputs, words = self.inputs, self.inputs.tokenizer
        hf.export_model(
            folder, inputs.model, self.full_params(params), eos_token_id=chat.terminator_id(inputs.template, words),
            bos_token_id=words.bos_id, pad_token_id=words.pad_id, tokenizer_files=words.files,
            chat_template=inputs.template.source, dtype=dtype or self.config.model.param_dtype.value,
            overwrite=overwrite,
        )  # fmt: skip

    def export_adapter(self, params: Params, folder: pathlib.Path, *, overwrite: bool = False) -> None:
        """Write a PEFT folder of the adapters. A quantised base is not the one they will lie over: no fingerprint."""
        settings = self.config.lora
        assert settings is not None, "no adapter was trained"
        fingerprint = peft.base_fingerprint(self.base.frozen) if settings.base is None else None
        peft.export_peft(
            folder, self.inputs.model, params, settings, base_name=self.config.model.path, fingerprint=fingerprint,
            overwrite=overwrite,
        )  # fmt: skip

    def flops_per_step(self, tokens: int) -> float:
        """6 x parameters in matrix products x tokens (PaLM's estimate, attention left out), for the share of peak."""
        leaves = jax.tree_util.tree_leaves_with_path(self.base.frozen or self.base.trainable)
        table = 0 if self.inputs.model.tie_embeddings else self.inputs.model.vocab_size * self.inputs.model.d_model
        return 6.0 * (sum(leaf.size for _, leaf in leaves) - table) * tokens


def place(inputs: Inputs, programs: Programs, *, seed: int | None = None) -> Placed:
    """Load the base model onto a mesh and build the programs."""
    inputs, mesh, attention = on_mesh(inputs)
    config, seed = inputs.config, inputs.config.seed if seed is None else seed
    base = load_base(inputs, mesh, seed)
    return Placed(
        inputs=inputs, mesh=mesh, base=base, program=programs.get(program_spec(inputs, mesh), base.trainable),
        attention=attention, numbers=hparams(config.optim.peak_lr, config.optim.weight_decay, seed),
    )  # fmt: skip


def place_beside(first: Placed, inputs: Inputs) -> Placed:
    """An experiment whose program is that of `first`, on the same devices; the base model is shared."""
    config = inputs.config
    base = first.base
    if config.lora is not None and config.lora.start is None:  # else all arms start from the same adapters
        base = dataclasses.replace(base, trainable=lora.init_lora(base.frozen, config.lora, config.seed))
    numbers = hparams(config.optim.peak_lr, config.optim.weight_decay, config.seed)
    return dataclasses.replace(
        first, inputs=dataclasses.replace(inputs, model=first.inputs.model), base=base, numbers=numbers
    )


def on_mesh(inputs: Inputs) -> tuple[Inputs, jax.sharding.Mesh, backends.Resolution]:
    """The experiment with a definite attention backend, its mesh, and how the backend was chosen. Nothing is loaded."""
    config = inputs.config
    mesh = make_mesh(config.mesh)
    dtype = jnp.dtype(config.model.compute_dtype.value)
    shape, attention = backends.resolve(
        inputs.model, config.data.seq_len, dtype, sequence_shards=mesh.shape["sequence"]
    )
    sharding.local_rows(mesh, inputs.micro_rows)  # refuses rows that do not divide
    return dataclasses.replace(inputs, model=shape, eval_plan=even_plan(inputs, mesh)), mesh, attention


def even_plan(inputs: Inputs, mesh: jax.sharding.Mesh) -> Plan | None:
    """The validation plan with its rows spread evenly over its batches: as many batches, and few empty rows."""
    plan = inputs.eval_plan
    if plan is None:
        return None
    shards = sharding.row_shards(mesh)
    rows = shards * math.ceil(plan.num_rows / plan.num_steps / shards)
    return plans.make_validation_plan(inputs.config, inputs.validation, rows)


def load_base(inputs: Inputs, mesh: jax.sharding.Mesh, seed: int) -> Base:
    """The base model's parameters, straight into their shardings; with LoRA, fresh adapters over them."""
    config = inputs.config
    dtype = jnp.dtype(config.model.param_dtype.value)
    shapes = model.abstract_params(inputs.model, dtype)[1]
    placed = sharding.shardings(mesh, shapes, indivisible=config.mesh.indivisible)
    by_path = {sharding.path_name(path): where for path, where in jax.tree_util.tree_leaves_with_path(placed)}
    params = hf.import_model(inputs.folder, dtype=dtype, sharding=by_path.__getitem__)[1]
    if config.lora is None:
        return Base(trainable=params, frozen=None)
    if config.lora.start is not None:
        here = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params))  # else no host can read the base
        fingerprint = peft.base_fingerprint(params) if here else None
        adapters = peft.starting_adapters(inputs.model, config.lora, fingerprint=fingerprint)
        return Base(trainable=adapters, frozen=lora.freeze_base(params, config.lora))
    frozen = lora.freeze_base(params, config.lora)
    return Base(trainable=lora.init_lora(frozen, config.lora, seed), frozen=frozen)


def program_spec(inputs: Inputs, mesh: jax.sharding.Mesh) -> ProgramSpec:
    """What the compiled steps of an experiment depend on."""
    config = inputs.config
    return ProgramSpec(
        model=inputs.model, optim=config.optim, loss=config.loss, lora=config.lora,
        compute_dtype=config.model.compute_dtype.value, num_tasks=len(inputs.task_names),
        total_steps=inputs.total_steps, capacity=capacity(inputs, mesh), tokens=strip_tokens(inputs, mesh), mesh=mesh,
        indivisible=config.mesh.indivisible,
    )  # fmt: skip


def capacity(inputs: Inputs, mesh: jax.sharding.Mesh) -> int:
    """Most weighted positions in one device's rows of a micro-batch, rounded up: similar plans share a program."""
    rows = inputs.micro_rows // sharding.row_shards(mesh)
    slots = rows * inputs.config.data.seq_len
    unit = max(1, slots // 8)
    most = slots if inputs.config.data.prompt_loss_weight else inputs.plan.max_loss_tokens(rows)
    return min(slots, -(-most // unit) * unit)


def strip_tokens(inputs: Inputs, mesh: jax.sharding.Mesh) -> int | None:
    """Most tokens in one device's rows of a micro-batch, rounded up; None where rows should stay as they are.

    Rows are laid end to end on CPUs, where attention in blocks skips other examples one by one. Accelerators want all
    rows at once, and their kernels know rows only.
    """
    if inputs.model.attention is not Backend.BLOCKWISE or mesh.devices.flat[0].platform != "cpu":
        return None
    rows = inputs.micro_rows // sharding.row_shards(mesh)
    slots = rows * inputs.config.data.seq_len
    unit = max(1, slots // 32)
    return min(slots, -(-inputs.plan.max_tokens(rows) // unit) * unit)
