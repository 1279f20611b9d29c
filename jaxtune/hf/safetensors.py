"""The safetensors file format, strictly: read one tensor at a time, write one tensor at a time."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxtune.errors import UserError

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
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _corrupt(file, f"its header would be {length} bytes long, but the file has {size}")
            raw = json.loads(stream.read(length))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise _corrupt(file, "its header is not JSON") from error
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


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of a model folder: `model.safetensors`, or the shards named by `model.safetensors.index.json`."""
    index_file, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index_file.exists():
        return _find_sharded(folder, index_file)
    if not single.exists():
        raise UserError(
            f"{folder}: no model.safetensors and no model.safetensors.index.json. "
            "Give the folder of a Hugging Face checkpoint in safetensors format."
        )
    return read_header(single)


def _find_sharded(folder: Path, index_file: Path) -> dict[str, Entry]:
    try:
        weight_map = json.loads(index_file.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index_file}: not JSON with a 'weight_map'. Download the checkpoint again.") from error
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise UserError(f"{index_file} names shards that are not there: {_some(missing)}. Download them.")
    found: dict[str, Entry] = {}
    for shard in shards:
        entries = read_header(folder / shard)
        listed = {name for name, home in weight_map.items() if home == shard}
        if listed != set(entries):
            raise UserError(
                f"{folder / shard} does not hold the tensors that {index_file.name} lists for it: "
                f"differing: {_some(sorted(listed ^ set(entries)))}. Download the checkpoint again."
            )
        found.update(entries)
    return found


def _span(file: Path, name: str, fields: Any) -> tuple[int, int]:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            dtype in DTYPES and all(isinstance(n, int) and n >= 0 for n in shape) and len(fields) == 3
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
