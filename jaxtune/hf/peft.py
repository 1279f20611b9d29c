"""Adapters as PEFT folders (adapter_config.json, adapter_model.safetensors), strict both ways."""

import enum
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, PyTree

from jaxtune.errors import UserError
from jaxtune.hf import safetensors as safetensors_io
from jaxtune.hf.folder import put_in_place
from jaxtune.hf.tensors import tensors
from jaxtune.hf.text_files import TextFiles
from jaxtune.model.lora import ADAPTABLE, LoraConfig, Scaling, Variant, adapter_shapes, init_lora
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params
from jaxtune.parallel.job import answer_of_main
from jaxtune.storage.documents import made_folder, read_object, write_json
from jaxtune.storage.fetching import fetched_folder
from jaxtune.storage.stores import default_cache, is_url, refuse_unserved

PREFIX = "base_model.model."
SUFFIXES = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
"""ParameterSlice of an adapter -> what its tensor's name ends with."""
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights"}
WITHOUT_EFFECT = {
    "target_modules", "exclude_modules", "base_model_name_or_path", "task_type", "inference_mode", "revision",
    "auto_mapping", "peft_version", "lora_dropout", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "megatron_core", "runtime_config", "layers_pattern", "qalora_group_size",
}  # fmt: skip
"""Options that do not change what a finished adapter computes; the tensors themselves say which modules it adapts."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal")
"""Values of init_lora_weights, besides true and false, that leave the base as it is."""
REBASING_INITS = r"pissa(_niter_\d+)?|olora|corda|loftq|lora_ga"
"""Values of init_lora_weights that take the start of the adapter out of the base: PEFT does so again when it loads one,
so that such an adapter is right over that changed base only (PiSSA, arXiv:2404.02948; OLoRA, arXiv:2406.01775; CorDA,
arXiv:2406.05223; LoftQ, arXiv:2310.08659; LoRA-GA, arXiv:2407.05000)."""
BASE_FILE = "jaxtune_base.json"
"""Beside PEFT's own files: the fingerprint of the base that the adapter was trained on."""


def export_peft(
    folder: str | Path,
    config: ModelConfig,
    adapters: Mapping[str, Any],
    lora: LoraConfig,
    *,
    base_name: str,
    fingerprint: str | None = None,
    text: TextFiles | None = None,
    overwrite: bool = False,
) -> None:
    """Write adapters as a folder that `peft.PeftModel.from_pretrained` loads over the same base.

    `base_name` is what PEFT records as the base model; `fingerprint` (see `base_fingerprint`) lets `import_peft` refuse
    another base of equal shape. `text` is written beside the adapters, so that the folder is enough to talk to the
    tuned model. Everything is written to a folder aside and renamed. Raises UserError if the folder
    exists and is not to be overwritten, or for adapters that PEFT has no module for (experts, and kernels that the
    family stores fused).
    """
    folder = Path(folder)
    if not overwrite and answer_of_main(folder.exists):
        raise UserError(f"{folder}: already there; nothing was written. Choose another folder, or overwrite it.")
    modules = dict(_modules(config))
    found = {path: parts for path, parts in _adapters(adapters)}
    homeless = sorted(set(found) - set(modules))
    if homeless:
        raise UserError(
            f"PEFT has no module for the adapters of {', '.join(homeless)} in a {config.family} model; "
            "merge them and export the model instead"
        )
    stored = {
        f"{PREFIX}{module}.{SUFFIXES[part]}": _to_stored(part, np.asarray(value)[index])
        for path, parts in found.items()
        for module, index in modules[path]
        for part, value in parts.items()
    }
    if jax.process_index() != 0:
        return
    names = sorted({module.rsplit(".", 1)[-1] for path in found for module, _ in modules[path]})
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "use_rslora": lora.scaling is Scaling.RANK_STABILIZED, "use_dora": lora.variant is Variant.DORA,
        "target_modules": names, "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip
    _write(folder, fields, stored, fingerprint, text)


def _write(
    folder: Path, fields: dict[str, Any], stored: dict[str, np.ndarray], fingerprint: str | None, text: TextFiles | None
) -> None:
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        made_folder(aside.parent)
        aside.mkdir()
        write_json(aside / "adapter_config.json", fields)
        if fingerprint is not None:
            write_json(aside / BASE_FILE, {"fingerprint": fingerprint})
        if text is not None:
            text.write(aside)
        header = {name: (value.dtype, value.shape) for name, value in stored.items()}
        safetensors_io.write_file(aside / "adapter_model.safetensors", header, stored.__getitem__)
        put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def import_peft(
    folder: str | Path, config: ModelConfig, *, fingerprint: str | None = None
) -> tuple[LoraConfig, dict[str, Any]]:
    """Adapters of a PEFT folder, for a base of this config.

    Raises UserError that names file and tensor if the adapter belongs to another base (a tensor's module or shape is
    not the model's, or the fingerprints differ), adapts some layers only, or uses an option that is not supported.
    """
    folder = adapter_folder(folder)
    lora = _read_config(folder / "adapter_config.json")
    _check_base(folder, fingerprint)
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise UserError(f"{file}: missing; give a folder that PEFT wrote with safetensors")
    entries = safetensors_io.read_header(file)
    kernels = _shapes(config)
    parts = ("a", "b", "magnitude") if lora.variant is Variant.DORA else ("a", "b")
    tree: dict[str, Any] = {}
    paths = []
    for path, modules in _modules(config):
        names = {part: [f"{PREFIX}{module}.{SUFFIXES[part]}" for module, _ in modules] for part in parts}
        if not any(name in entries for part in parts for name in names[part]):
            continue
        paths.append(path)
        shapes = adapter_shapes(path, kernels[path], lora.rank)
        lead = len(modules[0][1])
        leaf = {part: _load(file, entries, part, names[part], shapes[part], lead) for part in parts}
        *parents, _ = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node |= leaf
    if entries:
        raise UserError(
            f"{file}: {len(entries)} tensors have no place in this {config.family} model, for instance "
            f"{next(iter(entries))}. The adapter belongs to another base"
        )
    return LoraConfig(
        targets=tuple(re.escape(path) for path in paths), rank=lora.rank, alpha=lora.alpha, scaling=lora.scaling,
        variant=lora.variant,
    ), tree  # fmt: skip


def adapter_folder(place: str | Path) -> Path:
    """The folder on this disk of adapters that lie there or at a URL, of whose files the cache has a copy."""
    if not is_url(str(place)):
        return Path(place)
    refuse_unserved(str(place), "adapters")
    return fetched_folder(str(place), default_cache(), ("*.json", "adapter_model.safetensors"))


def starting_adapters(config: ModelConfig, lora: LoraConfig, *, fingerprint: str | None = None) -> dict[str, Any]:
    """The adapters of `lora.start`, which must be those that `lora` describes; errors as in `import_peft`."""
    assert lora.start is not None
    stored, tree = import_peft(lora.start, config, fingerprint=fingerprint)
    names = ("rank", "alpha", "scaling", "variant")
    said = [
        f"{name} is {_plain(getattr(stored, name))} there and {_plain(getattr(lora, name))} in the config"
        for name in names
        if getattr(stored, name) != getattr(lora, name)
    ]
    fresh = jax.eval_shape(lambda params: init_lora(params, lora, 0), abstract_params(config)[1])
    there, wanted = {path for path, _ in _adapters(tree)}, {path for path, _ in _adapters(fresh)}
    if there != wanted:
        said.append(f"it adapts {', '.join(sorted(there))}, and lora.targets are {', '.join(sorted(wanted))}")
    if said:
        raise UserError(f"lora.start {lora.start}: {'; '.join(said)}")
    return tree


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _read_config(file: Path) -> LoraConfig:
    fields = read_object(file)
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {fields.get('peft_type')!r:.60}; only LORA can be read")
    odd = [
        f"{name} = {value!r:.60}"
        for name, value in fields.items()
        if name not in READ | WITHOUT_EFFECT and value not in (None, False, "none", [], {})
    ]
    if odd:
        raise UserError(f"{file}: not supported: {', '.join(odd)}. Merge the adapter with PEFT and import the model")
    _check_init(file, fields.get("init_lora_weights"))
    for name, kinds in {"r": (int,), "lora_alpha": (int, float), "use_rslora": (bool,), "use_dora": (bool,)}.items():
        value = fields.get(name, False if bool in kinds else None)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{file}: {name} is {value!r:.60}; it must be of type {wanted}")
    try:
        return LoraConfig(
            rank=fields["r"], alpha=fields["lora_alpha"],
            scaling=Scaling.RANK_STABILIZED if fields.get("use_rslora") else Scaling.CLASSIC,
            variant=Variant.DORA if fields.get("use_dora") else Variant.LORA,
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _check_init(file: Path, init: Any) -> None:
    """Raise UserError unless the adapter was made over the base as it is."""
    if init is None or isinstance(init, bool) or init in PLAIN_INITS:
        return
    if isinstance(init, str) and re.fullmatch(REBASING_INITS, init):
        raise UserError(
            f"{file}: init_lora_weights is {init!r}, which took the start of the adapter out of the base: over the "
            "unchanged base it computes something else. Convert it with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge it there and import the model"
        )
    raise UserError(
        f"{file}: init_lora_weights is {init!r:.60}, and it is not known whether that changes the base; known are "
        f"true, false, {', '.join(PLAIN_INITS)}. Merge the adapter with PEFT and import the model"
    )


def _check_base(folder: Path, fingerprint: str | None) -> None:
    if fingerprint is None or not (folder / BASE_FILE).exists():
        return
    trained_on = read_object(folder / BASE_FILE).get("fingerprint")
    if trained_on != fingerprint:
        raise UserError(
            f"{folder}: the adapter was trained on a base with fingerprint {trained_on}, and this one has "
            f"{fingerprint}. Give the base named in adapter_config.json"
        )


def _modules(config: ModelConfig) -> Iterator[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """Path of each kernel that PEFT can adapt -> its modules' names and places in the stacked kernel."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for tensor in tensors(config):
        path = ".".join(tensor.parts[0].path)
        alone = len(tensor.parts) == 1 and tensor.parts[0].path[:2] != ("layers", "moe")
        if alone and any(re.fullmatch(pattern, path) for pattern in ADAPTABLE):
            found.setdefault(path, []).append((tensor.name.removesuffix(".weight"), tensor.parts[0].index))
    yield from found.items()


def _adapters(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path of the kernel, and parts, of each adapter."""
    for name, node in tree.items():
        if "a" in node:
            yield f"{path}{name}.kernel", node
        else:
            yield from _adapters(node, f"{path}{name}.")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config)[1])
    return {jax.tree_util.keystr(keys, simple=True, separator="."): leaf.shape for keys, leaf in leaves}


def _to_stored(part: str, value: np.ndarray) -> np.ndarray:
    """PEFT's form of one layer's part: A [rank, inputs], B [outputs, rank], magnitude [outputs]."""
    match part:
        case "a":
            matrix = value.reshape(-1, value.shape[-1]).T
        case "b":
            matrix = value.reshape(value.shape[0], -1).T
        case _:
            matrix = value.reshape(-1)
    return np.ascontiguousarray(matrix, np.float32)


def _load(
    file: Path, entries: dict[str, safetensors_io.Entry], part: str, names: list[str], shape: tuple[int, ...], lead: int
) -> Array:
    """One part of an adapter for all layers; takes what it uses out of `entries`."""
    one = shape[lead:]
    stacked = []
    for name in names:
        if name not in entries:
            raise UserError(f"{file}: {name} is missing; an adapter must cover a module in all layers or in none")
        value = np.asarray(safetensors_io.read_tensor(entries.pop(name)), np.float32)
        expected = _to_stored(part, np.empty(one, np.float32)).shape
        if value.shape != expected:
            raise UserError(
                f"{file}: {name} has shape {list(value.shape)}, and this model needs {list(expected)}. "
                "The adapter belongs to another base, or adapter_config.json states another rank"
            )
        stacked.append((value if part == "magnitude" else value.T).reshape(one))
    return jnp.asarray(np.stack(stacked).reshape(shape))


def base_fingerprint(params: PyTree) -> str:
    """Digest of about a thousand weights of each parameter, rounded to bfloat16 so that the load dtype is no matter."""
    digest = hashlib.sha256()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        step = max(1, leaf.size // 1024)
        sample = np.asarray(leaf).reshape(-1)[::step].astype(ml_dtypes.bfloat16)
        digest.update(f"{jax.tree_util.keystr(keys)}{leaf.shape}".encode() + sample.tobytes())
    return digest.hexdigest()
