"""Measures of retention texts under a run's parameters: nats per document, exact ends, distance to the base."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxtune.batch import Batch
from jaxtune.data.subset import Encoded, length_table
from jaxtune.evaluate.positions import divergence, target_losses
from jaxtune.parallel import sharding
from jaxtune.plan.packing import RowLayout
from jaxtune.plan.planning import Plan, make_eval_plan
from jaxtune.step.losses import HeadSpec, shift
from jaxtune.step.programs import make_forward
from jaxtune.step.update import Params
from jaxtune.storage.documents import Json
from jaxtune.terminal.display import Phase
from jaxtune.train.session import Base, Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextResult:
    """One text, document by document, in the order of its file."""

    nll: Sequence[float]
    """-log p of what counts of each document, nats."""
    tokens: Sequence[int]
    exact: Sequence[bool]
    """Whether greedy generation would go on exactly so."""
    kl: Sequence[float] | None = None
    """Sum over the same tokens of KL(p_base || p_tuned), nats; None where no base was given."""

    @property
    def loss(self) -> float:
        """Mean over tokens, nats."""
        return math.fsum(self.nll) / sum(self.tokens)

    def to_json(self) -> Json:
        """Means, and the numbers of each document."""
        found: Json = {"loss": self.loss, "exact": sum(self.exact) / len(self.exact), "n": len(self.nll)}
        if self.kl is not None:
            found["kl"] = math.fsum(self.kl) / sum(self.tokens)
        documents = {"nll": list(self.nll), "tokens": list(self.tokens), "exact": list(self.exact)}
        return found | {"documents": documents | ({} if self.kl is None else {"kl": list(self.kl)})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """The compiled passes over texts: one gives hidden states, the others numbers from them."""

    hidden: Any
    losses: Any
    divergence: Any

    @classmethod
    def of(cls, session: Session) -> "Reader":
        """The reader of a session's program, made once for all runs that share it."""
        program = session.program
        key = repr(program.spec.shape)
        if key not in READERS:
            spec = program.spec
            head = HeadSpec(vocab_axis=0 if spec.model.tie_embeddings else 1, soft_cap=spec.model.final_soft_cap)
            jit = functools.partial(program.jit, out_shardings=sharding.replicated(session.mesh))
            READERS[key] = cls(
                hidden=jit(make_forward(program.graphdef, spec)),
                losses=jit(functools.partial(token_losses, spec=head)),
                divergence=jit(functools.partial(token_divergence, spec=head)),
            )
        return READERS[key]


READERS: dict[str, Reader] = {}
"""Readers of this process by the spec of their program."""


def read_all(session: Session, params: Params, base: Base | None = None) -> dict[str, TextResult]:
    """Every retention text under some parameters; with `base`, their distance to it as well."""
    reader = Reader.of(session)
    return {name: read(session, reader, params, text, base) for name, text in session.inputs.retention.items()}


def read(session: Session, reader: Reader, params: Params, text: Encoded, base: Base | None) -> TextResult:
    """One text under some parameters."""
    plan, chosen = text_plan(session, text), {"text": text}
    count = len(text.examples)
    sums = {name: np.zeros(count) for name in ("nll", "tokens", "missed", "kl")}
    stream = contextlib.closing(session.evaluation_batches(plan, chosen))
    with stream as batches, Phase("retention texts", plan.num_steps, unit="batches") as phase:
        for step, batch in enumerate(phase.count(batches)):
            add(sums, plan, step, measured(session, reader, params, batch, base))
    return TextResult(
        nll=sums["nll"].tolist(), tokens=sums["tokens"].astype(int).tolist(), exact=(sums["missed"] == 0).tolist(),
        kl=None if base is None else sums["kl"].tolist(),
    )  # fmt: skip


def token_losses(states: tuple[Array, Array], batch: Batch, *, spec: HeadSpec) -> dict[str, Array]:
    """Weighted losses, counts and misses of every position of a batch [rows, seq], from hidden states and head."""
    targets, weights = shift(batch.tokens, batch.loss_weights, batch.segment_ids)
    nll, hit = target_losses(*states, targets, spec)
    return {"nll": nll * weights, "tokens": weights, "missed": weights * ~hit}


def token_divergence(
    base: tuple[Array, Array], tuned: tuple[Array, Array], batch: Batch, *, spec: HeadSpec
) -> Float[Array, "rows seq"]:
    """Weighted divergence of every position of a batch, from the hidden states and heads of two models."""
    return divergence(base, tuned, spec) * shift(batch.tokens, batch.loss_weights, batch.segment_ids)[1]


def text_plan(session: Session, text: Encoded) -> Plan:
    """Every document once; batches of one shape for all texts, the rows that the devices divide."""
    shards = sharding.row_shards(session.mesh)
    rows = shards * max(1, math.ceil(session.config.eval.rows / shards))
    layout = RowLayout(seq_len=session.config.data.seq_len, rows_per_step=rows)
    return make_eval_plan(length_table({"text": text}), layout)


def measured(
    session: Session, reader: Reader, params: Params, batch: Batch, base: Base | None
) -> dict[str, np.ndarray]:
    """Numbers of every position of a batch, weighted: 0 where nothing counts."""
    hidden = reader.hidden(params, session.base.frozen, batch, session.numbers)
    found = reader.losses(hidden, batch)
    if base is not None:
        found["kl"] = reader.divergence(
            reader.hidden(base.trainable, base.frozen, batch, session.numbers), hidden, batch
        )
    fetched = jax.device_get(found)
    return {name: np.asarray(value, np.float64) for name, value in fetched.items()}


def add(sums: Mapping[str, np.ndarray], plan: Plan, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Add a batch's positions to the documents that they belong to."""
    for row, placements in enumerate(plan.rows(step)):
        for one in placements:
            span = slice(one.offset, one.offset + one.length)
            for name, numbers in values.items():
                sums[name][one.example] += numbers[row, span].sum()


def mean_loss(by_text: Mapping[str, float]) -> float:
    """Mean over texts of their losses, nats per token; 0 without any."""
    return math.fsum(by_text.values()) / len(by_text) if by_text else 0.0
