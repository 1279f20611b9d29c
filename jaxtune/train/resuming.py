"""Options of a resumed run: which may change freely, which are pinned, and the record of a change that was accepted."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.optim import OptimConfig, Schedule
from jaxtune.runs import documents
from jaxtune.runs import folder as runfolder
from jaxtune.storage.documents import Json, write_json, write_sealed

FREE = frozenset(
    {
        # labels, display and copies of the record
        *("name", "mirrors", "mirror_group", "mirror_tags", "on_validation", "eval.answers", "eval.print_answers"),
        *("health.peak_flops", "health.spike_factor", "health.profile_steps"),
        # folders: what lies in them is compared by its content
        *("model.path", "model.tokenizer", "model.template", "lora.start", "eval.lm_eval.include"),
        *("data.cache_dir", "checkpoint.directory", "compilation_cache"),
        # how the work is done; no number depends on it beyond the rounding of sums
        *("data.workers", "data.prefetch", "data.processes", "eval.rows", "eval.generate_rows"),
        *("mesh.trial", "mesh.data", "mesh.expert", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "mesh.devices"),
        "mesh.indivisible",
        # how often a run is saved, and how much bad luck ends it
        *("checkpoint.save_every", "checkpoint.keep_latest", "checkpoint.keep_best", "health.skip_budget"),
    }
)
"""Options that a resumed run takes as they are now."""

WORK = ("data.workers", "data.prefetch", "data.processes")
"""Of the `FREE` options, those that say only how a machine does its work."""

PINNED = frozenset(
    {
        *("tasks", "held_out", "seed", "duration.examples", "duration.epochs", "duration.steps", "duration.tokens"),
        "duration.lengthened",
        *("mixture.strategy", "mixture.temperature", "mixture.rate_max", "mixture.scale", "mixture.max_examples"),
        *("mixture.selection", "mixture.max_repeats", "mixture.weights", "mixture.groups", "mixture.on_cap"),
        *("mixture.allow_underfill", "mixture.unit", "mixture.stages", "mixture.policy", "mixture.policy_strength"),
        *("mixture.policy_reference", "mixture.stage_shares"),
        *("data.seq_len", "data.packing", "data.mask_policy", "data.prompt_loss_weight", "data.length_policy"),
        *("data.reasoning", "model.template_variables", "model.template_date", "model.exact_marks", "model.bos"),
        *("batch.rows", "batch.micro_rows"),
        *("model.param_dtype", "model.compute_dtype", "model.reduce_dtype", "model.remat", "model.attention"),
        "compiler_options",
        *("optim.optimizer", "optim.peak_lr", "optim.schedule", "optim.warmup_frac", "optim.warmup_steps"),
        *("optim.final_fraction", "optim.decay_frac", "optim.b1", "optim.b2", "optim.eps", "optim.weight_decay"),
        *("optim.no_decay", "optim.clip_norm", "optim.lr_multipliers", "optim.freeze", "optim.momentum_dtype"),
        *("optim.ema_decay", "optim.neftune_alpha"),
        *("loss.normalization", "loss.fixed_denominator", "loss.z_loss", "loss.label_smoothing", "loss.chunk"),
        *("lora", "lora.targets", "lora.rank", "lora.alpha", "lora.scaling", "lora.variant", "lora.base"),
        *("eval.every", "eval.max_examples", "eval.generate", "eval.generate_examples", "eval.max_new_tokens"),
        *("eval.retention", "eval.code.run", "eval.code.seconds", "eval.code.memory_mb"),
        *("eval.lm_eval.tasks", "eval.lm_eval.shots", "eval.lm_eval.limit", "eval.lm_eval.chat"),
        *("early_stopping.patience", "early_stopping.min_change", "early_stopping.aggregate", "early_stopping.task"),
        "early_stopping.forget_weight",
    }
)
"""Options that change the numbers of a run; a resumed run has those that it was started with."""


WATCHING = ("early_stopping.aggregate", "early_stopping.task")
"""Options that say which number of a validation decides; the log has all of them."""
VALIDATING = ("eval.max_examples",)
"""Options that say what is validated: numbers with other values of them are of other examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A pinned option that has another value than in the record of the run; values are as in config.json."""

    name: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: was {json.dumps(self.then)}, is {json.dumps(self.now)}"


def differences(run_dir: pathlib.Path, identity: Json) -> list[Change]:
    """Pinned options that differ from those of the run.

    UserError where data, tokenizer, template, seed, base model or plan differ; a plan that begins with the run's own is
    that of a longer run.
    """
    runfolder.check_same(run_dir, identity)
    return changed(documents.read_manifest(run_dir)["config"], identity["config"])


def without_work(config: Json) -> Json:
    """A config as JSON without the options that say how a machine does its work, which may be any machine's."""
    data = {name: value for name, value in config["data"].items() if f"data.{name}" not in WORK}
    return {**config, "data": data}


def check(
    run_dir: pathlib.Path, identity: Json, *, accept: bool = False, allowed: Sequence[Change] = ()
) -> list[Change]:
    """Pinned options that differ from those of the run; UserError where some are neither accepted nor `allowed`."""
    changes = differences(run_dir, identity)
    refused = [change for change in changes if change not in allowed]
    if refused and not accept:
        listed = "".join(f"\n  - {change}" for change in refused)
        raise UserError(
            f"{run_dir} cannot be resumed as it is, because options that change its numbers are not those it was "
            f"started with:{listed}\n"
            "Leave them as they were, or give --accept-change: the run goes on with them, and says from which step."
        )
    return changes


def changed(then: Json, now: Json) -> list[Change]:
    """Pinned options whose values differ in two configs as JSON; an option that one of them lacks differs there."""
    before, after = _by_option(then), _by_option(now)
    names = [*before, *(name for name in after if name not in before)]
    found = [Change(name=name, then=before.get(name), now=after.get(name)) for name in names if name not in FREE]
    return [change for change in found if change.then != change.now]


def record(run_dir: pathlib.Path, identity: Json, changes: Sequence[Change], step: int, command: Json | None) -> None:
    """Write accepted changes, which hold from the update after `step` on, into manifest, config.json and command.json.

    Earlier changes that were made after `step` hold from there on as well: the steps that had not seen them are gone.
    """
    path = run_dir / "manifest.json"
    recorded = documents.read_manifest(run_dir)
    earlier = [{**entry, "after_step": min(entry["after_step"], step)} for entry in recorded.get("changes", [])]
    if not changes and earlier == recorded.get("changes", []):
        return
    if changes:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        earlier.append(
            {"after_step": step, "date": date, "options": {c.name: {"then": c.then, "now": c.now} for c in changes}}
        )
        write_json(run_dir / runfolder.MARK, identity["config"])
        write_json(run_dir / "command.json", dict(command or {"config": None, "overrides": []}))
        recorded |= {name: identity[name] for name in ("config", "plan", "batches") if name in identity}
    write_sealed(path, {**recorded, "changes": earlier})


def option_at(recorded: Mapping[str, Any], name: str, step: int) -> Any:
    """Value of an option, as in config.json, with which update number `step` (from 1) was computed."""
    value = _by_option(recorded["config"]).get(name)
    for entry in reversed(recorded.get("changes", [])):
        if step <= entry["after_step"] and name in entry["options"]:
            value = entry["options"][name]["then"]
    return value


def schedule_at(recorded: Mapping[str, Any], step: int) -> OptimConfig:
    """The options of peak and schedule with which a step was computed."""
    names = ("peak_lr", "warmup_frac", "warmup_steps", "final_fraction", "decay_frac")
    values = {name: option_at(recorded, f"optim.{name}", step) for name in names}
    return OptimConfig(schedule=Schedule(option_at(recorded, "optim.schedule", step)), **values)


def differs_at(recorded: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str], step: int) -> bool:
    """Whether one of these options had another value at update number `step` than in the config `now`."""
    return any(option_at(recorded, name, step) != _by_option(now).get(name) for name in names)


def last_change(recorded: Mapping[str, Any], names: Sequence[str], step: int) -> int:
    """The step after which one of these options was last changed, up to `step`; 0 where none was."""
    entries = [e for e in recorded.get("changes", []) if e["after_step"] <= step and set(names) & set(e["options"])]
    return max((entry["after_step"] for entry in entries), default=0)


def _by_option(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config as JSON by the dotted names of options. Where tasks lie is left out: content is compared."""
    known = configs.leaves()
    tasks = [{key: item for key, item in task.items() if key != "splits"} for task in config.get("tasks", [])]
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and (name not in known or any(leaf.startswith(f"{name}.") for leaf in known)):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else key)
        else:
            found[name] = value

    walk({**config, "tasks": tasks}, "")
    return found
