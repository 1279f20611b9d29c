"""Which stored tensor holds which parameter of a model, in which shape."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.errors import UserError
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.safetensors import Entry
from jaxtune.hf.tensors import Tensor, tensors
from jaxtune.model.settings import ModelConfig

Params = dict[str, Any]
"""Parameters, or their shapes, as nested dicts."""
FLOATS = ("F32", "BF16", "F16")
"""Dtypes a checkpoint may store."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor that are the parameter, or its slice at `index`."""

    entry: Entry
    rows: slice
    index: tuple[int, ...]


def leaf_at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _stored_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the checkpoint of a parameter slice: weights are [out, in], heads are merged."""
    if path[-1] == "kernel":
        inputs = 2 if path[-2:] == ("o", "kernel") else 1
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return (math.prod(shape),) if path[-1] == "bias" else shape


def to_stored(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    stored = _stored_shape(path, value.shape)
    return value.reshape(stored[::-1]).T if path[-1] == "kernel" else value.reshape(stored)


def from_stored(path: tuple[str, ...], value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (value.T if path[-1] == "kernel" else value).reshape(shape)


def stored_layout(tensor: Tensor, shapes: Params) -> tuple[tuple[int, ...], list[slice]]:
    """Shape of a stored tensor, and the rows of each of its parts."""
    rows, place, tail = [], 0, ()
    for part in tensor.parts:
        stored = _stored_shape(part.path, leaf_at(shapes, part.path).shape[len(part.index) :])
        rows.append(slice(place, place + stored[0]))
        place, tail = place + stored[0], stored[1:]
    return (place, *tail), rows


def match_tensors(
    folder: Path, config: ModelConfig, shapes: Params, entries: Mapping[str, Entry]
) -> dict[tuple[str, ...], list[Piece]]:
    """The stored pieces of every parameter; raises one UserError with everything that does not fit."""
    pieces: dict[tuple[str, ...], list[Piece]] = {}
    wrong, known = [], set()
    for tensor in tensors(config):
        known.add(tensor.name)
        shape, rows = stored_layout(tensor, shapes)
        entry = entries.get(tensor.name)
        if entry is None:
            wrong.append(f"tensor {tensor.name!r} is missing (expected shape {list(shape)})")
        elif entry.shape != shape:
            wrong.append(
                f"tensor {tensor.name!r} in {entry.file.name} has shape {list(entry.shape)}, expected {list(shape)}"
            )
        elif entry.dtype not in FLOATS:
            wrong.append(
                f"tensor {tensor.name!r} in {entry.file.name} has dtype {entry.dtype}, expected {' or '.join(FLOATS)}"
            )
        else:
            for part, span in zip(tensor.parts, rows, strict=True):
                pieces.setdefault(part.path, []).append(Piece(entry, span, part.index))
    for name in sorted(set(entries) - known):
        if not _is_redundant(name, config, entries):
            wrong.append(f"tensor {name!r} in {entries[name].file.name} is unknown to model_type {config.family!r}")
    if wrong:
        listed = "\n  ".join(wrong[:10]) + (f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise UserError(
            f"{folder}: {len(wrong)} tensors do not fit config.json:\n  {listed}\n"
            "Use weights and config.json of the same model."
        )
    return pieces


def _is_redundant(name: str, config: ModelConfig, entries: Mapping[str, Entry]) -> bool:
    """Tensors that say nothing new: rotary frequencies, and a stored head that equals the embedding it is tied to."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    if name != "lm_head.weight" or not config.tie_embeddings or "model.embed_tokens.weight" not in entries:
        return False
    head, embedding = entries[name], entries["model.embed_tokens.weight"]
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    return safetensors_io.read_tensor(head).tobytes() == safetensors_io.read_tensor(embedding).tobytes()
