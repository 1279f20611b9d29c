"""The identity of a run: fingerprints of its data, tokenizer, template, base model, plan, config and some batches."""

import pathlib
from typing import Any

import numpy as np

from jaxtune.batch import Batch
from jaxtune.chat import Tokenizer
from jaxtune.config import LoraConfig, to_json
from jaxtune.data.batches import StepBatches
from jaxtune.evaluate.harness import task_files
from jaxtune.hf.peft import adapter_folder
from jaxtune.plan import order
from jaxtune.plan.planning import Plan
from jaxtune.runs import manifest
from jaxtune.storage.fingerprints import array_fingerprint, file_fingerprint
from jaxtune.storage.notes import noted_fingerprint
from jaxtune.train.resolution import TRAIN, VALIDATION, Inputs
from jaxtune.train.texts import place


def identify(inputs: Inputs) -> dict[str, Any]:
    """The manifest of a run: what it is bound to."""
    stores = {(name, TRAIN): inputs.train[name] for name in inputs.tasks}
    stores |= {(name, VALIDATION): part.store for name, part in inputs.validation.items()}
    sources = {}
    for (name, split), store in stores.items():
        label = name if split == TRAIN else f"{name} ({split})"
        sources[label] = store.fingerprint
        # A file may change without changing a token.
        sources[f"{label}, its source"] = {**inputs.tasks, **inputs.held}[name].source(split).fingerprint
    for path in task_files(inputs.config.eval.lm_eval):
        sources[f"lm-eval task file {path.name}"] = file_fingerprint(path)
    for name in inputs.config.eval.retention:
        sources[f"retention text {name}"] = file_fingerprint(place(name))
    material = manifest.Material(
        data=sources,
        tokenizer=tokenizer_files(inputs.tokenizer),
        template=inputs.template.fingerprint,
        plan=plan_facts(inputs.plan),
        config=to_json(inputs.config),
        seeds={"run": inputs.config.seed},
        base_model={**base_files(inputs.folder), **adapter_files(inputs.config.lora)},
        blocks={name: inputs.train[name].block_fingerprints() for name in inputs.tasks},
        batches={str(step): batch_fingerprint(inputs, step) for step in pinned_steps(inputs)},
    )
    return manifest.build_manifest(material)


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Hash and size of a plan, and by hash the steps of those that it begins with."""
    facts = {"hash": plan.hash, "steps": plan.num_steps, "examples": plan.num_examples}
    return facts | ({"earlier": dict(plan.earlier)} if plan.earlier else {})


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """SHA-256 of a tokenizer's files, by name."""
    return {path.name: file_fingerprint(path) for path in tokenizer.files}


def base_files(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the weights and settings in a base model's folder, by name."""
    kinds = (".safetensors", ".json")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds and "token" not in path.name)
    return {path.name: noted_fingerprint(path) for path in files}


ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
"""Files of a PEFT folder."""


def adapter_files(adapters: LoraConfig | None) -> dict[str, str]:
    """SHA-256 of the adapters that a run starts from, by name; empty where it starts from none."""
    if adapters is None or adapters.start is None:
        return {}
    folder = adapter_folder(adapters.start)
    return {name: noted_fingerprint(folder / name) for name in ADAPTERS}


def pinned_steps(inputs: Inputs) -> list[int]:
    """Steps whose batches the manifest holds: the first, the last, and eight of a permutation of the run's seed."""
    planned = inputs.plan.num_steps
    last = planned - 1
    drawn = order.permutation(inputs.config.seed, "pinned batches", 0, planned)[:8]
    return sorted({0, last, *map(int, drawn)})


def global_batch(inputs: Inputs, step: int) -> Batch:
    """The whole batch of a step [rows, seq] on the host, rows in the plan's order."""
    return StepBatches(inputs.plan, inputs.train)[step]


def batch_fingerprint(inputs: Inputs, step: int) -> str:
    """SHA-256 of a step's global batch."""
    batch = global_batch(inputs, step)
    fields = (batch.tokens, batch.loss_weights, batch.segment_ids, batch.positions, batch.task_ids)
    return array_fingerprint(*map(np.asarray, fields))
