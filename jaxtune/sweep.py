"""Ablations: a grid of overrides and seeds as separate runs that share token caches and compiled steps.

Arms are paired. All start from the same parameters, and the order inside a task depends on (seed, task name, epoch)
alone, so two arms of one seed meet each task's examples in the same order whatever their mixture.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune import config as configs
from jaxtune.ablation import sweep_table, write_sweep_report
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.programs import Programs
from jaxtune.tracking import read_json, write_json
from jaxtune.train import Outcome, Status, train

RECORD = "sweep.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and one seed."""

    overrides: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """Folder name: the last part of each option with its value, and the seed."""
        parts = [f"{option.rpartition('.')[2]}={value}" for option, value in self.overrides.items()]
        return "_".join([*parts, f"seed={self.seed}"]).replace("/", "-")

    def arguments(self) -> list[str]:
        """As options of the command line."""
        return [text for option, value in self.overrides.items() for text in (f"--{option}", value)] + [
            "--seed",
            str(self.seed),
        ]


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`mixture.temperature=1,2,inf` as option -> values."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        option, equals, values = text.partition("=")
        option = option.strip().removeprefix("--")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not option or not all(listed):
            raise UserError(f"--grid takes OPTION=V1,V2,...; got {text!r}")
        if option == "seed":
            raise UserError("give seeds with --seeds, not in the grid: every setting runs with every seed")
        if option in axes:
            raise UserError(f"--grid names {option!r} twice")
        if len(set(listed)) < len(listed):
            raise UserError(f"--grid {option} lists a value twice: {listed}")
        axes[option] = listed
    return axes


def grid(axes: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of values with every seed, seeds innermost."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds lists a seed twice: {list(seeds)}")
    combinations = itertools.product(*axes.values())
    return [
        Trial(overrides=dict(zip(axes, values, strict=True)), seed=seed) for values in combinations for seed in seeds
    ]


def sweep(
    config: ExperimentConfig,
    sweep_dir: pathlib.Path,
    axes: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    *,
    config_path: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Status:
    """Run what is not finished yet, then write sweep.json, results.csv, the heatmap and report.html.

    Every setting is checked before the first run starts.
    """
    trials = grid(axes, seeds)
    resolved = [configs.override(config, trial.arguments()) for trial in trials]
    record = {
        "config": configs.to_json(config),
        "axes": {option: list(values) for option, values in axes.items()},
        "seeds": list(seeds),
        "runs": [
            {"name": trial.name, "overrides": dict(trial.overrides), "seed": trial.seed, "dir": f"runs/{trial.name}"}
            for trial in trials
        ],
    }
    prepare(sweep_dir, record, overwrite=overwrite)
    programs = Programs()
    for number, (trial, settings) in enumerate(zip(trials, resolved, strict=True), start=1):
        folder = sweep_dir / "runs" / trial.name
        if is_finished(folder):
            print(f"[{number}/{len(trials)}] {trial.name}: finished before")
            continue
        print(f"[{number}/{len(trials)}] {trial.name}", flush=True)
        outcome = run_one(
            settings, folder, programs, {"config": config_path, "overrides": [*overrides, *trial.arguments()]}
        )
        if outcome.status is Status.STOPPED:
            print("stopped; the same command continues the sweep")
            return Status.STOPPED
    write_results(sweep_dir)
    return Status.FINISHED


def prepare(sweep_dir: pathlib.Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Create or accept the folder: an existing one must hold the same config; its grid may grow."""
    path = sweep_dir / RECORD
    if overwrite and path.is_file():
        shutil.rmtree(sweep_dir)
    if sweep_dir.is_dir() and any(sweep_dir.iterdir()):
        if not path.is_file():
            raise UserError(f"{sweep_dir} holds files but no sweep; choose another folder")
        if read_json(path)["config"] != json.loads(json.dumps(record["config"])):
            raise UserError(
                f"{sweep_dir} holds a sweep of another config; continue it with that one, "
                "choose another folder, or replace it with --overwrite"
            )
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a run went to its end."""
    summary = folder / "summary.json"
    return summary.is_file() and read_json(summary)["status"] in (Status.FINISHED.value, Status.EARLY_STOPPED.value)


def run_one(
    settings: ExperimentConfig, folder: pathlib.Path, programs: Programs, command: Mapping[str, Any]
) -> Outcome:
    """A fresh run, or the rest of one that was interrupted after its first checkpoint."""
    started = (folder / "config.json").is_file()
    saved = started and any((folder / "checkpoints").glob("[0-9]*"))
    return train(settings, folder, command=command, resume=saved, overwrite=started and not saved, programs=programs)


def write_results(sweep_dir: pathlib.Path) -> None:
    """results.csv, heatmap.png and report.html from the finished runs."""
    rows = sweep_table(sweep_dir)
    with (sweep_dir / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_sweep_report(sweep_dir)
