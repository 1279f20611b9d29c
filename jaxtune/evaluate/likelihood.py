"""Log-likelihoods of given continuations: what a model thinks of an answer that it did not write itself.

Pairs of similar length share a batch, rows are as long as the longest of them rounded up, and only positions of
continuations pay for the vocabulary. So few programs are compiled, and memory does not grow with the vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxtune.errors import UserError
from jaxtune.evaluate.decoding import ONE_DEVICE, Batching
from jaxtune.model.attention.core import Backend
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params, apply, apply_logits
from jaxtune.parallel import compilation as compiling
from jaxtune.parallel.mesh import ROWS
from jaxtune.parallel.sharding import row_shards
from jaxtune.terminal.display import Phase

SHORTEST = 32
"""Least tokens of a row: shorter ones would save little and compile more programs."""
POSITIONS = 256
"""Positions whose logits are held at a time."""
TOKENS = 2**14
"""Tokens of a batch, padding included."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""
Scorer = Callable[[Sequence[Pair]], list["Likelihood"]]
"""Likelihoods of continuations under some model, in the order given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Likelihood of a continuation."""

    total: float
    """Sum of log p over its tokens, nats."""
    tokens: int
    greedy: bool
    """Whether every token of it has the highest logit: greedy generation would go on exactly so."""

    @property
    def mean(self) -> float:
        """Mean of log p over its tokens, nats."""
        return self.total / self.tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """A batch of contexts with their continuations, and the places of the tokens that are asked for."""

    tokens: Int[Array | np.ndarray, "rows seq"]
    present: Int[Array | np.ndarray, "rows seq"]
    """1 where there is a token."""
    row: Int[Array | np.ndarray, " asked"]
    position: Int[Array | np.ndarray, " asked"]
    """Place of the token before each that is asked for."""
    target: Int[Array | np.ndarray, " asked"]


def likelihoods(
    params: PyTree, config: ModelConfig, pairs: Sequence[Pair], *, batching: Batching = ONE_DEVICE
) -> list[Likelihood]:
    """Likelihood of every continuation after its context, in the order given.

    Every process of a job passes the same pairs and gets all numbers. Raises UserError for an empty context or
    continuation, ids that the model does not have, and pairs longer than its context.
    """
    for number, pair in enumerate(pairs, 1):
        _check(pair, number, config)
    mesh = batching.mesh
    graphdef = _graph(config, 1 if mesh is None else mesh.shape["sequence"])
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    found: dict[int, Likelihood] = {}
    with Phase("likelihoods", len(pairs), unit="texts") as phase:
        while len(found) < len(pairs):
            size = _rows_of(pairs[order[len(found)]], len(pairs) - len(found), batching)
            chosen = order[len(found) : len(found) + size]
            part = [pairs[i] for i in chosen]
            rows = _make_rows(part, size)
            with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
                placed = rows if mesh is None else _placed(rows, mesh)
                log_p, best = _jitted(jnp.dtype(batching.dtype))(graphdef, params, placed)
            found |= dict(zip(chosen, _cut(part, np.asarray(log_p), np.asarray(best)), strict=True))
            phase.advance(len(chosen))
    return [found[i] for i in range(len(pairs))]


def cut_left(pair: Pair, config: ModelConfig) -> Pair:
    """The pair with as much of the end of its context as the model can see before the continuation."""
    room = config.max_seq_len + 1 - len(pair[1])
    return (pair[0][-room:] if room > 0 else pair[0], pair[1])


def _rows_of(longest: Pair, left: int, batching: Batching) -> int:
    """Rows of a batch by its longest text: as many as `TOKENS` allow, and no more than are left."""
    shards = 1 if batching.mesh is None else row_shards(batching.mesh)
    fitting = max(1, TOKENS // _rounded(len(longest[0]) + len(longest[1])))
    return -(-min(batching.rows, _power_of_two(left), 1 << (fitting.bit_length() - 1)) // shards) * shards


@functools.cache
def _graph(config: ModelConfig, sequence_shards: int) -> nnx.GraphDef:
    """The model's graph with a plain attention, which takes rows of any length."""
    backend = Backend.AUTO if sequence_shards == 1 else Backend.REFERENCE
    return abstract_params(dataclasses.replace(config, attention=backend))[0]


def _check(pair: Pair, number: int, config: ModelConfig) -> None:
    context, continuation = pair
    if not len(context) or not len(continuation):
        raise UserError(f"text {number}: a likelihood needs a token before the continuation, and one in it")
    if len(context) + len(continuation) > config.max_seq_len + 1:
        raise UserError(
            f"text {number} has {len(context) + len(continuation):,} tokens; the model's context is "
            f"{config.max_seq_len:,}: cut it on the left"
        )
    worst = max(max(context), max(continuation))
    if worst >= config.vocab_size or min(min(context), min(continuation)) < 0:
        raise UserError(f"text {number} holds the token {worst}; the model has {config.vocab_size:,} of them")


def _make_rows(pairs: Sequence[Pair], size: int) -> _Rows:
    """The rows of a batch; what is asked for is padded with the first token of the first row."""
    texts = [[*context, *continuation] for context, continuation in pairs]
    longest = max(map(len, texts)) - 1  # the last token is nobody's context
    tokens = np.zeros((size, max(SHORTEST, _rounded(longest))), np.int32)
    present = np.zeros_like(tokens)
    asked = []
    for number, (text, (context, _)) in enumerate(zip(texts, pairs, strict=True)):
        tokens[number, : len(text) - 1] = text[:-1]
        present[number, : len(text) - 1] = 1
        asked += [(number, place - 1, text[place]) for place in range(len(context), len(text))]
    places = np.zeros((_rounded(len(asked)), 3), np.int32)
    places[: len(asked)] = asked
    return _Rows(tokens=tokens, present=present, row=places[:, 0], position=places[:, 1], target=places[:, 2])


def _cut(pairs: Sequence[Pair], log_p: np.ndarray, best: np.ndarray) -> list[Likelihood]:
    """The numbers of each text from those of all tokens that were asked for, which lie in its order."""
    ends = np.cumsum([len(continuation) for _, continuation in pairs])
    return [
        Likelihood(
            total=float(log_p[end - len(text) : end].astype(np.float64).sum()), tokens=len(text),
            greedy=bool(best[end - len(text) : end].all()),
        )
        for end, (_, text) in zip(ends.tolist(), pairs, strict=True)
    ]  # fmt: skip


def _placed(rows: _Rows, mesh: jax.sharding.Mesh) -> _Rows:
    """The batch on devices: rows over their axes, the places on all."""
    split, whole = jax.NamedSharding(mesh, jax.P(ROWS)), jax.NamedSharding(mesh, jax.P())
    at = {name: split if name in ("tokens", "present") else whole for name in ("tokens", "present", *_ASKED)}
    return _Rows(**{name: jax.device_put(getattr(rows, name), place) for name, place in at.items()})


_ASKED = ("row", "position", "target")


@functools.cache
def _jitted(dtype: Any) -> Any:
    """Compiled when first used: the options depend on the device."""
    function = functools.partial(_measure, dtype=dtype)
    return compiling.jit(function, platform=jax.default_backend(), dtype=dtype, static_argnums=0)


def _measure(
    graphdef: nnx.GraphDef, params: PyTree, rows: _Rows, *, dtype: Any
) -> tuple[Float[Array, " asked"], Bool[Array, " asked"]]:
    """log p of every token that is asked for, and whether it has the highest logit."""
    tokens = jnp.asarray(rows.tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = apply(graphdef, params, tokens, positions, jnp.asarray(rows.present), dtype=dtype)
    mesh = jax.sharding.get_abstract_mesh()
    hidden = hidden if mesh.empty else jax.lax.with_sharding_constraint(hidden, jax.P())
    before = hidden[jnp.asarray(rows.row), jnp.asarray(rows.position)]

    def chunk(given: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = apply_logits(graphdef, params, given[0][None])[0]
        at_target = jnp.take_along_axis(logits, given[1][:, None], axis=1)[:, 0]
        return at_target - jax.nn.logsumexp(logits, axis=-1), at_target >= jnp.max(logits, axis=-1)

    count = min(POSITIONS, len(before))
    count = count if len(before) % count == 0 else len(before) // 3
    split = lambda array: array.reshape(-1, count, *array.shape[1:])
    log_p, best = jax.lax.map(chunk, (split(before), split(jnp.asarray(rows.target))))
    return log_p.reshape(-1), best.reshape(-1)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _rounded(n: int) -> int:
    """The least power of two, or one and a half of one, that is not below `n`; at least 4."""
    whole = max(4, _power_of_two(n))
    return 3 * whole // 4 if n <= 3 * whole // 4 and whole > 4 else whole
