"""Parameters of a run as a Hugging Face folder, or as the folder of an adapter."""

import dataclasses
import enum
import pathlib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Tokenizer
from jaxtune.config import CheckpointConfig, DataConfig, LoraConfig, MeshConfig, ModelSource
from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.hf.text_files import TextFiles, end_tokens, read_generation
from jaxtune.model import lora as lora_math
from jaxtune.model import transformer
from jaxtune.model.settings import ModelConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.mesh import Indivisible, make_mesh
from jaxtune.runs import folder as runfolder
from jaxtune.runs import seal
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.documents import read_manifest
from jaxtune.runs.manifest import compare_manifests
from jaxtune.runs.remote import read_places
from jaxtune.step.update import Params
from jaxtune.storage.fingerprints import text_fingerprint
from jaxtune.terminal.display import Phase
from jaxtune.train.identity import ADAPTERS, base_files, tokenizer_files
from jaxtune.train.resolution import Inputs, load_text, model_folder
from jaxtune.train.rooms import read_room
from jaxtune.train.session import Base, Session


def export_model(
    session: Session, params: Params, folder: pathlib.Path, dtype: str | None = None, *, overwrite: bool = False
) -> None:
    """Write a Hugging Face folder whose end-of-sequence token is the one that was trained."""
    hf.export_model(
        folder, session.inputs.model, session.full_params(params), text_files(session.inputs),
        dtype=dtype or session.config.model.param_dtype.value, overwrite=overwrite,
    )  # fmt: skip


def text_files(spoken: "Inputs | Recorded") -> TextFiles:
    """Files of an export besides weights: tokenizer, trained template and terminator, the base's settings."""
    words, template = spoken.tokenizer, spoken.template
    ends = chat.stop_ids(template, words, end_tokens(spoken.generation))
    return TextFiles(
        eos_token_id=chat.terminator_id(template, words), bos_token_id=words.bos_id, pad_token_id=words.pad_id,
        files=tuple(words.files), chat_template=template.portable,
        generation={**spoken.generation, "eos_token_id": sorted(ends)},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """The model of a run, as its folder records it; neither the config file nor the data are needed for it."""

    source: ModelSource
    lora: LoraConfig | None
    checkpoint: CheckpointConfig
    plans: frozenset[str]
    """Hashes of its plan, and of those that it had before it was lengthened."""
    folder: pathlib.Path
    """The base model's folder."""
    model: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    generation: Mapping[str, Any]
    """The base model's settings for generation, as in its generation_config.json."""


def recorded_model(run_dir: pathlib.Path, place: pathlib.Path | str) -> Recorded:
    """Read the manifest of a run and find its base model, from any working folder.

    `place` is the run folder as it was named, a path or a URL. UserError where base, tokenizer or template changed.
    """
    if not (run_dir / runfolder.MARK).is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no {runfolder.MARK}")
    manifest = read_manifest(run_dir)
    options = manifest["config"]
    source = part(run_dir, ModelSource, options["model"])
    lora = None if options["lora"] is None else part(run_dir, LoraConfig, options["lora"])
    runfolder.look_where_started(run_dir)
    try:
        folder, text = model_folder(source), source
    except UserError:
        if lora is not None or not (run_dir / seal.SEAL).exists():
            raise
        # full parameters need a base for its shape and its words alone, and the exported model has both
        folder = own_model(run_dir, place)
        text = ModelSource(path=str(folder), exact_marks=source.exact_marks)
    tokenizer, template = load_text(text, folder, part(run_dir, DataConfig, options["data"]).reasoning)
    if text is source:
        check_base(run_dir, manifest, lora, folder, tokenizer, template)
    return Recorded(
        source=source, lora=lora, checkpoint=part(run_dir, CheckpointConfig, options["checkpoint"]),
        plans=frozenset((manifest["plan"]["hash"], *manifest["plan"].get("earlier", {}))),
        folder=folder, model=hf.load_config(folder),
        tokenizer=tokenizer, template=template, generation=read_generation(folder),
    )  # fmt: skip


def own_model(run_dir: pathlib.Path, place: pathlib.Path | str) -> pathlib.Path:
    """The model that a run exported at its end, checked against its seal; brought here where the run is at a URL."""
    with read_places([place], model=True):
        folder = run_dir / seal.MODEL
        seal.check_model(folder)
        return folder


def check_base(
    run_dir: pathlib.Path, manifest: Mapping[str, Any], lora: LoraConfig | None, folder: pathlib.Path,
    tokenizer: Tokenizer, template: ChatTemplate,
) -> None:  # fmt: skip
    """Refuse a base model, tokenizer or template that are not those of the run."""
    now = {
        "base_model": base_files(folder), "tokenizer": tokenizer_files(tokenizer),
        "template": text_fingerprint(template.fingerprint),
    }  # fmt: skip
    then = {name: manifest[name] for name in now}
    if lora is not None and lora.start is not None:  # what the adapters were before training is of no account
        then["base_model"], now["base_model"] = (
            {name: digest for name, digest in files.items() if name not in ADAPTERS}
            for files in (then["base_model"], now["base_model"])
        )
    if differences := compare_manifests(then, now):
        listed = "".join(f"\n  - {line}" for line in differences[:20])
        raise UserError(
            f"{run_dir} cannot be exported, because its model is not over the same base:{listed}\n"
            f"Put back the base model, tokenizer and template of the run; the base is at {folder}."
        )


Part = TypeVar("Part")


def part(run_dir: pathlib.Path, kind: type[Part], options: Mapping[str, Any]) -> Part:
    """A part of a run's config as it was recorded. UserError for options that this version does not know."""
    known = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    if strange := [name for name in options if name not in known]:
        raise UserError(
            f"{run_dir}: its {kind.__name__} has {', '.join(strange)}, which this version of jaxtune does not know; "
            "export it with the version that wrote it (environment.json)"
        )
    hints = get_type_hints(kind)
    return kind(**{name: _revived(hints[name], value) for name, value in options.items()})


def _revived(hint: Any, value: Any) -> Any:
    """The value of a field of this type that JSON holds as `value`: its enum, tuple, config class or infinity."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for member in members:
        if dataclasses.is_dataclass(member) and isinstance(value, dict):
            hints = get_type_hints(member)
            return member(**{name: _revived(hints[name], inner) for name, inner in value.items()})  # pyright: ignore
        if isinstance(member, type) and issubclass(member, enum.Enum) and value is not None:
            return member(value)
        if get_origin(member) is tuple and isinstance(value, list):
            return tuple(_revived(get_args(member)[0], one) for one in value)
        if member is float and value in ("inf", "-inf"):
            return float(value)
    return value


def export_checkpoint(
    place: pathlib.Path | str, out: pathlib.Path, step: str, dtype: str | None, *, overwrite: bool = False,
    adapter: bool = False,
) -> None:  # fmt: skip
    """Write a checkpoint of a run (`best`, `latest` or a step) as a Hugging Face folder, or its `adapter` for PEFT.

    `place` is the run folder, or a URL, from which what is needed is copied into the cache. Besides it, the base model
    is needed; full parameters of a run that has ended need none: its exported model has shape, tokenizer and template.
    """
    with read_places([place]) as (run_dir,):
        run = recorded_model(run_dir, place)
        if adapter and run.lora is None:
            raise UserError(f"{run_dir} trained all parameters and has no adapter; leave --adapter away")
        if adapter and dtype is not None:
            raise UserError("adapters are written in float32; leave --dtype away")
        if isinstance(place, str):
            run = dataclasses.replace(run, checkpoint=run.checkpoint.kept_at(place))
            run.checkpoint.bring(run_dir)
        with Phase("reading the base model"):
            base = base_of(run, run_dir)
        params = saved_params(run, run_dir, step, abstract(base.trainable))
        with Phase(f"writing {out}"):
            if adapter:
                write_adapter(run, base, params, out, overwrite=overwrite)
            else:
                write_model(run, base, params, out, dtype, overwrite=overwrite)


def write_model(
    run: Recorded, base: Base, params: Params, out: pathlib.Path, dtype: str | None, *, overwrite: bool
) -> None:
    """Write parameters of a recorded run as a Hugging Face folder, adapters merged into their base."""
    if run.lora is not None:
        params = lora_math.merge(base.frozen, lora_math.with_rank(params, run.lora.rank), run.lora)
    hf.export_model(
        out, run.model, params, text_files(run), dtype=dtype or run.source.param_dtype.value, overwrite=overwrite
    )


def write_adapter(run: Recorded, base: Base, params: Params, out: pathlib.Path, *, overwrite: bool) -> None:
    """Write the adapters of a recorded run as a PEFT folder."""
    assert run.lora is not None, "no adapter was trained"
    # a quantised base is not the one that the adapters will lie over: no fingerprint
    fingerprint = peft.base_fingerprint(base.frozen) if run.lora.base is None else None
    peft.export_peft(
        out, run.model, lora_math.with_rank(params, run.lora.rank), run.lora,
        base_name=hf.hub_name(run.source.path) or run.source.path, fingerprint=fingerprint, text=text_files(run),
        overwrite=overwrite,
    )  # fmt: skip


def base_of(run: Recorded, run_dir: pathlib.Path) -> Base:
    """The base under a run's adapters, and the shapes of the adapters; of a run without adapters, shapes alone."""
    dtype = jnp.dtype(run.source.param_dtype.value)
    shapes = transformer.abstract_params(run.model, dtype)[1]
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))  # the devices that are here, whichever the run trained on
    placed = sharding.shardings(mesh, shapes, indivisible=Indivisible.REPLICATE)
    if run.lora is None:
        return Base(trainable=abstract(shapes, placed), frozen=None)
    by_path = {sharding.path_name(path): where for path, where in jax.tree_util.tree_leaves_with_path(placed)}
    params = hf.import_model(run.folder, dtype=dtype, sharding=by_path.__getitem__)[1]
    frozen, room = lora_math.freeze_base(params, run.lora), read_room(run_dir)
    rank = max(run.lora.rank, (room.rank or 0) if room is not None else 0)
    settings, whole = run.lora, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    adapters = jax.eval_shape(lambda base: lora_math.with_rank(lora_math.init_lora(base, settings, 0), rank), frozen)
    return Base(trainable=abstract(adapters, jax.tree.map(lambda _: whole, adapters)), frozen=frozen)


def saved_params(run: Recorded, run_dir: pathlib.Path, step: str, shapes: Params) -> Params:
    """The parameters of a checkpoint of the run, checked against their digests."""
    with Checkpoints(run.checkpoint.folder(run_dir), run.checkpoint, read_only=True) as checkpoints:
        number = {"best": checkpoints.best, "latest": checkpoints.latest}.get(step, lambda: checkpoint_number(step))()
        if number is None:
            number = checkpoints.latest()  # nothing was validated, so no step is better than the last
        if number is None:
            raise UserError(f"{run_dir} holds no checkpoint")
        if checkpoints.extra(number)["plan_hash"] not in run.plans:
            raise UserError(f"checkpoint {number} in {checkpoints.directory} is of another run than {run_dir}")
        with Phase(f"reading checkpoint {number}"):
            return checkpoints.restore_params(number, shapes)


def checkpoint_number(text: str) -> int:
    """A step on the command line."""
    if not text.isdecimal():
        raise UserError(f"--step takes `best`, `latest` or a step number, got {text!r}")
    return int(text)
