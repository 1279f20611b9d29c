"""The command `jaxtune sweep`, in a process alone or in each process of a job."""

import argparse
import dataclasses
import pathlib

from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, say
from jaxtune.parallel.job import answer_of_main, is_main
from jaxtune.runs.remote import read_places
from jaxtune.step.trials import StackMode
from jaxtune.storage.documents import Json
from jaxtune.sweep import run as sweep
from jaxtune.sweep.choice import measure_named, power_table
from jaxtune.sweep.halving import parse_halving
from jaxtune.sweep.record import Trial
from jaxtune.sweep.request import Request, dry_run, dry_run_text, requested_trials
from jaxtune.terminal.foreign import print_json
from jaxtune.train.agreement import compare_processes
from jaxtune.train.decisions import Status

SAME = ("sweep_dir", "overwrite", "stacked", "stack_size", "stack_mode", "halving", "rungs", "rung_decay", "dry_run")
"""Arguments in which the processes of a job must agree; those of the runs are compared run by run."""
OF_THE_FOLDER = ("--confirm", "--refine")
"""Forms of a request that follow from what the folder holds, which process 0 of a job alone needs to see."""


def power(arguments: argparse.Namespace) -> int:
    """Print the seeds that a difference needs; returns the exit code."""
    with read_places([arguments.sweep_dir], missing=True) as (there,):
        table = power_table(there, arguments.power, measure_named(arguments.measure))
    show(arguments, table, "\n".join(f"{name}: {value}" for name, value in table.items()))
    return 0


def show(arguments: argparse.Namespace, table: Json, text: str) -> None:
    """Print a table as JSON or as text, whichever was asked for."""
    print_json(table) if arguments.json else say(text)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if arguments.json and arguments.power is None and not arguments.dry_run:
        raise UserError("--json of jaxtune sweep goes with --dry-run or --power; the runs' numbers are in results.csv")
    joins = {"--coordinator": arguments.coordinator, "--processes": arguments.processes, "--process": arguments.process}
    given = [name for name, value in joins.items() if value is not None]
    if arguments.alone and given:
        raise UserError(f"--alone joins no job, and {given[0]} names one; give one of the two")


def run(config: ExperimentConfig, arguments: argparse.Namespace) -> int:
    """Train, or describe, the runs that the arguments ask for; returns the exit code.

    The processes of a job are joined already, and give the same arguments.
    """
    halving = parse_halving(arguments.halving, arguments.rungs, arguments.rung_decay)
    trials = agreed_trials(config, arguments)
    if arguments.dry_run:
        with read_places([arguments.sweep_dir], missing=True) as (there,):
            plan = dry_run(config, there, trials)
        if is_main():
            show(arguments, plan, dry_run_text(plan))
        return 0
    ends = sweep.Ends()
    status = sweep.sweep(
        config, arguments.sweep_dir, trials,
        command=sweep.Command(config=arguments.config, overrides=arguments.rest), overwrite=arguments.overwrite,
        stacking=sweep.Stacking(
            stacked=arguments.stacked, size=arguments.stack_size, mode=StackMode(arguments.stack_mode)
        ),
        halving=halving, ends=ends,
    )  # fmt: skip
    return 0 if status is Status.FINISHED else ends.exit_code


def agreed_trials(config: ExperimentConfig, arguments: argparse.Namespace) -> list[Trial]:
    """Every run that is asked for. Raises UserError where the processes of a job were asked for different ones."""
    measure = measure_named(arguments.measure)
    request = Request(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Request)})

    def ask(there: pathlib.Path) -> list[Json]:
        return [trial.entry() for trial in requested_trials(request, config, there, arguments.seeds, measure)]

    def ask_of_folder() -> list[Json]:
        with read_places([arguments.sweep_dir], missing=True) as (there,):
            return ask(there)

    of_folder = request.form() in OF_THE_FOLDER
    asked = answer_of_main(ask_of_folder) if of_folder else ask(pathlib.Path(str(arguments.sweep_dir)))
    compare_processes({f"--{name.replace('_', '-')}": str(getattr(arguments, name)) for name in SAME} | {"runs": asked})
    return [Trial.of_entry(entry) for entry in asked]
