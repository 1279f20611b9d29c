"""Several runs as one compiled program: state, batches and numbers have a leading trial axis.

Trials are computed one after the other on a device, each with the computation of a single run, so that a trial has the
bits of the same run alone; on the `trial` axis of a mesh they are computed side by side, and nothing crosses it. What
does not train (the base under adapters) is shared. A trial that is not active costs nothing and keeps its state.

Batched, the rows of all trials of a device go through the frozen kernels in one product each, and every trial has its
own small products with its adapters: much less to read and to launch, and the last bits are not those of a run alone.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from jaxtune.batch import Batch
from jaxtune.step.losses import LossSums
from jaxtune.step.programs import Program
from jaxtune.step.update import Hparams, Params, StepMetrics, TrainState


class StackMode(enum.Enum):
    """Ways to compute the trials of one device."""

    ORDER = "order"  # one after the other, each with the bits of a run alone
    BATCHED = "batched"  # all at once, for adapters over one base


Function = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
OVER_TRIALS = PartitionSpec("trial")


def turns(active: Sequence[int], size: int, mesh: Mesh) -> tuple[Bool[np.ndarray, " trial"], Int[np.ndarray, ""]]:
    """The trials of `size` that are computed, and the most of them on one device.

    Every device runs the same number of rounds, also with nothing to do: a collective inside a trial needs all devices
    of that trial in the same round.
    """
    flags = np.isin(np.arange(size), np.asarray(active, int))
    by_device = flags.reshape(mesh.shape["trial"], -1).sum(axis=1)
    return flags, np.asarray(by_device.max(), np.int32)


def each(
    function: Function, updated: PyTree, given: PyTree, active: Bool[Array, " trial"], rounds: Int[Array, ""]
) -> tuple[PyTree, PyTree]:
    """`function(updated[k], given[k]) -> (new updated[k], result[k])` for every active trial k, one after the other.

    `updated` is replaced in place, trial by trial. A trial that is not active keeps its own; its result is zero.
    """
    count = active.shape[0]
    shapes = jax.eval_shape(function, at(updated, 0), at(given, 0))[1]
    results = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)
    order = jnp.argsort(~active)  # stable: the active ones first

    def turn(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        updated, results = carry
        k = order[i]
        before = at(updated, k), at(results, k)
        after = function(before[0], at(given, k))
        kept = jax.tree.map(lambda new, old: jnp.where(active[k], new, old), after, before)
        return put_at(updated, k, kept[0]), put_at(results, k, kept[1])

    return jax.lax.fori_loop(0, rounds, turn, (updated, results))


def at_once(
    function: Function, updated: PyTree, given: PyTree, active: Bool[Array, " trial"], rounds: Int[Array, ""]
) -> tuple[PyTree, PyTree]:
    """Same as `each`, for all trials in one: a product with what they share has the rows of all of them.

    Trials that are not active are computed as well, and their results dropped; `rounds` is not read.
    """
    after = jax.vmap(function)(updated, given)
    mine = lambda leaf: active.reshape(-1, *[1] * (leaf.ndim - 1))
    kept = jax.tree.map(lambda new, old: jnp.where(mine(new), new, old), after[0], updated)
    return kept, jax.tree.map(lambda new: jnp.where(mine(new), new, jnp.zeros_like(new)), after[1])


COMPUTE = {StackMode.ORDER: each, StackMode.BATCHED: at_once}


def at(tree: PyTree, k: Int[Array | np.ndarray, ""] | int) -> PyTree:
    """Trial k of a stacked tree."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), tree)


def put_at(tree: PyTree, k: Int[Array | np.ndarray, ""] | int, one: PyTree) -> PyTree:
    """A stacked tree with trial k replaced."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, k, 0), tree, one)


def side_by_side(function: Callable[..., Any], mesh: Mesh, shared: Sequence[bool]) -> Callable[..., Any]:
    """`function` on each device's own trials; arguments are split over trials but for the `shared` ones."""
    if mesh.shape["trial"] == 1:
        return function
    specs = tuple(PartitionSpec() if whole else OVER_TRIALS for whole in shared)
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=OVER_TRIALS, axis_names={"trial"}, check_vma=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialPrograms:
    """The compiled functions of a group of trials. `active`: the numbers of those that are computed."""

    mesh: Mesh
    size: int
    """Trials on the axis; those beyond the group's, which fill up the mesh, are never active."""
    blank: Callable[[], TrainState]
    """A stacked state of zeros."""
    put: Callable[[TrainState, int, TrainState], TrainState]
    """A stacked state with one trial replaced."""
    take: Callable[[TrainState, int], TrainState]
    """One trial's state, placed as a single run's."""
    everywhere: Callable[[PyTree], PyTree]
    """Numbers of all trials, whole on every device: a process of a job holds those of its own trials alone.

    A program of its own, as nothing crosses the trial axis in the others.
    """
    jitted_train_step: Callable[..., tuple[TrainState, StepMetrics]]
    jitted_eval_step: Callable[..., LossSums]

    def fetch(self, tree: PyTree) -> PyTree:
        """Numbers of all trials [trial, ...] as NumPy arrays; waits for the devices. All processes must call it."""
        whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))
        return jax.device_get(tree if whole else self.everywhere(tree))

    def here(self) -> list[int]:
        """Trials that devices of this process compute, ascending."""
        places = NamedSharding(self.mesh, OVER_TRIALS).addressable_devices_indices_map((self.size,)).values()
        return sorted({int(k) for index in places for k in np.arange(self.size)[index]})

    def train_step(
        self, state: TrainState, frozen: Params, batch: Batch, numbers: Hparams, active: Sequence[int]
    ) -> tuple[TrainState, StepMetrics]:
        """One update of every active trial with its own batch and numbers."""
        return self.jitted_train_step(state, frozen, batch, numbers, *turns(active, self.size, self.mesh))

    def eval_step(
        self, params: Params, frozen: Params, batch: Batch, numbers: Hparams, active: Sequence[int]
    ) -> LossSums:
        """Loss sums of every active trial on the same batch."""
        return self.jitted_eval_step(params, frozen, batch, numbers, *turns(active, self.size, self.mesh))


def build(
    program: Program, trainable: Params, mesh: Mesh, count: int, mode: StackMode = StackMode.ORDER
) -> TrialPrograms:
    """The programs of `count` trials of one program; `trainable` holds the trained parameters, arrays or shapes."""
    compute = COMPUTE[mode]
    size = math.ceil(count / mesh.shape["trial"]) * mesh.shape["trial"]
    shapes = jax.eval_shape(program.init, trainable)
    places = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec("trial", *s.spec)), program.state_shardings)
    by_trial = NamedSharding(mesh, OVER_TRIALS)

    def train_step(state: TrainState, frozen: Params, batch: Batch, numbers: Hparams, active: Array, rounds: Array):
        step = lambda one, given: program.plain_train_step(one, frozen, *given)
        return compute(step, state, (batch, numbers), active, rounds)

    def eval_step(
        params: Params, frozen: Params, batch: Batch, numbers: Hparams, active: Array, rounds: Array
    ) -> LossSums:
        measure = lambda _, given: (None, program.plain_eval_step(given[0], frozen, batch, given[1]))
        return compute(measure, None, (params, numbers), active, rounds)[1]

    def blank() -> TrainState:
        return jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    jit = program.jit
    return TrialPrograms(
        mesh=mesh,
        size=size,
        blank=jit(blank, fills=True, out_shardings=places),
        put=jit(put_at, donate_argnums=0, out_shardings=places),
        take=jit(at, out_shardings=program.state_shardings),
        everywhere=jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec())),
        jitted_train_step=jit(
            side_by_side(train_step, mesh, shared=(False, True, False, False, False, True)),
            donate_argnums=0,
            out_shardings=(places, by_trial),
        ),
        jitted_eval_step=jit(
            side_by_side(eval_step, mesh, shared=(False, True, True, False, False, True)), out_shardings=by_trial
        ),
    )
