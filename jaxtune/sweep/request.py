"""The request of a sweep's command line, as the list of its runs."""

import dataclasses
import pathlib
from collections.abc import Sequence

from jaxtune import config as configs
from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError
from jaxtune.runs.documents import SummaryFile, read_as
from jaxtune.runs.sweeps import Measure, is_sweep, record_entries
from jaxtune.storage.documents import Json, number
from jaxtune.sweep.choice import confirmation, refinement
from jaxtune.sweep.groups import group_by_shape, in_shared_room, room, rooms_needed, why_alone
from jaxtune.sweep.language import (
    Setting,
    crossed,
    mixture_settings,
    parse_axes,
    parse_space,
    random_settings,
    read_settings,
    zipped,
)
from jaxtune.sweep.leaving import leaving_settings
from jaxtune.sweep.record import Trial, trials_of
from jaxtune.train.planned import plan_run
from jaxtune.train.resolution import resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Settings in one of their forms."""

    grid: Sequence[str] = ()
    zip: bool = False
    """Pair the values of the grid one by one instead of crossing them."""
    arms: pathlib.Path | None = None
    random: int | None = None
    space: Sequence[str] = ()
    mixtures: int | None = None
    leave_out: str | None = None
    """`clusters`: each cluster left out once, beside all; `curve`: with fewer and fewer of the others as well."""
    concentration: float = 1.0
    design_seed: int = 0
    confirm: int | None = None
    refine: int | None = None

    def form(self) -> str:
        """The one form that was given; `UserError` for none or several."""
        given = {
            "--grid": bool(self.grid),
            "--arms": self.arms is not None,
            "--random": self.random is not None,
            "--mixtures": self.mixtures is not None,
            "--leave-out": self.leave_out is not None,
            "--confirm": self.confirm is not None,
            "--refine": self.refine is not None,
        }
        chosen = [name for name, there in given.items() if there]
        if len(chosen) != 1:
            said = f"got {' and '.join(chosen)}" if chosen else "got none"
            raise UserError(f"jaxtune sweep takes one of {', '.join(given)}; {said}")
        if self.zip and chosen[0] != "--grid":
            raise UserError(f"--zip goes with --grid; got {chosen[0]}")
        if bool(self.space) != (chosen[0] == "--random"):
            raise UserError("--random N and --space OPTION=LAW:LOW:HIGH ... go together")
        return chosen[0]


def requested_trials(
    request: Request, config: ExperimentConfig, sweep_dir: pathlib.Path, seeds: Sequence[int], measure: Measure
) -> list[Trial]:
    """Every run that is asked for."""
    form = request.form()
    if form in ("--confirm", "--refine"):
        if not is_sweep(sweep_dir):
            raise UserError(f"{form} goes on from a sweep's results, but {sweep_dir} holds none yet")
        if form == "--confirm":
            assert request.confirm is not None
            return confirmation(config, sweep_dir, request.confirm, measure)
        assert request.refine is not None
        return refinement(sweep_dir, request.refine, measure)
    return trials_of(requested_settings(request, config), seeds)


def requested_settings(request: Request, config: ExperimentConfig) -> list[Setting]:
    """The settings of a form that depends on no results."""
    if request.arms is not None:
        return read_settings(request.arms)
    if request.random is not None:
        spaces = [parse_space(text) for text in request.space]
        return random_settings(spaces, request.random, seed=request.design_seed)
    if request.mixtures is not None:
        rows = resolve(config, questions=False).plan.to_json()["tasks"] if request.mixtures > 0 else []
        sizes = {str(row["task"]): int(row["usable"]) for row in rows}
        return mixture_settings(sizes, request.mixtures, concentration=request.concentration, seed=request.design_seed)
    if request.leave_out is not None:
        return leaving_settings(config, curve=request.leave_out == "curve", seed=request.design_seed)
    axes = parse_axes(request.grid)
    return zipped(axes) if request.zip else crossed(axes)


def dry_run(config: ExperimentConfig, sweep_dir: pathlib.Path, trials: Sequence[Trial]) -> Json:
    """Description of a sweep before it starts: runs, shared programs, steps, and time by the folder's finished runs."""
    planned = [
        plan_run(
            configs.override(config, trial.arguments()), sweep_dir / "runs" / trial.name, command={}, overwrite=True
        )
        for trial in trials
    ]
    rooms = rooms_needed(run.inputs for run in planned)
    groups = group_by_shape([dataclasses.replace(run, inputs=in_shared_room(run.inputs, rooms)) for run in planned])
    steps = {run.name: run.inputs.total_steps for run in planned}
    pace = seconds_per_step(sweep_dir)
    return {
        "runs": [trial.entry() | {"steps": steps[trial.name]} for trial in trials],
        "programs": [
            {
                "runs": [run.name for run in group.runs],
                "room": room(group.runs[0].inputs).to_json(),
                "alone": why_alone(group, groups) if len(group.runs) == 1 else None,
            }
            for group in groups
        ],
        "steps": sum(steps.values()),
        "seconds": None if pace is None else pace * sum(steps.values()),
    }


def seconds_per_step(sweep_dir: pathlib.Path) -> float | None:
    """Wall time over steps of the finished runs, evaluation and compilation included; None before the first."""
    if not is_sweep(sweep_dir):
        return None
    summaries = [sweep_dir / entry["dir"] / "summary.json" for entry in record_entries(sweep_dir)]
    found = [read_as(path, SummaryFile) for path in summaries if path.is_file()]
    kept = [(number(one.get("seconds")), number(one.get("steps"))) for one in found]
    kept = [(seconds, steps) for seconds, steps in kept if seconds > 0 and steps > 0]
    return sum(seconds for seconds, _ in kept) / sum(steps for _, steps in kept) if kept else None


def dry_run_text(plan: Json) -> str:
    """A dry run in lines."""
    lines = [f"{run['name']}: {run['steps']:,} steps" for run in plan["runs"]]
    for index, program in enumerate(plan["programs"], start=1):
        alone = f" ({program['alone']})" if program["alone"] else ""
        count = len(program["runs"])
        shown = ", ".join(program["runs"][:2]) + (f" and {count - 2} more" if count > 2 else "")
        lines.append(f"program {index}, {count} run{'s' * (count > 1)}: {shown}{alone}")
    time = (
        "unknown until a run of the folder is finished"
        if plan["seconds"] is None
        else f"{plan['seconds'] / 60:.0f} min"
    )
    lines.append(f"{len(plan['runs'])} runs, {plan['steps']:,} steps in all; time: {time}")
    return "\n".join(lines)
