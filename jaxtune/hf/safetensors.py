"""The safetensors file format, strictly: read one tensor at a time, write one tensor at a time."""

import dataclasses
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxtune.errors import UserError
from jaxtune.storage.documents import Limits, UnreadableDocument, parse_json, read_object

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
HEADER_LIMITS = Limits(bytes=MAX_HEADER_BYTES, depth=4, unique_keys=True)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_FINITE = {"F32": (np.uint32, 0x7F800000), "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00)}
"""Bits that are all set in infinities and NaN, and in no other number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file, not yet read."""

    file: Path
    name: str
    dtype: str
    """Name in the file, a key of DTYPES."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file, by name; raises UserError unless header and data fit each other byte for byte."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait without end
            raise UserError(f"{file}: no regular file. Put a safetensors file there.")
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _corrupt(file, f"its header would be {length} bytes long, but the file has {size}")
            text = stream.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    try:
        raw = parse_json(text, name="its header", limits=HEADER_LIMITS)
    except UnreadableDocument as error:
        raise _corrupt(file, str(error).split(";")[0]) from error
    if not isinstance(raw, dict):
        raise _corrupt(file, "its header is not a JSON object")
    raw.pop("__metadata__", None)
    spans = {name: _span(file, name, fields) for name, fields in raw.items()}
    _check_spans(file, spans, size - 8 - length)
    return {
        name: Entry(file=file, name=name, dtype=fields["dtype"], shape=tuple(fields["shape"]), start=8 + length + begin)
        for (name, fields), (begin, _) in zip(raw.items(), spans.values(), strict=True)
    }


def read_tensor(entry: Entry, rows: slice | None = None) -> np.ndarray:
    """The tensor's values, or some rows of its first axis, read from disk now; the caller owns the array."""
    dtype = DTYPES[entry.dtype]
    first, last, _ = (rows or slice(None)).indices(entry.shape[0]) if entry.shape else (0, 1, 1)
    width = math.prod(entry.shape[1:])
    values = np.empty((last - first) * width, dtype)
    with entry.file.open("rb") as stream:
        stream.seek(entry.start + first * width * dtype.itemsize)
        read = stream.readinto(values.view(np.uint8).data)
    if read != values.nbytes:
        raise _corrupt(entry.file, f"tensor {entry.name!r} ends after {read} of {values.nbytes} bytes")
    return values.reshape((last - first, *entry.shape[1:]) if entry.shape else ())


def check_finite(entry: Entry, values: np.ndarray) -> None:
    """Raise UserError if a tensor's values hold NaN or infinity: a model with such a weight computes nothing."""
    kind, exponent = NOT_FINITE[NAMES[values.dtype]]
    bits = values.view(kind)
    wrong = int(np.count_nonzero((bits & kind(exponent)) == exponent))
    if wrong:
        raise UserError(
            f"{entry.file}: tensor {entry.name!r} holds {wrong} values that are NaN or infinite. "
            "Give a model that is not damaged."
        )


def write_file(file: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], load: Callable[[str], np.ndarray]):
    """Write `tensors` (dtype and shape by name) to a new file, asking `load` for one at a time; flushed to disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            values = np.ascontiguousarray(load(name))
            assert values.dtype == dtype and values.shape == shape, (name, values.dtype, values.shape)
            stream.write(values.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def weight_files(folder: Path) -> list[Path]:
    """The files whose tensors make a model: `model.safetensors`, or the shards that the index names.

    Raises UserError where there is neither, where both are there (readers differ in which one they take), or where the
    index names anything but files of this folder.
    """
    index_file, single = folder / INDEX, folder / SINGLE
    if not index_file.exists():
        if not single.exists():
            raise UserError(
                f"{folder}: no {SINGLE} and no {INDEX}. "
                "Give the folder of a Hugging Face checkpoint in safetensors format."
            )
        return [single]
    shards = sorted(set(_weight_map(index_file).values()))
    if single.exists() and shards != [SINGLE]:
        raise UserError(
            f"{folder}: two sets of weights, {SINGLE} and {INDEX} with {_some(shards)}; which one is meant cannot be "
            "told. Remove the one that is not."
        )
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise UserError(f"{index_file} names shards that are not there: {_some(missing)}. Download them.")
    return [folder / shard for shard in shards]


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of a model folder, from its `weight_files`."""
    files = weight_files(folder)
    if not (folder / INDEX).exists():
        return read_header(files[0])
    weight_map = _weight_map(folder / INDEX)
    found: dict[str, Entry] = {}
    for file in files:
        entries = read_header(file)
        listed = {name for name, home in weight_map.items() if home == file.name}
        if listed != set(entries):
            raise UserError(
                f"{file} does not hold the tensors that {INDEX} lists for it: "
                f"differing: {_some(sorted(listed ^ set(entries)))}. Download the checkpoint again."
            )
        found.update(entries)
    return found


def _weight_map(index_file: Path) -> dict[str, str]:
    weight_map = read_object(index_file, HEADER_LIMITS).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(home, str) for home in weight_map.values()):
        raise UserError(
            f"{index_file}: 'weight_map' must be an object from tensors to files. Download the checkpoint again."
        )
    elsewhere = sorted({home for home in weight_map.values() if not re.fullmatch(r"[^/\\\0]+\.safetensors", home)})
    if elsewhere:
        raise UserError(
            f"{index_file}: {_some([repr(home) for home in elsewhere])} cannot be read: an index names safetensors "
            "files beside itself, without a path. Download the checkpoint again."
        )
    if not weight_map:
        raise UserError(f"{index_file}: names no tensor. Download the checkpoint again.")
    return weight_map


def _span(file: Path, name: str, fields: Any) -> tuple[int, int]:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            dtype in DTYPES
            and all(type(n) is int and n >= 0 for n in shape)
            and len(fields) == 3
            and type(begin) is type(end) is int
        ):
            if end - begin == math.prod(shape) * DTYPES[dtype].itemsize and begin >= 0:
                return begin, end
            raise _corrupt(file, f"tensor {name!r} of dtype {dtype} and shape {shape} spans {end - begin} bytes")
    raise _corrupt(file, f"tensor {name!r} has the header {fields!r:.200}")


def _check_spans(file: Path, spans: Mapping[str, tuple[int, int]], size: int):
    place = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != place:
            raise _corrupt(file, f"tensor {name!r} begins at byte {begin} of the data instead of {place}")
        place = end
        if end > size:
            raise _corrupt(file, f"tensor {name!r} ends at byte {end} of the data, but the file has only {size}")
    if place != size:
        raise _corrupt(file, f"{size - place} bytes follow the last tensor")


def _corrupt(file: Path, detail: str) -> UserError:
    return UserError(f"{file}: truncated or corrupt safetensors file: {detail}. Download or export it again.")


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
