"""The map from a model's parameters to stored tensors, with shapes."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.errors import UserError
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.families import family_of
from jaxtune.hf.mxfp4 import MXFP4, read_values
from jaxtune.hf.safetensors import Entry
from jaxtune.hf.tensors import Form, Tensor, tensors
from jaxtune.model.settings import ModelConfig

Params = dict[str, Any]
"""Parameters, or their shapes, as nested dicts."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F32", "BF16", "F16")
"""Dtypes a checkpoint may store."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The part of a stored tensor that is a parameter, or a slice of one."""

    rows: slice | np.ndarray
    """Numbers of rows where they are not side by side, in the form HEADS."""
    columns: slice | None = None
    """Of one expert, in the form EXPERTS: its part along the last axis. None in the form ROWS."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A place in a stored tensor that is the parameter, or its slice at `index`."""

    entry: Entry
    place: Place
    index: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Values of the place, read from disk now. Raises UserError where they are not finite."""
        rows = self.place.rows
        if isinstance(rows, np.ndarray):
            return self.read_rows(0, len(rows))
        values = read_values(self.entry, rows)
        safetensors_io.check_finite(self.entry, values)
        return values if self.place.columns is None else values[0, ..., self.place.columns]

    @property
    def splits(self) -> bool:
        """Whether it is a matrix whose rows can be read one by one: no vector, and no packed weights."""
        return len(self.entry.shape) == (2 if self.place.columns is None else 3) and self.entry.dtype != MXFP4

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of a piece that `splits`, as it is stored."""
        rows = self.place.rows
        if self.place.columns is None:
            return len(rows) if isinstance(rows, np.ndarray) else rows.stop - rows.start, self.entry.shape[1]
        return self.entry.shape[1], len(range(*self.place.columns.indices(self.entry.shape[2])))

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` of a piece that `splits`, read from disk now. Raises UserError as `read` does."""
        rows = self.place.rows
        if isinstance(rows, np.ndarray):
            return self._read_numbered(rows[first:last])
        entry, start = self.entry, rows.start
        if self.place.columns is not None:  # of one expert
            bytes_each = math.prod(entry.shape[1:]) * safetensors_io.DTYPES[entry.dtype].itemsize
            entry = dataclasses.replace(entry, shape=entry.shape[1:], start=entry.start + start * bytes_each)
            start = 0
        values = safetensors_io.read_tensor(entry, slice(start + first, start + last))
        safetensors_io.check_finite(entry, values)
        return values if self.place.columns is None else values[:, self.place.columns]

    def _read_numbered(self, rows: np.ndarray) -> np.ndarray:
        first = int(rows.min())
        values = safetensors_io.read_tensor(self.entry, slice(first, int(rows.max()) + 1))[rows - first]
        safetensors_io.check_finite(self.entry, values)
        return values


def leaf_at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _stored_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the checkpoint of a parameter slice: weights are [out, in], heads are merged."""
    if path[-1] == "kernel":
        inputs = 2 if path[-2:] == ("o", "kernel") else 1
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    if path[-1] == "taps":  # [channels, tokens], which PyTorch's convolutions have as [channels, inputs, tokens]
        return shape[0], 1, shape[1]
    return (math.prod(shape),) if path[-1] == "bias" else shape


def to_stored(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """A part as it is stored in the form ROWS."""
    stored = _stored_shape(path, value.shape)
    return value.reshape(stored[::-1]).T if path[-1] == "kernel" else value.reshape(stored)


def from_stored(path: tuple[str, ...], piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a piece, in the shape of the parameter's slice."""
    value = piece.read()
    return (value.T if path[-1] == "kernel" and piece.place.columns is None else value).reshape(shape)


def stored_layout(tensor: Tensor, shapes: Params) -> tuple[tuple[int, ...], list[Place]]:
    """Shape of a stored tensor, and the place of each of its parts."""
    own = [leaf_at(shapes, part.path).shape[len(part.index) :] for part in tensor.parts]
    if tensor.form is Form.EXPERTS:
        experts = 1 + tensor.parts[-1].index[-1]
        each = len(own) // experts
        spans = [Place(slice(i // each, i // each + 1), slice(i % each, None, each)) for i in range(len(own))]
        return (experts, *own[0][:-1], own[0][-1] * each), spans
    if tensor.by_head is not None:
        stored = [_stored_shape(part.path, shape) for part, shape in zip(tensor.parts, own, strict=True)]
        return (sum(rows for rows, *_ in stored), *stored[0][1:]), [Place(rows) for rows in tensor.by_head.rows()]
    places, row, tail = [], 0, ()
    for part, shape in zip(tensor.parts, own, strict=True):
        stored = _stored_shape(part.path, shape)
        places.append(Place(slice(row, row + stored[0])))
        row, tail = row + stored[0], stored[1:]
    return (row, *tail), places


def match_tensors(
    folder: Path, config: ModelConfig, shapes: Params, entries: Mapping[str, Entry]
) -> dict[tuple[str, ...], list[Piece]]:
    """The stored pieces of every parameter; raises one UserError with everything that does not fit."""
    dense = config.num_layers if config.moe is None else len(config.dense_layers)
    stacked = config.moe is None or bool(family_of(config.family, "the model config").stacked)
    least = dense + (config.num_layers - dense) * (1 if stacked or config.moe is None else config.moe.num_experts)
    if least > len(entries):
        raise UserError(
            f"{folder}: config.json states {config.num_layers} layers, which are {least} tensors or more, and the "
            f"weights hold {len(entries)}. Use weights and config.json of the same model."
        )
    pieces: dict[tuple[str, ...], list[Piece]] = {}
    wrong, known = [], set()
    for tensor in tensors(config):
        known.add(tensor.name)
        shape, places = stored_layout(tensor, shapes)
        problem = _misfit(tensor.name, shape, entries)
        if problem is not None:
            wrong.append(problem)
            continue
        for part, place in zip(tensor.parts, places, strict=True):
            pieces.setdefault(part.path, []).append(Piece(entries[tensor.name], place, part.index))
    unused = family_of(config.family, "the model config").unused
    foreign = (name for name in sorted(set(entries) - known) if not (_says_nothing(name) or name.startswith(unused)))
    wrong += [_foreign(name, config, entries) for name in foreign]
    wrong = [problem for problem in wrong if problem]
    if wrong:
        listed = "\n  ".join(wrong[:10]) + (f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise UserError(
            f"{folder}: {len(wrong)} tensors do not fit config.json:\n  {listed}\n"
            "Use weights and config.json of the same model."
        )
    return pieces


def _misfit(name: str, shape: tuple[int, ...], entries: Mapping[str, Entry]) -> str | None:
    """What is wrong with a tensor that the model needs; None if nothing."""
    entry = entries.get(name)
    if entry is None:
        return f"tensor {name!r} is missing (expected shape {list(shape)})"
    if entry.shape != shape:
        return f"tensor {name!r} in {entry.file.name} has shape {list(entry.shape)}, expected {list(shape)}"
    if entry.dtype not in (*FLOATS, MXFP4):
        return f"tensor {name!r} in {entry.file.name} has dtype {entry.dtype}, expected {' or '.join(FLOATS)}"
    return None


def _says_nothing(name: str) -> bool:
    return name.endswith(".rotary_emb.inv_freq")


def _foreign(name: str, config: ModelConfig, entries: Mapping[str, Entry]) -> str | None:
    """What is wrong with a tensor that the model does not need; None for a stored head that equals the embedding."""
    if name != HEAD or not config.tie_embeddings or EMBEDDING not in entries:
        return f"tensor {name!r} in {entries[name].file.name} is unknown to model_type {config.family!r}"
    head, embedding = entries[name], entries[EMBEDDING]
    kinds = [(entry.shape, entry.dtype) for entry in (head, embedding)]
    if kinds[0] == kinds[1]:
        values = [safetensors_io.read_tensor(entry).tobytes() for entry in (head, embedding)]
        if values[0] == values[1]:
            return None
    return (
        f"tensor {name!r} in {head.file.name} is stored and differs from the embedding, and config.json says "
        "tie_word_embeddings true: set that to false if the stored head is meant, else remove the tensor"
    )
