"""Inputs of a run on devices: mesh, base parameters, compiled program, batches."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Generator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxtune import optim
from jaxtune.batch import Batch, on_prompts
from jaxtune.config import ExperimentConfig
from jaxtune.data import batches as data
from jaxtune.data.batches import StepBatches
from jaxtune.data.subset import Encoded, Subset
from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.model import lora, moe
from jaxtune.model import transformer as model
from jaxtune.model.attention import choice as backends
from jaxtune.model.settings import ModelConfig
from jaxtune.parallel import compilation, sharding
from jaxtune.parallel.mesh import make_mesh
from jaxtune.plan.planning import Plan
from jaxtune.step.programs import Program, Programs, ProgramSpec
from jaxtune.step.update import Hparams, Params, TrainState, hparams
from jaxtune.terminal.display import Phase
from jaxtune.train import plans
from jaxtune.train.resolution import Inputs
from jaxtune.train.rooms import room_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Parameters at step 0: those that train, and those that stay (the base model under adapters; else None)."""

    trainable: Params
    frozen: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """An experiment on its devices: all that the training loop holds besides its state."""

    inputs: Inputs
    mesh: jax.sharding.Mesh
    base: Base
    program: Program
    numbers: Hparams
    """What the compiled step takes as numbers, without the learning rate: see `numbers_at`."""
    rates: Float[np.ndarray, " steps"]
    """Learning rate of every step."""
    attention: backends.Resolution
    """The attention backend that runs, and why others do not."""

    @property
    def config(self) -> ExperimentConfig:
        return self.inputs.config

    def numbers_at(self, step: int) -> Hparams:
        """The numbers of update `step`, from 0."""
        return dataclasses.replace(self.numbers, learning_rate=self.rates[step])

    def initial_state(self) -> TrainState:
        """State at step 0."""
        return self.program.init(self.base.trainable)

    def take_initial_state(self) -> TrainState:
        """The state of step 0. It takes over the arrays of the loaded parameters (donated).

        `base.trainable` must not be read afterwards, but for its shapes.
        """
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

    def evaluation_batches(
        self, plan: Plan, chosen: Mapping[str, Subset | Encoded], *, prompts: bool = False
    ) -> Generator[Batch, None, None]:
        """Device batches [rows, seq] of an evaluation plan; close it. `prompts`: they weigh, responses do not."""
        rows = plan.rows_per_step
        source = StepBatches(plan, chosen, local_rows=sharding.local_rows(self.mesh, rows))  # pyright: ignore[reportArgumentType]
        with contextlib.closing(data.batches(source)) as stream:
            for batch in stream:
                yield sharding.put_batch(self.mesh, on_prompts(batch) if prompts else batch, rows)

    def full_params(self, params: Params) -> Params:
        """Model parameters, adapters merged in."""
        if self.config.lora is None:
            return params
        return lora.merge(self.base.frozen, params, self.config.lora)


def flops_per_token(session: Session) -> float:
    """Operations of a training step for each token, for the share of peak."""
    return flops_of(session.inputs.model, session.base.frozen or session.base.trainable)


def flops_of(shape: ModelConfig, params: PyTree) -> float:
    """6 x parameters in matrix products (PaLM's estimate, attention left out).

    Of the experts those count that a token is sent to.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    table = 0 if shape.tie_embeddings else shape.vocab_size * shape.d_model
    used = 1.0 if shape.moe is None else shape.moe.experts_per_token / shape.moe.num_experts
    sizes = (leaf.size * (used if re.match(EXPERTS, sharding.path_name(path)) else 1.0) for path, leaf in leaves)
    return 6.0 * (sum(sizes) - table)


EXPERTS = r"layers\.moe\.(gate|up|down)\."
"""Paths of the parameters that each expert has its own of."""


def open_session(inputs: Inputs, programs: Programs) -> Session:
    """Load the base model onto a mesh and build the program."""
    with Phase("reading the base model"):
        inputs, mesh, attention = on_mesh(inputs)
        config = inputs.config
        base = load_base(inputs, mesh)
    return Session(
        inputs=inputs, mesh=mesh, base=base, program=programs.get(program_spec(inputs, mesh), base.trainable),
        attention=attention, numbers=numbers_of(config), rates=optim.rate_table(config.optim, inputs.total_steps),
    )  # fmt: skip


def open_sessions(alike: Sequence[Inputs], programs: Programs) -> list[Session]:
    """Sessions of runs that share a program: on the same devices, over one base model."""
    first = open_session(alike[0], programs)
    return [first, *(beside(first, inputs) for inputs in alike[1:])]


def beside(first: Session, inputs: Inputs) -> Session:
    """The session of a run whose program is that of `first`."""
    config, base = inputs.config, first.base
    if config.lora is not None and config.lora.start is None:  # else all arms start from the same adapters
        base = dataclasses.replace(base, trainable=fresh_adapters(base.frozen, inputs, first.mesh))
    inputs = dataclasses.replace(inputs, model=first.inputs.model)
    rates = optim.rate_table(config.optim, inputs.total_steps)
    return dataclasses.replace(first, inputs=inputs, base=base, numbers=numbers_of(config), rates=rates)


def numbers_of(config: ExperimentConfig) -> Hparams:
    """The numbers of a config that a compiled step takes as data."""
    numbers = hparams(
        0.0, config.optim.weight_decay, config.seed, clip_norm=config.optim.clip_norm, z_loss=config.loss.z_loss,
        label_smoothing=config.loss.label_smoothing, ema_decay=config.optim.ema_decay,
        adapter_scale=1.0 if config.lora is None else config.lora.scale,
    )  # fmt: skip
    return dataclasses.replace(numbers, prompt_weight=np.float32(config.data.prompt_loss_weight))


def fresh_adapters(frozen: Params, inputs: Inputs, mesh: jax.sharding.Mesh) -> Params:
    """Adapters at step 0, drawn from the run's seed at its own rank, with the columns that its program has."""
    config, rank = inputs.config, room_of(inputs, mesh).rank
    assert config.lora is not None and rank is not None
    return lora.with_rank(lora.init_lora(frozen, config.lora, config.seed), rank)


def compute_dtype(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> str:
    """The dtype that a config's step computes in on these devices."""
    return compilation.compute_dtype(config.model.compute_dtype.value, mesh.devices.flat[0].platform)


def reduce_dtype(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> str:
    """The dtype in which a config's devices add up gradients. Raises UserError for one narrower than the products'."""
    asked, computed = config.model.reduce_dtype.value, compute_dtype(config, mesh)
    if asked not in ("float32", computed):
        raise UserError(
            f"model.reduce_dtype is {asked}, and products are in {computed} here; set model.compute_dtype to {asked}, "
            "or leave model.reduce_dtype out"
        )
    return asked


def on_mesh(inputs: Inputs) -> tuple[Inputs, jax.sharding.Mesh, backends.Resolution]:
    """The experiment with a definite attention backend, its mesh, and how the backend was chosen. Nothing is loaded."""
    config = inputs.config
    mesh = make_mesh(config.mesh)
    shape, attention = backends.resolve(
        inputs.model, config.data.seq_len, jnp.dtype(compute_dtype(config, mesh)),
        sequence_shards=mesh.shape["sequence"], tensor_shards=mesh.shape["tensor"],
    )  # fmt: skip
    reduce_dtype(config, mesh)  # refuses one that products do not have
    moe.check_expert_axis(inputs.model.moe, mesh.shape["expert"])  # refuses a size that does not divide experts
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


def load_base(inputs: Inputs, mesh: jax.sharding.Mesh) -> Base:
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
        adapters = lora.with_rank(adapters, room_of(inputs, mesh).rank or config.lora.rank)
        return Base(trainable=adapters, frozen=lora.freeze_base(params, config.lora))
    frozen = lora.freeze_base(params, config.lora)
    return Base(trainable=fresh_adapters(frozen, inputs, mesh), frozen=frozen)


def program_spec(inputs: Inputs, mesh: jax.sharding.Mesh) -> ProgramSpec:
    """Key of an experiment's compiled steps: all that they depend on."""
    config = inputs.config
    return ProgramSpec(
        model=inputs.model, optim=config.optim, loss=config.loss, lora=config.lora,
        compute_dtype=compute_dtype(config, mesh), reduce_dtype=reduce_dtype(config, mesh),
        compiler_options=dict(config.compiler_options),
        num_tasks=len(inputs.task_names),
        room=room_of(inputs, mesh), mesh=mesh,
        indivisible=config.mesh.indivisible,
    )  # fmt: skip
