"""Weights stored as MXFP4 (OCP Microscaling Formats, version 1.0): 4-bit floats, 32 of which share a power of two.

A weight X of all experts, [experts, inputs, outputs], is stored as two tensors of bytes: X_blocks [experts, outputs,
inputs / 32, 16], two values to a byte with the first in the low half, and X_scales [experts, outputs, inputs / 32],
exponents with a bias of 127.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt8

from jaxtune.errors import UserError
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.safetensors import Entry

MXFP4 = "MXFP4"
"""Dtype of an Entry whose values are stored so."""
BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16
POSITIVE = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
PAIRS = np.concatenate([POSITIVE, -POSITIVE])[np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1)]
"""The two values of each byte: a sign, two bits of exponent, one of mantissa (E2M1)."""
NOT_A_NUMBER = 255
"""The scale (E8M0) that stands for NaN."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedEntry(Entry):
    """The tensor X of a pair of stored tensors; `file` and `start` are those of its blocks."""

    blocks: Entry
    scales: Entry


def joined(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries by name, with a PackedEntry X in place of each pair X_blocks and X_scales."""
    pairs = {name.removesuffix(BLOCKS) for name in entries if name.endswith(BLOCKS)}
    pairs = {name for name in pairs if name + SCALES in entries}
    alone = {
        name: entry
        for name, entry in entries.items()
        if name.removesuffix(BLOCKS) not in pairs and name.removesuffix(SCALES) not in pairs
    }
    return alone | {name: _pair(name, entries[name + BLOCKS], entries[name + SCALES]) for name in sorted(pairs)}


def _pair(name: str, blocks: Entry, scales: Entry) -> PackedEntry:
    fits = len(blocks.shape) == 4 and blocks.shape[3] == BLOCK_BYTES and blocks.shape[:3] == scales.shape
    if not fits or (blocks.dtype, scales.dtype) != ("U8", "U8"):
        raise UserError(
            f"{blocks.file}: tensor {blocks.name!r} is {blocks.dtype} {list(blocks.shape)} and {scales.name!r} is "
            f"{scales.dtype} {list(scales.shape)}; MXFP4 weights are U8 [experts, outputs, n, {BLOCK_BYTES}] and U8 "
            "[experts, outputs, n]. Download the checkpoint again."
        )
    experts, outputs, groups, _ = blocks.shape
    shape = (experts, groups * BLOCK_BYTES * 2, outputs)
    return PackedEntry(
        file=blocks.file, name=name, dtype=MXFP4, shape=shape, start=blocks.start, blocks=blocks, scales=scales
    )


def read_values(entry: Entry, rows: slice | None = None) -> np.ndarray:
    """A tensor's values, or some rows of its first axis: as stored, or in float32 where they are packed."""
    if not isinstance(entry, PackedEntry):
        return safetensors_io.read_tensor(entry, rows)
    blocks, scales = (safetensors_io.read_tensor(part, rows) for part in (entry.blocks, entry.scales))
    return decode(blocks, scales).swapaxes(1, 2)


def decode(
    blocks: UInt8[np.ndarray, "*lead groups half"], scales: UInt8[np.ndarray, "*lead groups"]
) -> Float32[np.ndarray, "*lead values"]:
    """The values of blocks: exact in float32; NaN where a scale is, infinite where float32 ends."""
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
        powers = np.where(scales == NOT_A_NUMBER, np.float32(np.nan), powers)
        values = PAIRS[blocks].reshape(*scales.shape, -1) * powers[..., None]
    return values.reshape(*scales.shape[:-1], -1)
