"""Parameters of a run as a Hugging Face folder, or as the folder of an adapter."""

import dataclasses
import pathlib

from jaxtune import chat
from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.hf import peft
from jaxtune.hf.text_files import TextFiles
from jaxtune.model import lora
from jaxtune.runs import folder as runfolder
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.remote import read_places
from jaxtune.step.programs import Programs
from jaxtune.step.update import Params
from jaxtune.terminal.display import Phase
from jaxtune.train.identity import identify
from jaxtune.train.resolution import Inputs, resolve
from jaxtune.train.rooms import read_room
from jaxtune.train.session import Session, open_session


def export_model(
    session: Session, params: Params, folder: pathlib.Path, dtype: str | None = None, *, overwrite: bool = False
) -> None:
    """Write a Hugging Face folder whose end-of-sequence token is the one that was trained."""
    hf.export_model(
        folder, session.inputs.model, session.full_params(params), text_files(session.inputs),
        dtype=dtype or session.config.model.param_dtype.value, overwrite=overwrite,
    )  # fmt: skip


def export_adapter(session: Session, params: Params, folder: pathlib.Path, *, overwrite: bool = False) -> None:
    """Write a PEFT folder of the adapters. A quantised base is not the one they will lie over: no fingerprint."""
    settings, base = session.config.lora, session.config.model.path
    assert settings is not None, "no adapter was trained"
    fingerprint = peft.base_fingerprint(session.base.frozen) if settings.base is None else None
    peft.export_peft(
        folder, session.inputs.model, lora.with_rank(params, settings.rank), settings,
        base_name=hf.hub_name(base) or base, fingerprint=fingerprint,
        text=text_files(session.inputs), overwrite=overwrite,
    )  # fmt: skip


def text_files(inputs: Inputs) -> TextFiles:
    """Files of an export besides weights: tokenizer, trained template and terminator, the base's settings."""
    words = inputs.tokenizer
    return TextFiles(
        eos_token_id=chat.terminator_id(inputs.template, words), bos_token_id=words.bos_id, pad_token_id=words.pad_id,
        files=tuple(words.files), chat_template=inputs.template.portable,
        generation={**inputs.generation, "eos_token_id": sorted(inputs.stop_ids)},
    )  # fmt: skip


def export_checkpoint(
    place: pathlib.Path | str, out: pathlib.Path, step: str, dtype: str | None, *, overwrite: bool = False,
    adapter: bool = False,
) -> None:  # fmt: skip
    """Write a checkpoint of a run (`best`, `latest` or a step) as a Hugging Face folder, or its `adapter` for PEFT.

    `place` is the run folder, or a URL, from which what is needed is copied into the cache.
    """
    with read_places([place]) as (run_dir,):
        config = configs.of_run(run_dir)
        if isinstance(place, str):
            config = dataclasses.replace(config, checkpoint=config.checkpoint.kept_at(place))
            config.checkpoint.bring(run_dir)
        _export(config, run_dir, out, step, dtype, overwrite=overwrite, adapter=adapter)


def _export(
    config: ExperimentConfig, run_dir: pathlib.Path, out: pathlib.Path, step: str, dtype: str | None, *,
    overwrite: bool, adapter: bool,
) -> None:  # fmt: skip
    if adapter and config.lora is None:
        raise UserError(f"{run_dir} trained all parameters and has no adapter; leave --adapter away")
    if adapter and dtype is not None:
        raise UserError("adapters are written in float32; leave --dtype away")
    with Phase("preparing"):
        inputs = dataclasses.replace(resolve(config, questions=False), room=read_room(run_dir))
        runfolder.check_same(run_dir, identify(inputs))
    session = open_session(inputs, Programs())
    with Checkpoints(config.checkpoint.folder(run_dir), config.checkpoint, read_only=True) as checkpoints:
        number = {"best": checkpoints.best, "latest": checkpoints.latest}.get(step, lambda: checkpoint_number(step))()
        if number is None:
            number = checkpoints.latest()  # nothing was validated, so no step is better than the last
        if number is None:
            raise UserError(f"{run_dir} holds no checkpoint")
        with Phase(f"reading checkpoint {number}"):
            params = checkpoints.restore_params(number, abstract(session.base.trainable))
    with Phase(f"writing {out}"):
        if adapter:
            export_adapter(session, params, out, overwrite=overwrite)
        else:
            export_model(session, params, out, dtype, overwrite=overwrite)


def checkpoint_number(text: str) -> int:
    """A step on the command line."""
    if not text.isdecimal():
        raise UserError(f"--step takes `best`, `latest` or a step number, got {text!r}")
    return int(text)
