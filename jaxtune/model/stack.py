"""The plan of a stack of unlike layers: blocks of kinds that repeat, so that each is one scan.

Weights of different shapes cannot lie in one array. What all layers have (norms) is stacked over all of them;
attention, linear attention, dense feed-forwards and experts are stacked each over the layers that have it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxtune.model.settings import FeedForward, LayerKind, ModelConfig

PARTS = ("attn", "delta", "mlp", "moe")
"""Parts that some layers have and others have not, in the order of their first weights."""
FEED_FORWARDS = {FeedForward.DENSE: "mlp", FeedForward.EXPERTS: "moe"}
Kind = tuple[str, ...]
"""Those of PARTS that a layer has: the one that mixes over tokens, and its feed-forward."""
LONGEST = 32
"""Layers of a block at most: a block's layers are compiled one by one."""


def kinds_of(config: ModelConfig) -> list[Kind]:
    """Kind of every layer."""
    mixer = lambda kind: "delta" if kind is LayerKind.LINEAR else "attn"
    return [(mixer(layer.attention), FEED_FORWARDS[layer.feed_forward]) for layer in config.layers]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeat:
    """Layers `first` to `first + repeats * len(block) - 1`: a block of layers, `repeats` times."""

    first: int
    block: tuple[Kind, ...]
    repeats: int

    @property
    def end(self) -> int:
        return self.first + self.repeats * len(self.block)


def repeats(kinds: Sequence[Kind]) -> list[Repeat]:
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


def _repeat(kinds: tuple[Kind, ...], first: int, length: int) -> Repeat:
    block, count = kinds[first : first + length], 1
    while kinds[first + count * length : first + (count + 1) * length] == block:
        count += 1
    return Repeat(first=first, block=block, repeats=count)


def place_in_part(kinds: Sequence[Kind], layer: int, name: str) -> int:
    """Place of a layer's part among those of that name: how many layers before it have one."""
    return _in_block(kinds[:layer], name)


def stacked_for(weights: dict[str, Any], kinds: Sequence[Kind], repeat: Repeat) -> dict[str, Any]:
    """The weights of the layers of a Repeat, by part; a block of several layers has an axis for them after the first.

    weights: parts of a layer -> arrays stacked over all layers, or over those that have the part.
    """
    return {
        name: _cut(tree, place_in_part(kinds, repeat.first, name), _in_block(repeat.block, name), repeat)
        for name, tree in weights.items()
        if _in_block(repeat.block, name)
    }


def of_layer(weights: dict[str, Any], block: Sequence[Kind], place: int) -> dict[str, Any]:
    """The weights of one layer of a block, out of what a scan over `stacked_for` hands its body."""
    if len(block) == 1:
        return weights
    return {
        name: _at(tree, place_in_part(block, place, name))
        for name, tree in weights.items()
        if name in block[place] or name not in PARTS
    }


def _at(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def _cut(tree: Any, first: int, each: int, repeat: Repeat) -> Any:
    def cut(leaf: Any) -> Any:
        own = leaf if len(leaf) == each * repeat.repeats else leaf[first : first + each * repeat.repeats]
        return own if len(repeat.block) == 1 else own.reshape(repeat.repeats, each, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def _in_block(block: Sequence[Kind], name: str) -> int:
    return sum(name in kind for kind in block) if name in PARTS else len(block)
