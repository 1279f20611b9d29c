"""Evaluation of models as they are: a config's, a model folder's, a run's."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.evaluate.dialogue import measure_folder
from jaxtune.evaluate.harness import LmEvalConfig
from jaxtune.runs import folder as runfolder
from jaxtune.runs.remote import read_places
from jaxtune.storage.documents import Json
from jaxtune.train.run import evaluate_only


def evaluate(arguments: argparse.Namespace, load_config: Callable[[Any], ExperimentConfig]) -> Json:
    """Losses and scores that the options of `jaxtune evaluate` ask for; `load_config` reads the config they name."""
    if arguments.model is not None and arguments.run_dir is not None:
        raise UserError("give --model or --run-dir, not both")
    if arguments.lm_eval_include is not None and not arguments.lm_eval:
        raise UserError("--lm-eval-include goes with --lm-eval TASK ...")
    if arguments.config is None and arguments.run_dir is None:
        return evaluate_folder(arguments)
    given = [place for place in (arguments.model or arguments.run_dir,) if place is not None]
    with read_places(given, model=True) as folders:
        if arguments.config is not None:
            config = load_config(arguments)
        else:
            config = configs.override(configs.of_run(folders[0]), arguments.rest)
        for folder in folders:
            path = str(runfolder.resolve_model_folder(folder))
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path, tokenizer=None))
        return evaluate_only(with_harness(config, arguments))


def with_harness(config: ExperimentConfig, arguments: argparse.Namespace) -> ExperimentConfig:
    """The config with the tasks of `--lm-eval` in place of its own."""
    if not arguments.lm_eval:
        return config
    own = config.eval.lm_eval
    include = arguments.lm_eval_include or own.include
    own = dataclasses.replace(own, tasks=tuple(arguments.lm_eval), include=include)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, lm_eval=own))


def evaluate_folder(arguments: argparse.Namespace) -> Json:
    """Tasks of lm-eval on a model folder or a run's model, without a config: nothing else is measured."""
    if not arguments.lm_eval or arguments.model is None:
        raise UserError("jaxtune evaluate takes a config, --run-dir with a run folder, or --model with --lm-eval")
    if jax.process_count() > 1:
        raise UserError(
            "jaxtune evaluate --model without a config measures on one device; leave the job's options and variables "
            "away, or give a config, whose mesh splits the model"
        )
    if arguments.rest:
        raise UserError(f"{arguments.rest[0]}: options of a config go with one; give the config first")
    with read_places([arguments.model], model=True) as (local,):
        folder = runfolder.resolve_model_folder(local)
        settings = LmEvalConfig(tasks=tuple(arguments.lm_eval), include=arguments.lm_eval_include)
        return {"model": str(folder), "lm_eval": measure_folder(folder, settings)}
