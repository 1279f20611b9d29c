"""Builds and caches the jitted functions of a run.

Runs that differ only in traced numbers (learning rate, weight decay, seed) share them.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.errors import UserError
from jaxtune.model import lora
from jaxtune.model import transformer as model
from jaxtune.model.linear import REDUCED
from jaxtune.model.lora import LoraConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.optim import OptimConfig, Optimizer
from jaxtune.parallel import compilation as compiling
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible
from jaxtune.step.losses import HeadSpec, LossSums
from jaxtune.step.room import Room
from jaxtune.step.update import (
    Forward,
    Hparams,
    LossConfig,
    Params,
    StepMetrics,
    StepSpec,
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxtune.storage.stores import PACKAGES, is_url, scheme_of

TRACED = (
    *("peak_lr", "schedule", "warmup_frac", "warmup_steps", "final_fraction", "decay_frac"),
    *("weight_decay", "clip_norm"),
)
"""Options of the optimizer that reach a compiled step as numbers: the first six as the rate of each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramSpec:
    """Everything static that a compiled step depends on; `shape` leaves out the numbers of configs that are traced."""

    model: ModelConfig
    optim: OptimConfig
    loss: LossConfig
    lora: LoraConfig | None
    compute_dtype: str
    reduce_dtype: str = "float32"
    """Format in which devices add up gradients (see `linear.REDUCED`)."""
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Options of XLA over those of the platform (see `compilation.compiler_options`)."""
    num_tasks: int
    room: Room
    """Sizes of arrays, and which terms the loss has; not read off `loss`, as runs of one program share it."""
    mesh: jax.sharding.Mesh
    indivisible: Indivisible = Indivisible.ERROR

    @property
    def shape(self) -> "ProgramSpec":
        """Without the numbers that are traced: what two runs of one program have in common.

        Adapters of several ranks share one where columns of zeros change nothing: Adafactor takes means over them.
        """
        usual = OptimConfig()
        traced = {name: getattr(usual, name) for name in TRACED}
        kept = None if self.optim.ema_decay is None else 0.5
        adapters = self.lora
        if adapters is not None:
            rank = adapters.rank if self.optim.optimizer is Optimizer.ADAFACTOR else 1
            adapters = dataclasses.replace(adapters, alpha=1.0, scaling=lora.Scaling.CLASSIC, rank=rank)
        return dataclasses.replace(
            self,
            optim=dataclasses.replace(self.optim, **traced, ema_decay=kept),
            loss=dataclasses.replace(self.loss, z_loss=0.0, label_smoothing=0.0),
            lora=adapters,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The functions of one spec, and where their arrays live."""

    spec: ProgramSpec
    compiler_options: compiling.Options | None
    """Options of XLA that these programs are compiled with."""
    graphdef: nnx.GraphDef
    jit: Callable[..., Any]
    """`jax.jit` with the compiler options of these programs."""
    optimizer: optax.GradientTransformation
    state_shardings: TrainState
    init: Callable[[Params], TrainState]
    init_in_place: Callable[[Params], TrainState]
    """As `init`, with the memory of the parameters that it is given."""
    train_step: Callable[[TrainState, Params, Batch, Hparams], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[Params, Params, Batch, Hparams], LossSums]
    plain_train_step: Callable[[TrainState, Params, Batch, Hparams], tuple[TrainState, StepMetrics]]
    """`train_step` without `jit`, to be called inside a larger jitted function (stacked trials)."""
    plain_eval_step: Callable[[Params, Params, Batch, Hparams], LossSums]
    """`eval_step` without `jit`."""


class Programs:
    """Builds each program once; jit inside it compiles each shape once."""

    def __init__(self) -> None:
        self._built: dict[Any, Program] = {}
        self.shared: dict[Any, Any] = {}
        """Results that every arm of a sweep shares."""

    def get(self, spec: ProgramSpec, trainable: Params) -> Program:
        """The program of a spec; `trainable` holds the trained parameters, arrays or shapes."""
        key = (repr(spec.shape), jax.tree.structure(trainable))
        if key not in self._built:
            self._built[key] = build(spec, trainable)
        return self._built[key]


def build(spec: ProgramSpec, trainable: Params) -> Program:
    """Jitted init, train and eval functions with fixed output shardings (without them XLA chooses, and recompiles)."""
    graphdef = model.abstract_params(spec.model)[0]
    forward = make_forward(graphdef, spec)
    optimizer = optim.make_optimizer(spec.optim, trainable)
    placed = param_shardings(spec, trainable)
    everywhere = sharding.replicated(spec.mesh)
    state_shardings = TrainState(
        step=everywhere,
        params=placed,
        opt_state=sharding.optimizer_shardings(optimizer, trainable, placed),
        ema=None if spec.optim.ema_decay is None else placed,
    )
    step_spec = StepSpec(
        num_tasks=spec.num_tasks,
        loss=spec.loss,
        head=HeadSpec(
            vocab_axis=0 if spec.model.tie_embeddings else 1,
            soft_cap=spec.model.final_soft_cap,
            shards=sharding.row_shards(spec.mesh),
        ),
        room=spec.room,
        ema=spec.optim.ema_decay is not None,
    )
    train_step = make_train_step(forward, optimizer, optim.make_groups(spec.optim, trainable), step_spec)
    eval_step = make_eval_step(forward, step_spec)
    init = lambda params: init_state(params, optimizer, ema=spec.optim.ema_decay is not None)
    platform, given = spec.mesh.devices.flat[0].platform, tuple(sorted(spec.compiler_options.items()))
    jit = functools.partial(
        compiling.jit, platform=platform, dtype=spec.compute_dtype, options=spec.compiler_options
    )  # fmt: skip
    return Program(
        spec=spec,
        compiler_options=compiling.compiler_options(platform, spec.compute_dtype, given),
        graphdef=graphdef,
        jit=jit,
        optimizer=optimizer,
        state_shardings=state_shardings,
        init=jit(init, fills=True, out_shardings=state_shardings),
        init_in_place=jit(init, fills=True, donate_argnums=0, out_shardings=state_shardings),
        train_step=jit(train_step, donate_argnums=0, out_shardings=(state_shardings, everywhere)),
        eval_step=jit(eval_step, out_shardings=everywhere),
        plain_train_step=train_step,
        plain_eval_step=eval_step,
    )


def param_shardings(spec: ProgramSpec, trainable: Params) -> Params:
    """Shardings of trained parameters: by the rule table, or, for adapters (small), whole on every device."""
    if spec.lora is not None:
        return jax.tree.map(lambda _: sharding.replicated(spec.mesh), trainable)
    return sharding.shardings(spec.mesh, trainable, indivisible=spec.indivisible)


def make_forward(graphdef: nnx.GraphDef, spec: ProgramSpec) -> Forward:
    """Hidden states and head of a batch, from trained and frozen parameters."""
    dtype = jnp.dtype(spec.compute_dtype)

    def noise(batch: Batch, key: jax.Array | None):
        if key is None or not spec.optim.neftune_alpha:
            return None
        nothing = jnp.zeros((*batch.tokens.shape, spec.model.d_model), dtype)
        return optim.neftune_noise(key, nothing, jnp.asarray(batch.segment_ids), spec.optim.neftune_alpha)

    def forward(params: Params, frozen: Params, batch: Batch, numbers: Hparams, key: jax.Array | None = None):
        full = params if spec.lora is None else lora.apply_lora(frozen, params, spec.lora, numbers.adapter_scale)
        with REDUCED(spec.reduce_dtype):
            hidden = model.apply(
                graphdef,
                full,
                jnp.asarray(batch.tokens),
                jnp.asarray(batch.positions),
                jnp.asarray(batch.segment_ids),
                dtype=dtype,
                noise=noise(batch, key),
            )
        part, name = ("embed", "embedding") if spec.model.tie_embeddings else ("head", "kernel")
        return hidden, sharding.gathered(full[part][name], f"{part}.{name}")

    return forward


def check_programs_folder(folder: str | None) -> None:
    """Raise UserError for a place where JAX cannot keep compiled programs: of stores it writes to gs:// alone."""
    if folder is None or not is_url(folder):
        return
    if scheme_of(folder) != "gs":
        raise UserError(
            f"compilation_cache {folder}: JAX keeps compiled programs on a disk or at gs://; give a local folder there"
        )
    if importlib.util.find_spec(PACKAGES["gs"]) is None:
        raise UserError(f"compilation_cache at gs:// needs the package {PACKAGES['gs']}: pip install {PACKAGES['gs']}")


def keep_programs(folder: str | None) -> None:
    """Keep compiled programs in a folder or at gs:// between runs, unless JAX was told where; None: nowhere."""
    if folder is not None and jax.config.values["jax_compilation_cache_dir"] is None:
        place = folder if is_url(folder) else str(pathlib.Path(folder).absolute())
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
