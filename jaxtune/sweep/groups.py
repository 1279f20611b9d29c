"""Groups of a sweep's runs that can train as one program, and what keeps a run alone."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from jaxtune.runs import manifest
from jaxtune.step.room import Room
from jaxtune.storage.documents import Json, plain
from jaxtune.storage.fingerprints import array_fingerprint, json_fingerprint
from jaxtune.train.planned import Planned
from jaxtune.train.resolution import Inputs
from jaxtune.train.rooms import room_of
from jaxtune.train.session import on_mesh, program_spec


def shape(inputs: Inputs) -> Json:
    """Program, batches, base model, devices and validation data of a run, as plain JSON. The room is left out."""
    config = inputs.config
    inputs, mesh, _ = on_mesh(inputs)
    spec = program_spec(inputs, mesh).shape
    names = [field.name for field in dataclasses.fields(spec) if field.name not in ("mesh", "room")]
    program = {name: getattr(spec, name) for name in names}
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
            "validation": {"plan": None if inputs.eval_plan is None else inputs.eval_plan.hash, **chosen},
            "profile_steps": config.health.profile_steps,
        }
    )


def room(inputs: Inputs) -> Room:
    """The room of a run's program on its devices."""
    placed, mesh, _ = on_mesh(inputs)
    return room_of(placed, mesh)


def rooms_needed(every: Iterable[Inputs]) -> dict[str, Room]:
    """For each shape, by its fingerprint, room enough for all of these runs that have it."""
    needed: dict[str, Room] = {}
    for inputs in every:
        key, own = json_fingerprint(shape(inputs)), room(inputs)
        needed[key] = needed[key].joined(own) if key in needed else own
    return needed


def in_shared_room(inputs: Inputs, rooms: Mapping[str, Room]) -> Inputs:
    """The run in the room of its shape."""
    return dataclasses.replace(inputs, room=rooms[json_fingerprint(shape(inputs))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmGroup:
    """Runs that train together, in the order of the sweep."""

    shape: Json
    """What they have in common (see `shape`)."""
    runs: tuple[Planned, ...]


def group_by_shape(runs: Sequence[Planned], most: int | None = None) -> list[ArmGroup]:
    """Runs of one shape in one room, at most `most` of them in a group. A run that is profiled stays alone."""
    alike: dict[str, list[Planned]] = {}
    shapes: dict[str, Json] = {}
    for run in runs:
        form = shape(run.inputs)
        key = json.dumps([form, room(run.inputs).to_json()], sort_keys=True)
        key += f" {run.name}" if form["profile_steps"] else ""
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
        others = any(other is not group for other in groups)
        return "it goes on in the room that it was started with" if others else "no other run is left"
    shown = "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
    return f"no other run has its program (beside {largest.runs[0].name}: {shown})"
