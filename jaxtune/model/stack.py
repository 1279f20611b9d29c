"""The plan of a stack of unlike layers: blocks of kinds that repeat, so that each is one scan.

Weights of different shapes cannot lie in one array. What all layers have (attention, norms) is stacked over all of
them; the dense feed-forwards are stacked over the layers that have one, and the experts over theirs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxtune.model.settings import FeedForward

PARTS = {FeedForward.DENSE: "mlp", FeedForward.EXPERTS: "moe"}
"""Name of each kind's feed-forward in a layer."""
LONGEST = 32
"""Layers of a block at most: a block's layers are compiled one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeat:
    """Layers `first` to `first + repeats * len(block) - 1`: a block of layers, `repeats` times."""

    first: int
    block: tuple[FeedForward, ...]
    repeats: int

    @property
    def end(self) -> int:
        return self.first + self.repeats * len(self.block)


def repeats(kinds: Sequence[FeedForward]) -> list[Repeat]:
    """A short list of repeated blocks that is the whole stack.

    From each place on, the block that covers most layers by repeating, the shortest among equals; a layer that starts
    none stands alone. A stack of equal layers is one Repeat, and so is any that repeats a pattern.
    """
    kinds, found, first = tuple(kinds), [], 0
    while first < len(kinds):
        candidates = [_repeat(kinds, first, length) for length in range(1, min(LONGEST, (len(kinds) - first) // 2) + 1)]
        repeated = [candidate for candidate in candidates if candidate.repeats > 1]
        alone = Repeat(first=first, block=kinds[first : first + 1], repeats=1)
        best = max(repeated, key=lambda candidate: (candidate.end, -len(candidate.block)), default=alone)
        found.append(best)
        first = best.end
    return found


def _repeat(kinds: tuple[FeedForward, ...], first: int, length: int) -> Repeat:
    block, count = kinds[first : first + length], 1
    while kinds[first + count * length : first + (count + 1) * length] == block:
        count += 1
    return Repeat(first=first, block=block, repeats=count)


def place_in_part(kinds: Sequence[FeedForward], layer: int) -> int:
    """Place of a layer's feed-forward among those of its kind."""
    return sum(kind is kinds[layer] for kind in kinds[:layer])


def stacked_for(weights: dict[str, Any], kinds: Sequence[FeedForward], repeat: Repeat) -> dict[str, Any]:
    """The weights of the layers of a Repeat, by part; a block of several layers has an axis for them after the first.

    weights: parts of a layer -> arrays stacked over all layers, or over those that have the part.
    """
    return {
        name: _cut(tree, _before(kinds, name, repeat.first), _in_block(repeat.block, name), repeat)
        for name, tree in weights.items()
        if _in_block(repeat.block, name)
    }


def of_layer(weights: dict[str, Any], block: Sequence[FeedForward], place: int) -> dict[str, Any]:
    """The weights of one layer of a block, out of what a scan over `stacked_for` hands its body."""
    if len(block) == 1:
        return weights
    own = PARTS[block[place]]
    return {
        name: _at(tree, place_in_part(block, place) if name == own else place)
        for name, tree in weights.items()
        if name == own or name not in PARTS.values()
    }


def _at(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def _cut(tree: Any, first: int, each: int, repeat: Repeat) -> Any:
    def cut(leaf: Any) -> Any:
        own = leaf if len(leaf) == each * repeat.repeats else leaf[first : first + each * repeat.repeats]
        return own if len(repeat.block) == 1 else own.reshape(repeat.repeats, each, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def _in_block(block: Sequence[FeedForward], name: str) -> int:
    return sum(PARTS[kind] == name for kind in block) if name in PARTS.values() else len(block)


def _before(kinds: Sequence[FeedForward], name: str, first: int) -> int:
    return _in_block(kinds[:first], name)
