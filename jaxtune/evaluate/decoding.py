"""Generation with a key/value cache: batched prompts of unequal length, greedy or sampled, whole or token by token.

Prompts are read in chunks by a loop inside the compiled program, and decoding ends when every row has stopped. So a
program is compiled per number of cache slots (a power of two), not per prompt length or answer length.
"""

import contextlib
import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from jaxtune.errors import UserError
from jaxtune.model.cache import Cache, init_cache
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import apply_cached, apply_logits
from jaxtune.parallel import compilation as compiling
from jaxtune.parallel.mesh import ROWS
from jaxtune.parallel.sharding import row_shards
from jaxtune.terminal.display import Phase

SMALLEST_CACHE = 128
"""Least slots of a cache: shorter ones would save little and compile more programs."""
PREFILL_TOKENS = 2048
"""Prompt tokens, over all rows, that are read together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Choice of the next token. The filters apply in the order top_k, top_p, min_p, after the temperature."""

    max_new_tokens: int = 128
    """Longest answer, tokens; at least 1. The model's context may end it earlier."""
    temperature: float | int = 0.0
    """0 takes the most probable token; in [1e-6, 1e6], logits are divided by it and a token is drawn."""
    top_k: int | None = None
    """Draw from the k most probable tokens; at least 1."""
    top_p: float | None = None
    """Draw from the fewest tokens that hold this share of the probability, in (0, 1] (arXiv:1904.09751)."""
    min_p: float | None = None
    """Draw from tokens at least this many times as probable as the best, in [0, 1] (arXiv:2407.01082)."""
    seed: int = 0
    """The same seed, prompt and settings draw the same answer, whatever else is in the batch."""

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:  # else quotients of logits overflow, or are 0
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or in [1e-06, 1e+06]")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; it must be in [0, 1]")
        filters = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if filters and self.temperature == 0:
            raise UserError(f"{', '.join(filters)} has no effect at temperature 0; set a temperature above 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choice:
    """The numbers of a SamplingConfig as traced values; filters that are off let everything pass."""

    seed: UInt32[Array | np.ndarray, ""]
    temperature: Float[Array | np.ndarray, ""]
    top_k: Int[Array | np.ndarray, ""]
    top_p: Float[Array | np.ndarray, ""]
    min_p: Float[Array | np.ndarray, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
    """What a compiled program depends on, besides the shapes of its arguments."""

    graphdef: nnx.GraphDef
    config: ModelConfig
    slots: int
    chunk: int
    dtype: np.dtype
    greedy: bool
    filtered: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """A batch of prompts; padding rows have a limit of 0."""

    prompts: Int[Array | np.ndarray, "rows slots"]
    lengths: Int[Array | np.ndarray, " rows"]
    limits: Int[Array | np.ndarray, " rows"]
    """Most new tokens of each row."""
    draws: UInt32[Array | np.ndarray, "rows 2"]
    """Address of each row's random draws: a digest of the prompt, and how often the same prompt came before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """The rows, number format and devices of a batch of prompts."""

    rows: int = 64
    """Most prompts in a batch."""
    dtype: jax.typing.DTypeLike = jnp.float32
    """Format of the arithmetic."""
    mesh: jax.sharding.Mesh | None = None
    """Devices over whose `data`, `expert` and `fsdp` axes the rows are split; None: the default device."""


ONE_DEVICE = Batching()


def generate(
    graphdef: nnx.GraphDef,
    params: PyTree,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    sampling: SamplingConfig,
    batching: Batching = ONE_DEVICE,
) -> list[list[int]]:
    """New tokens of each prompt, in the order given; the stop token that ended an answer is its last token.

    Prompts of similar length share a batch. Every process of a job passes the same prompts and gets all answers.
    Raises UserError for a prompt that is empty, holds ids the model does not have, or leaves no room in its context.
    """
    check_prompts(prompts, config)
    mesh = batching.mesh
    shards = 1 if mesh is None else row_shards(mesh)
    size = -(-min(batching.rows, _power_of_two(len(prompts))) // shards) * shards
    draws = _draws(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    with Phase("answers", len(prompts), unit="prompts") as phase:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            rows, slots = _make_rows(config, [prompts[i] for i in chosen], draws[chosen], sampling, size)
            program = _make_program(graphdef, config, sampling, slots, size, batching.dtype)
            with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
                placed = rows if mesh is None else jax.device_put(rows, jax.NamedSharding(mesh, jax.P(ROWS)))
                run = _jitted(_answer, program.dtype)
                tokens, counts = run(program, params, placed, _stops(stop_ids), _choice(sampling, config))
            for i, row, count in zip(chosen, np.asarray(tokens), np.asarray(counts), strict=False):
                answers[i] = row[:count].tolist()
            phase.advance(len(chosen))
    return [answers[i] for i in range(len(prompts))]


def stream(
    graphdef: nnx.GraphDef,
    params: PyTree,
    config: ModelConfig,
    prompt: Sequence[int],
    *,
    stop_ids: Collection[int],
    sampling: SamplingConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Iterator[int]:
    """The tokens that `generate` gives for one prompt, each as soon as it is known."""
    check_prompts([prompt], config)
    rows, slots = _make_rows(config, [prompt], _draws([prompt]), sampling, 1)
    program, choice = _make_program(graphdef, config, sampling, slots, 1, dtype), _choice(sampling, config)
    begin, advance = (_jitted(function, program.dtype) for function in (_begin, _advance))
    token, cache = begin(program, params, rows, choice)
    for index in range(1, int(rows.limits[0]) + 1):
        yield int(token[0])
        if int(token[0]) in stop_ids or index == int(rows.limits[0]):
            return
        token, cache = advance(program, params, cache, token, rows.draws, np.asarray(index, np.int32), choice)


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig) -> None:
    """Raise UserError for the first prompt that the model cannot continue."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise UserError(f"prompt {number} is empty; give at least one token")
        if len(prompt) >= config.max_seq_len:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens; the model's context is {config.max_seq_len} tokens, answer "
                "included. Shorten the prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise UserError(
                f"prompt {number} holds token ids {min(prompt)} to {max(prompt)}; the model knows 0 to "
                f"{config.vocab_size - 1}. Use the tokenizer that belongs to the model"
            )


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _draws(prompts: Sequence[Sequence[int]]) -> UInt32[np.ndarray, "rows 2"]:
    seen: Counter[int] = Counter()
    addresses = np.zeros((len(prompts), 2), np.uint32)
    for address, prompt in zip(addresses, prompts, strict=True):
        digest = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
        address[:] = digest, seen[digest]
        seen[digest] += 1
    return addresses


def _make_rows(
    config: ModelConfig, prompts: list, draws: UInt32[np.ndarray, "given 2"], sampling: SamplingConfig, size: int
) -> tuple[_Rows, int]:
    """The prompts as a batch of `size` rows, and the cache slots that they and their answers need."""
    lengths = np.ones(size, np.int32)
    lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
    limits = np.minimum(sampling.max_new_tokens, config.max_seq_len - lengths)
    limits[len(prompts) :] = 0
    slots = max(SMALLEST_CACHE, _power_of_two(int((lengths + limits).max())))
    tokens = np.zeros((size, slots), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    addresses = np.zeros((size, 2), np.uint32)
    addresses[: len(prompts)] = draws
    return _Rows(prompts=tokens, lengths=lengths, limits=limits, draws=addresses), slots


def _make_program(
    graphdef: nnx.GraphDef, config: ModelConfig, sampling: SamplingConfig, slots: int, rows: int, dtype
) -> _Program:
    filters = (sampling.top_k, sampling.top_p, sampling.min_p)
    chunk = min(slots, max(32, _power_of_two(PREFILL_TOKENS // rows)))
    return _Program(
        graphdef=graphdef, config=config, slots=slots, chunk=chunk, dtype=jnp.dtype(dtype),
        greedy=sampling.temperature == 0, filtered=any(value is not None for value in filters),
    )  # fmt: skip


def _choice(sampling: SamplingConfig, config: ModelConfig) -> _Choice:
    number = lambda value, default: np.asarray(default if value is None else value, np.float32)
    top_k = config.vocab_size if sampling.top_k is None else min(sampling.top_k, config.vocab_size)
    return _Choice(
        seed=np.asarray(sampling.seed % 2**32, np.uint32), temperature=number(sampling.temperature, 0),
        top_k=np.asarray(top_k, np.int32), top_p=number(sampling.top_p, 1), min_p=number(sampling.min_p, 0),
    )  # fmt: skip


def _stops(stop_ids: Collection[int]) -> Int[np.ndarray, " stops"]:
    """The ids, padded with one that no token has so that few programs are compiled."""
    padded = np.full(max(8, _power_of_two(len(stop_ids))), -1, np.int32)
    padded[: len(stop_ids)] = sorted(stop_ids)
    return padded


def _begin(program: _Program, params: PyTree, rows: _Rows, choice: _Choice) -> tuple[Int[Array, " rows"], Cache]:
    """The first new token of each row, and the cache that holds its prompt."""
    size, slots = rows.prompts.shape
    cache = init_cache(program.config, size, slots, program.dtype)
    last = jnp.zeros((size, program.config.d_model), program.dtype)
    prompts, lengths = jnp.asarray(rows.prompts), jnp.asarray(rows.lengths)

    def read_chunk(i: Array, carry: tuple[Cache, Array]) -> tuple[Cache, Array]:
        cache, last = carry
        start = i * program.chunk
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, program.chunk, axis=1)
        positions = jnp.broadcast_to(start + jnp.arange(program.chunk), tokens.shape)
        present = (positions < lengths[:, None]).astype(jnp.int32)
        hidden, cache = apply_cached(program.graphdef, params, tokens, positions, present, cache, dtype=program.dtype)
        place = lengths - 1 - start
        ended = (place >= 0) & (place < program.chunk)
        at_end = jnp.take_along_axis(hidden, jnp.clip(place, 0, program.chunk - 1)[:, None, None], axis=1)[:, 0]
        return cache, jnp.where(ended[:, None], at_end, last)

    num_chunks = -(-jnp.max(lengths) // program.chunk)
    cache, last = jax.lax.fori_loop(0, num_chunks, read_chunk, (cache, last))
    return _choose(program, params, last, jnp.asarray(rows.draws), jnp.zeros((), jnp.int32), choice), cache


@functools.cache
def _jitted(function: Callable, dtype: Any) -> Any:
    """Compiled, with the cache of `_advance` in place. Made when first used: the options depend on the device."""
    donated = 2 if function is _advance else ()
    return compiling.jit(
        function, platform=jax.default_backend(), dtype=dtype, static_argnums=0, donate_argnums=donated
    )


def _extend(
    program: _Program, params: PyTree, cache: Cache, token: Array, active: Bool[Array, " rows"], draws: Array,
    index: Array, choice: _Choice,
) -> tuple[Array, Cache]:  # fmt: skip
    """The next token of each row, after adding `token` to the cache of the active rows."""
    positions = jnp.minimum(cache.lengths, program.slots - 1)[:, None]
    present = active.astype(jnp.int32)[:, None]
    hidden, cache = apply_cached(
        program.graphdef, params, token[:, None], positions, present, cache, dtype=program.dtype
    )
    return _choose(program, params, hidden[:, 0], draws, index, choice), cache


def _advance(
    program: _Program, params: PyTree, cache: Cache, token: Array, draws: Array, index: Array, choice: _Choice
) -> tuple[Array, Cache]:
    return _extend(program, params, cache, token, jnp.ones(token.shape, bool), draws, index, choice)


def _answer(
    program: _Program, params: PyTree, rows: _Rows, stop_ids: Array | np.ndarray, choice: _Choice
) -> tuple[Int[Array, "rows slots"], Int[Array, " rows"]]:
    """New tokens of each row and how many they are; ends when every row has stopped."""
    limits = jnp.asarray(rows.limits)
    stopped = lambda token, index: (
        jnp.any(token[:, None] == jnp.asarray(stop_ids)[None, :], axis=1) | (index + 1 >= limits)
    )
    token, cache = _begin(program, params, rows, choice)
    tokens = jnp.zeros(rows.prompts.shape, jnp.int32).at[:, 0].set(token)
    counts = (limits > 0).astype(jnp.int32)
    state = (jnp.ones((), jnp.int32), token, ~stopped(token, 0), tokens, counts, cache)

    def step(state: tuple) -> tuple:
        index, token, active, tokens, counts, cache = state
        token, cache = _extend(program, params, cache, token, active, jnp.asarray(rows.draws), index, choice)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], index, axis=1)
        return index + 1, token, active & ~stopped(token, index), tokens, counts + active, cache

    _, _, _, tokens, counts, _ = jax.lax.while_loop(lambda state: jnp.any(state[2]), step, state)
    return _everywhere((tokens, counts))


def _everywhere(results: tuple) -> tuple:
    """Whole results on every device, so that every process can read them."""
    mesh = jax.sharding.get_abstract_mesh()
    return results if mesh.empty else jax.lax.with_sharding_constraint(results, jax.P())


def _choose(
    program: _Program, params: PyTree, hidden: Float[Array, "rows model"], draws: Array, index: Array, choice: _Choice
) -> Int[Array, " rows"]:
    """The next token of each row: the first of the largest logits, or a draw with the row's own key for this index."""
    logits = apply_logits(program.graphdef, params, hidden[:, None])[:, 0]
    if program.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / choice.temperature
    if program.filtered:
        logits = filter_logits(logits, choice.top_k, choice.top_p, choice.min_p)
    root = jax.random.key(choice.seed)

    def draw(address: Array, row: Array) -> Array:
        key = functools.reduce(jax.random.fold_in, (address[0], address[1], index), root)
        return jax.random.categorical(key, row)

    return jax.vmap(draw)(draws, logits).astype(jnp.int32)


def filter_logits(
    logits: Float[Array, "rows vocab"],
    top_k: Int[Array | np.ndarray, ""],
    top_p: Float[Array | np.ndarray, ""],
    min_p: Float[Array | np.ndarray, ""],
) -> Float[Array, "rows vocab"]:
    """Logits with -inf for tokens outside the k likeliest, then the nucleus of mass p of those, then min_p * best.

    Tokens as likely as the last one kept are kept too.
    """
    ranked = -jnp.sort(-logits, axis=-1)
    kept = jnp.arange(logits.shape[-1])[None, :] < top_k
    shares = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(shares, axis=-1) - shares
    kept &= (mass_before < top_p) & (shares >= min_p * shares[:, :1])
    kept = kept.at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
