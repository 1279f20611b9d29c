"""Do tasks pull a model the same way? Gradients of each task's own batches at given parameters, and one step ahead."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jaxtune import config as configs
from jaxtune import optim
from jaxtune.batch import Batch
from jaxtune.config import ExperimentConfig
from jaxtune.data.subset import Subset, length_table
from jaxtune.errors import UserError
from jaxtune.parallel import sharding
from jaxtune.plan import order
from jaxtune.plan.packing import RowLayout
from jaxtune.plan.planning import Plan, make_eval_plan
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.science.conflict import cosine, sketch
from jaxtune.step.losses import HeadSpec
from jaxtune.step.programs import Programs, make_forward
from jaxtune.step.update import Params, StepSpec, make_gradient
from jaxtune.storage.documents import Json
from jaxtune.terminal.display import Phase
from jaxtune.train.resolution import resolve
from jaxtune.train.session import Session, open_session

FEWEST = 4
"""Batches of a task below which a jackknife says nothing."""
MOST_NUMBERS = 2**28
"""Gradient entries held at a time (1 GiB); larger models are sketched."""
SKETCH = 2**16
"""Numbers that a sketched gradient is thrown onto."""
SHARES = (0.1, 0.5, 1.0)
"""Points of a run at which it is looked at, as far as checkpoints are there; and its start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConflictRequest:
    """Number and size of the batches that gradients are taken of."""

    batches: int = 16
    """Batches a task."""
    tokens: int = 1024
    """Slots of a batch."""

    def __post_init__(self):
        if self.batches < FEWEST or self.tokens < 8:
            raise UserError(
                f"--batches {self.batches} --tokens {self.tokens}: at least {FEWEST} batches of 8 tokens are needed"
            )


def conflict_of_run(run_dir: pathlib.Path, request: ConflictRequest) -> Json:
    """The conflict at the start of a run and at the checkpoints nearest to 10 %, 50 % and its end."""
    config = configs.of_run(run_dir)
    kept = Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint, read_only=True)
    with contextlib.closing(kept) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{run_dir} has no checkpoint; name a config instead to look at the base model")

        def at(session: Session) -> dict[int, Params]:
            total = session.inputs.total_steps
            near = dict.fromkeys(min(steps, key=lambda step: abs(step - share * total)) for share in SHARES)
            shapes = abstract(session.program.init(session.base.trainable)).params
            return {step: checkpoints.restore_params(step, shapes) for step in near}

        return conflict_of(config, request, at)


def conflict_of(
    config: ExperimentConfig, request: ConflictRequest, at: Callable[[Session], Mapping[int, Params]] = lambda _: {}
) -> Json:
    """Cosines of all pairs of a config's tasks and losses one step ahead, at the base and at `at` (step -> params).

    Raises UserError for one task, and for a task with too few examples for four batches, before anything is computed.
    """
    inputs = resolve(config, questions=False)
    if len(inputs.tasks) < 2:
        raise UserError(f"a conflict takes two tasks; {config.name!r} trains on {', '.join(inputs.tasks)}")
    session = open_session(inputs, Programs())
    feeds = {task: TaskBatches(session, task, request) for task in inputs.tasks}
    count = min(feed.count for feed in feeds.values())
    if count < FEWEST:
        short = [task for task, feed in feeds.items() if feed.count < FEWEST]
        raise UserError(
            f"{', '.join(short)}: not enough training examples for {FEWEST} batches of {request.tokens} tokens; "
            "give fewer --tokens, or leave the task out"
        )
    for feed in feeds.values():
        feed.count = count  # as many batches of each: inner products of all make one square table
    with jax.set_mesh(session.mesh):
        points = {0: session.base.trainable, **at(session)}
        look = Look(session, feeds, count)
        found = [{"step": step, **look.at(params)} for step, params in points.items()]
    return {"tasks": list(inputs.tasks), "batches": count, "tokens": request.tokens, "points": found}


class TaskBatches:
    """Batches of one task's training examples, in an order of their own."""

    def __init__(self, session: Session, task: str, request: ConflictRequest):
        inputs = session.inputs
        shards = sharding.row_shards(session.mesh)
        rows = shards * math.ceil(max(1, round(request.tokens / inputs.config.data.seq_len)) / shards)
        store = inputs.train[task]
        numbers = order.permutation(inputs.config.seed, f"conflict {task}", 0, len(store))
        lengths = np.asarray(store.lengths)[numbers, 0]
        # Packing may spill into a few rows more than the tokens fill; twice the batches are enough to cut from.
        enough = int(np.searchsorted(np.cumsum(lengths), 2 * request.batches * rows * inputs.config.data.seq_len)) + 1
        self.session, self.task = session, task
        self.chosen = {task: Subset(store=store, numbers=numbers[:enough])}
        layout = RowLayout(seq_len=inputs.config.data.seq_len, rows_per_step=rows)
        self.plan: Plan = make_eval_plan(length_table(self.chosen), layout)
        full = self.plan.num_steps - (self.plan.num_rows % rows > 0)
        self.count = min(request.batches, max(full, 0))

    def __iter__(self):
        with contextlib.closing(self.session.evaluation_batches(self.plan, self.chosen)) as stream:
            yield from itertools.islice(stream, self.count)


class Look:
    """The compiled gradient of a task's batch, the optimizer's step, and what is made of them."""

    def __init__(self, session: Session, feeds: Mapping[str, TaskBatches], count: int):
        self.session, self.feeds, self.count = session, feeds, count
        program, config = session.program, session.config
        head = HeadSpec(
            vocab_axis=0 if program.spec.model.tie_embeddings else 1, soft_cap=program.spec.model.final_soft_cap,
            shards=sharding.row_shards(session.mesh),
        )  # fmt: skip
        groups = optim.make_groups(config.optim, session.base.trainable)
        spec = StepSpec(num_tasks=1, loss=program.spec.loss, head=head)
        summed = make_gradient(make_forward(program.graphdef, program.spec), groups, spec)

        def gradient(params: Params, frozen: Params, batch: Batch) -> tuple[Params, Any]:
            micro = jax.tree.map(lambda leaf: leaf[None], batch)
            grads, sums = summed(params, frozen, micro, session.numbers, jax.random.key(config.seed))
            weight = jnp.maximum(sums.weight.sum(), 1e-9)
            return jax.tree.map(lambda g: g.astype(jnp.float32) / weight, grads), sums.nll.sum() / weight

        def ahead(params: Params, grads: Params) -> Params:
            optimizer = optax.with_extra_args_support(program.optimizer)
            start = optimizer.init(params)
            direction, _ = optimizer.update(grads, start, params, clip_norm=session.numbers.clip_norm)
            rate, decay = jnp.asarray(config.optim.peak_lr), jnp.asarray(config.optim.weight_decay)
            moved = optim.apply_update(params, direction, groups, rate=rate, weight_decay=decay)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, params)

        self._gradient, self._ahead = program.jit(gradient), program.jit(ahead)

    def at(self, params: Params) -> Json:
        """Cosines of all pairs and the changes of every loss one step ahead, at some parameters."""
        gram, means, losses = self.gradients(params)
        names = list(self.feeds)
        pairs = []
        for a, b in itertools.combinations(range(len(names)), 2):
            found = cosine(gram, a, b)
            pairs.append({"first": names[a], "second": names[b], **dataclasses.asdict(found)})
        return {
            "loss": dict(zip(names, losses, strict=True)),
            "pairs": pairs,
            "ahead": self.steps(params, means, losses),
        }

    def gradients(self, params: Params) -> tuple[Float[np.ndarray, "t b t b"], dict[str, Params], list[float]]:
        """Inner products of all batches' gradients, each task's mean gradient, and its mean loss."""
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        whole = size * self.count * len(self.feeds) <= MOST_NUMBERS
        rows, means, losses = [], {}, []
        with Phase("gradients", self.count * len(self.feeds), unit="batches") as phase:
            for task, feed in self.feeds.items():
                total, sum_loss = None, 0.0
                for batch in phase.count(feed):
                    grads, loss = self._gradient(params, self.session.base.frozen, batch)
                    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(grads))])
                    rows.append(flat if whole else sketch(flat, SKETCH))
                    total = grads if total is None else jax.tree.map(jnp.add, total, grads)
                    sum_loss += float(loss)
                means[task] = jax.tree.map(lambda leaf: leaf / self.count, total)
                losses.append(sum_loss / self.count)
        table = np.stack(rows)
        shape = (len(self.feeds), self.count)
        return np.asarray(table @ table.T, np.float64).reshape(*shape, *shape), means, losses

    def steps(self, params: Params, means: Mapping[str, Params], losses: list[float]) -> list[Json]:
        """Change of each task's loss after one step of the run's own optimizer on each task alone, at the peak rate."""
        found = []
        for source, grads in means.items():
            moved = self._ahead(params, grads)
            for (target, feed), before in zip(self.feeds.items(), losses, strict=True):
                after = [float(self._gradient(moved, self.session.base.frozen, batch)[1]) for batch in feed]
                change = before - math.fsum(after) / len(after)
                found.append({"source": source, "target": target, "gain": change})
        return found
