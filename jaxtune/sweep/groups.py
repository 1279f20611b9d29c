"""Groups of a sweep's runs that can train as one program, and what keeps a run alone."""

import dataclasses
import json
from collections.abc import Sequence

from jaxtune.runs import manifest
from jaxtune.storage.documents import Json, plain
from jaxtune.storage.fingerprints import array_fingerprint
from jaxtune.train.planned import Planned
from jaxtune.train.resolution import Inputs
from jaxtune.train.session import on_mesh, program_spec


def shape(inputs: Inputs) -> Json:
    """Program, batches, base model, devices and validation data of a run, as plain JSON."""
    config = inputs.config
    inputs, mesh, _ = on_mesh(inputs)
    spec = program_spec(inputs, mesh).shape
    program = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name != "mesh"}
    chosen = {
        name: {"examples": array_fingerprint(part.numbers), "tokens": part.store.fingerprint}
        for name, part in inputs.validation.items()
    }
    return plain(
        {
            **program,
            "mesh": config.mesh,
            "batch": {"rows": config.batch.rows, "passes": config.batch.micro_batches, "seq_len": config.data.seq_len},
            "base": {"folder": inputs.folder, "dtype": config.model.param_dtype},
            "prompts": inputs.trains_prompts,
            "validation": {"plan": None if inputs.eval_plan is None else inputs.eval_plan.hash, **chosen},
            "profile_steps": config.health.profile_steps,
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmGroup:
    """Runs that train together, in the order of the sweep."""

    shape: Json
    """What they have in common (see `shape`)."""
    runs: tuple[Planned, ...]


def group_by_shape(runs: Sequence[Planned], most: int | None = None) -> list[ArmGroup]:
    """Runs that can train as one program, at most `most` of them in a group. A run that is profiled stays alone."""
    alike: dict[str, list[Planned]] = {}
    shapes: dict[str, Json] = {}
    for run in runs:
        form = shape(run.inputs)
        key = json.dumps(form, sort_keys=True) + (f" {run.name}" if form["profile_steps"] else "")
        alike.setdefault(key, []).append(run)
        shapes[key] = form
    size = most or len(runs)
    return [
        ArmGroup(shape=shapes[key], runs=tuple(found[i : i + size]))
        for key, found in alike.items()
        for i in range(0, len(found), size)
    ]


def why_alone(group: ArmGroup, groups: Sequence[ArmGroup]) -> str:
    """Reason why the run of a group of one is not in the largest group, in words."""
    largest = max(groups, key=lambda other: len(other.runs))
    if group.shape["profile_steps"]:
        return "it records a profile"
    lines = manifest.compare_manifests(largest.shape, group.shape)
    if not lines:
        return "no other run is left"
    shown = "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
    return f"no other run has its program (beside {largest.runs[0].name}: {shown})"
