"""Hugging Face model folders in and out: config.json, safetensors and tokenizer files, strict both ways."""

import dataclasses
import functools
import glob
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.errors import UserError, first_line
from jaxtune.hf import reading
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.configs import read_config, write_config
from jaxtune.hf.experts import apart
from jaxtune.hf.families import family_of
from jaxtune.hf.layout import (
    FLOATS,
    Params,
    Place,
    leaf_at,
    match_tensors,
    stored_layout,
    to_stored,
)
from jaxtune.hf.mxfp4 import joined
from jaxtune.hf.safetensors import Entry
from jaxtune.hf.tensors import Tensor, tensors
from jaxtune.hf.text_files import GENERATION, TextFiles
from jaxtune.hf.wrapped import is_wrapped, text_fields, text_tensors
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params
from jaxtune.parallel.gathering import lines_of_all
from jaxtune.parallel.job import answer_of_main, is_alone
from jaxtune.storage.documents import made_folder, read_object, write_json
from jaxtune.storage.fetching import fetched_folder
from jaxtune.storage.stores import default_cache, is_url, refuse_unserved
from jaxtune.storage.userfiles import locate, looked_for

ShardingRule = Callable[[str], jax.sharding.Sharding]
"""Dotted parameter path, for instance layers.attn.q.kernel -> where the array lives."""

SHARD_BYTES = 5 * 10**9
WEIGHT_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
"""Names of the files that a model folder is made of; others, such as weights of other libraries, are not fetched."""
TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""Names of those that a tokenizer and a chat template are made of."""


def resolve(source: str | Path) -> Path:
    """The local folder of a model: itself, or a copy of what a Hub name such as `owner/model` or a URL stands for.

    Of a URL, the files right below it that models are made of are copied into `default_cache()`.
    """
    if is_url(str(source)):
        refuse_unserved(str(source), "models")
        return fetched_folder(str(source), default_cache(), WEIGHT_FILES)
    folder = locate(source)
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise UserError(f"{source}: a file, not a folder. Give the folder of a Hugging Face checkpoint.")
    absent = f"{source}: no such folder{looked_for(source)}"
    if not _is_hub_name(str(source)):
        raise UserError(
            f"{absent}. A model of the Hugging Face hub it cannot be either: those are called owner/model. Give the "
            "folder of a checkpoint, such a name, or a URL such as gs://bucket/model."
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{absent}; and to look for a model of that name on the Hugging Face hub, huggingface_hub is not "
            "installed. Give a folder, or install the extra with `pip install jaxtune[hub]`."
        ) from error
    failures = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError)
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=list(WEIGHT_FILES)))
    except failures as error:
        raise UserError(f"{absent}; and as a name of the Hugging Face hub: {_why_not_there(error)}") from error


def _why_not_there(error: Exception) -> str:
    """The reason why the hub gave no model, in words; its own messages are about requests and snapshots."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner lets in who has asked on its page; ask there, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such model, or a private one (then run `hf auth login`)"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "never downloaded to this machine, and the hub cannot be reached from here"
    return first_line(error)


def hub_name(source: str | Path) -> str | None:
    """`owner/model` where the source is a name of the Hub, or a folder in the cache of downloads from there."""
    if _is_hub_name(str(source)) and not os.path.exists(Path(source).expanduser()):
        return str(source)
    found = re.search(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$", Path(source).expanduser().absolute().as_posix())
    return None if found is None else "/".join(found.groups())


def load_config(source: str | Path) -> ModelConfig:
    """The ModelConfig of a model folder or Hub name."""
    file = resolve(source) / "config.json"
    return read_config(text_fields(read_object(file), str(file)), str(file))


def model_tensors(folder: Path) -> dict[str, Entry]:
    """The tensors of a model folder by name; of a model of images and text, those of its text model."""
    entries, file = joined(safetensors_io.find_tensors(folder)), folder / "config.json"
    fields = read_object(file)
    entries = text_tensors(entries) if is_wrapped(fields) else entries
    family = family_of(text_fields(fields, str(file)).get("model_type"), str(file))
    return apart(entries) if family.experts_joined else entries


def import_model(
    source: str | Path, *, dtype: Any = jnp.float32, sharding: ShardingRule | None = None
) -> tuple[ModelConfig, Params]:
    """Config and parameters of a model folder or Hub name, converted to `dtype`.

    Tensors are read one by one and sent to their devices in chunks, so that the host never holds much more than one
    stacked parameter's chunk beyond what its own devices keep. Where parameters lie on devices of several processes,
    all of them must call it, each reads its share, and what is wrong with one share is raised on all. Raises UserError
    that names file and tensor if one is missing, unknown, mis-shaped, of a dtype that holds no weights, or cut short;
    nothing is guessed or skipped.
    """
    folder = resolve(source)
    config = load_config(folder)
    entries = model_tensors(folder)
    shapes = abstract_params(config, dtype)[1]
    pieces = match_tensors(folder, config, shapes, entries)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    loaded, problems = [], []
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        place = None if sharding is None else sharding(".".join(path))
        loaded.append(reading.load(path, leaf, pieces[path], place, problems))
    shared = is_alone() or not all(array.is_fully_addressable for array in loaded)
    if shared and (told := lines_of_all(problems)):
        raise UserError("\n".join(told))
    return config, jax.tree_util.tree_unflatten(treedef, loaded)


def export_model(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    text: TextFiles,
    *,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
):
    """Write a folder that transformers and other tools load: weights, config.json, generation_config.json, tokenizer.

    Everything is written to a folder aside and renamed at the end, so that a failure leaves nothing behind. On several
    hosts all call this and the first one writes.
    """
    folder = Path(folder)
    if not overwrite and answer_of_main(folder.exists):
        raise UserError(f"{folder}: already there; nothing was written. Choose another folder, or overwrite it.")
    outgoing = _outgoing(config, params, dtype)
    stored = {"torch_dtype": str(next(iter(outgoing.values())).dtype)}
    fields = write_config(config) | text.ids | stored
    writing = jax.process_index() == 0
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        if writing:
            made_folder(aside.parent)
            aside.mkdir()
            write_json(aside / "config.json", fields)
            write_json(aside / GENERATION, text.generation_config)
            text.write(aside)
        _write_weights(aside, outgoing, params, shard_bytes, writing=writing)
        if writing:
            put_in_place(aside, folder)
    finally:
        if writing:
            shutil.rmtree(aside, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- export


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to be stored."""

    tensor: Tensor
    dtype: np.dtype
    shape: tuple[int, ...]
    places: list[Place]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _outgoing(config: ModelConfig, params: Params, dtype: Any) -> dict[str, Outgoing]:
    """What to store, by tensor name; raises if the parameters are not those of the config."""
    expected = abstract_params(config)[1]
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, expected):
        raise ValueError("the parameters do not have the structure and shapes of the model config")
    outgoing = {}
    for tensor in tensors(config):
        stored = np.dtype(leaf_at(params, tensor.parts[0].path).dtype if dtype is None else dtype)
        if stored not in safetensors_io.NAMES or safetensors_io.NAMES[stored] not in FLOATS:
            raise UserError(f"cannot export dtype {stored}; choose float32, bfloat16 or float16.")
        outgoing[tensor.name] = Outgoing(tensor, stored, *stored_layout(tensor, expected))
    return outgoing


def _write_weights(folder: Path, outgoing: Mapping[str, Outgoing], params: Params, shard_bytes: int, *, writing: bool):
    """One model.safetensors, or shards of at most `shard_bytes` (or one tensor) with their index."""

    def load(name: str) -> np.ndarray:
        stored = _gather(outgoing[name], params)
        assert stored is not None, "process 0 writes"
        return stored

    shards = list(_shards(outgoing, shard_bytes))
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        if writing:
            header = {name: (outgoing[name].dtype, outgoing[name].shape) for name in names}
            safetensors_io.write_file(folder / file, header, load)
        else:
            for name in names:
                _gather(outgoing[name], params)
    if writing and len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in outgoing.values())
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _shards(outgoing: Mapping[str, Outgoing], shard_bytes: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, tensor in outgoing.items():
        if names and size + tensor.nbytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _gather(outgoing: Outgoing, params: Params) -> np.ndarray | None:
    """The stored form of one tensor on the host that writes, None on others; a collective that all hosts must call."""
    whole = [_whole(leaf_at(params, part.path)[part.index]) for part in outgoing.tensor.parts]
    if jax.process_index() != 0:
        return None
    stored = np.empty(outgoing.shape, outgoing.dtype)
    for part, place, value in zip(outgoing.tensor.parts, outgoing.places, whole, strict=True):
        if place.columns is None:
            stored[place.rows] = to_stored(part.path, np.asarray(value))
        else:
            stored[place.rows, ..., place.columns] = np.asarray(value)
    return stored


def _whole(value: Any) -> Any:
    """An array that this host can read whole; one that lies on several hosts goes to all devices for it."""
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return value
    if value.is_fully_replicated:
        return value.addressable_data(0)
    assert isinstance(value.sharding, jax.sharding.NamedSharding), "parameters of a job lie on a mesh"
    everywhere = jax.sharding.NamedSharding(value.sharding.mesh, jax.sharding.PartitionSpec())
    return _copied_to(everywhere)(value).addressable_data(0)


@functools.lru_cache(maxsize=8)
def _copied_to(place: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=place)


def clear_remains(folder: Path) -> None:
    """Remove what killed exports to `folder` left beside it. Only for a place where nobody else exports now."""
    for kind in ("partial", "replaced"):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
            shutil.rmtree(left)


def put_in_place(aside: Path, folder: Path):
    """Move `aside` to `folder`. An existing folder is renamed first and deleted only after the move, so that a crash
    never leaves neither.
    """
    if not folder.exists():
        aside.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old)


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and part[0].isalnum() for part in parts)
