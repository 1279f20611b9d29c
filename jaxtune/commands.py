"""One function a command: from parsed arguments to a call of the library and what is printed; returns the exit code.

Everything heavy is imported where it is used: `jaxtune mix` must not wait for JAX.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jaxtune
from jaxtune.errors import UserError, say
from jaxtune.mixture.allocation import allocate
from jaxtune.mixture.settings import MixtureConfig, OnCap, Strategy
from jaxtune.terminal.display import Phase
from jaxtune.terminal.foreign import print_json


def pairs(texts: Sequence[str], kind: Callable[[str], Any], option: str) -> dict[str, Any]:
    """`qa=120000 math=8000` as a mapping."""
    result: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            parsed = kind(value)
        except ValueError:
            parsed = None
        if not equals or not name or parsed is None or (isinstance(parsed, float) and math.isnan(parsed)):
            raise UserError(f"{option} takes NAME=NUMBER pairs; got {text!r}")
        if name in result:
            raise UserError(f"{option} names {name!r} twice")
        result[name] = parsed
    return result


def mixture_from_arguments(arguments: argparse.Namespace, base: MixtureConfig) -> MixtureConfig:
    """The mixture of the options, over that of a config."""
    changes: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("temperature", "rate_max", "max_examples", "max_repeats")
        if getattr(arguments, name) is not None
    }
    if arguments.weights:
        changes |= {"weights": pairs(arguments.weights, float, "--weights"), "strategy": Strategy.WEIGHTS}
    if arguments.strategy:
        changes["strategy"] = Strategy(arguments.strategy)
    if arguments.on_cap:
        changes["on_cap"] = OnCap(arguments.on_cap)
    if arguments.allow_underfill:
        changes["allow_underfill"] = True
    if changes.get("strategy") not in (None, Strategy.WEIGHTS) and base.weights is not None:
        changes["weights"] = None
    return dataclasses.replace(base, **changes)


def run_mix(arguments: argparse.Namespace) -> None:
    if (arguments.config is None) == (arguments.sizes is None):
        raise UserError("jaxtune mix takes either a config or --sizes TASK=N ...")
    if arguments.sizes:
        if arguments.rest:
            raise UserError(f"unknown argument {arguments.rest[0]!r} of jaxtune mix; see jaxtune mix --help")
        sizes, base, budget = pairs(arguments.sizes, int, "--sizes"), MixtureConfig(), arguments.budget
        config = mixture_from_arguments(arguments, base)
        if budget is None and config.max_repeats != math.inf:
            raise UserError("--max-repeats needs --budget: without an end every task repeats without limit")
        rows = allocate(sizes, config, budget).to_json()["tasks"]
    else:
        from jaxtune.preview import mixture_of

        experiment = load_config(arguments)
        experiment = dataclasses.replace(experiment, mixture=mixture_from_arguments(arguments, experiment.mixture))
        rows = mixture_of(experiment, arguments.budget)
    if arguments.json:
        print_json(rows)
        return
    from jaxtune.terminal.tables import print_mixture

    print_mixture(rows)


def load_config(arguments: argparse.Namespace):
    """The config file of a command with its overrides applied; `quickstart` is the one in the package."""
    from jaxtune import config

    if arguments.config == "quickstart" and not pathlib.Path(arguments.config).exists():
        arguments.config = str(pathlib.Path(__file__).parent / "train" / "quickstart.py")
    with Phase("reading the config"):
        return config.override(config.load(arguments.config), arguments.rest)


def run_init(arguments: argparse.Namespace) -> None:
    from jaxtune.tasks.starter import write_project

    files = write_project(arguments.folder)
    say("\n".join(map(str, files)))
    say(f"next: cd {arguments.folder} && jaxtune train config.py --run-dir runs/first")


def run_options(arguments: argparse.Namespace) -> None:
    from jaxtune import config

    settings = load_config(arguments)
    if arguments.json:
        print_json(config.to_json(settings))
    else:
        say(config.describe(settings))


def in_job(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """Context of a command that all processes of a job give: joined to the others; a process that fails leaves at once.

    Without a job, by arguments or environment, it does nothing.
    """
    from jaxtune.parallel import job
    from jaxtune.storage import faults

    place = job.detect(
        os.environ, coordinator=arguments.coordinator, processes=arguments.processes, process=arguments.process
    )
    job.start(place, heartbeat_seconds=arguments.heartbeat_seconds, timeout_seconds=arguments.start_seconds)
    return job.Guard(faults.foreseen)


def run_train(arguments: argparse.Namespace) -> int:
    from jaxtune.parallel.job import is_main
    from jaxtune.terminal.tables import print_summary
    from jaxtune.train.run import train

    with in_job(arguments):
        config = load_config(arguments)
        resume, overwrite = arguments.resume or arguments.resume_step is not None, arguments.overwrite
        if arguments.accept_change and not (resume or arguments.restartable):
            raise UserError("--accept-change goes with --resume: only a run that goes on can change on the way")
        if arguments.restartable:
            resume, overwrite = continue_or_start(config, arguments)
        outcome = train(
            config,
            arguments.run_dir,
            command={"config": os.path.abspath(arguments.config), "overrides": arguments.rest, "folder": os.getcwd()},
            resume=resume,
            resume_step=arguments.resume_step,
            overwrite=overwrite,
            accept_change=arguments.accept_change,
        )
    if is_main():
        print_summary(outcome.summary)
        say(f"run folder: {outcome.where()}    report: {outcome.where('report.html')}")
    return outcome.exit_code


def continue_or_start(config: Any, arguments: argparse.Namespace) -> tuple[bool, bool]:
    """(resume, overwrite) for --restartable; process 0 decides for all.

    A run that was ended before its first checkpoint starts anew; one with a checkpoint continues, and if that
    checkpoint cannot be used, it is an error.
    """
    from jaxtune.parallel.job import answer_of_main, is_main
    from jaxtune.runs.remote import how_far

    if arguments.resume or arguments.resume_step is not None or arguments.overwrite:
        raise UserError("--restartable decides between resuming and starting; leave --resume and --overwrite away")
    resume, begun = answer_of_main(lambda: how_far(arguments.run_dir, config.checkpoint))
    if is_main():
        say("resuming the run" if resume else "no checkpoint yet: starting the run", file=sys.stderr)
    return resume, begun and not resume


def run_validate(arguments: argparse.Namespace) -> int:
    from jaxtune import validate

    if len(arguments.paths) == 1 and arguments.paths[0].endswith(".py"):
        from jaxtune.validate.experiment import validate_config

        arguments.config = arguments.paths[0]
        settings = load_config(arguments)
        with Phase("checking records"):
            report = validate_config(settings)
    else:
        if arguments.rest:
            raise UserError(f"unknown argument {arguments.rest[0]!r} of jaxtune validate; see jaxtune validate --help")
        validate.refuse_missing(arguments.paths)
        with Phase("checking records"):
            report = validate.validate_files(arguments.paths)
    if arguments.json:
        print_json(report.to_json(limit=arguments.limit))
    else:
        validate.print_report(report, limit=arguments.limit)
    return 1 if report.num_errors else 0


def run_preview(arguments: argparse.Namespace) -> None:
    from jaxtune import preview

    shown = preview.ShownExamples(
        examples=arguments.examples, task=arguments.task, id=arguments.id, index=arguments.index,
        search=arguments.search,
    )  # fmt: skip
    preview.run(load_config(arguments), shown, html=arguments.html, compare=arguments.compare, as_json=arguments.json)


def run_plan_memory(arguments: argparse.Namespace) -> None:
    from jaxtune.train import memory

    if not 0 < arguments.device_gib <= 2**20:
        raise UserError(f"--device-gib must be above 0 and at most {2**20}; it is {arguments.device_gib:g}")
    settings = load_config(arguments)
    if arguments.compile is not None:
        from jaxtune.train import ahead

        if arguments.devices is not None or arguments.platform is not None:
            raise UserError("--compile SLICE says which devices, and how many; leave --devices and --platform away")
        with Phase(f"compiling for {arguments.compile}"):
            plan = ahead.plan_ahead(settings, arguments.compile)
        print_json(plan) if arguments.json else say("\n".join(ahead.lines(plan)))
        return
    with Phase("planning memory"):
        table = memory.plan_memory(
            settings, device_bytes=int(arguments.device_gib * 2**30), devices=arguments.devices,
            platform=arguments.platform,
        )  # fmt: skip
    if arguments.json:
        print_json(table)
    else:
        memory.print_table(table)


def run_evaluate(arguments: argparse.Namespace) -> None:
    from jaxtune.parallel.job import is_main
    from jaxtune.terminal import tables as terminal
    from jaxtune.train.evaluation import evaluate

    with in_job(arguments):
        result = evaluate(arguments, load_config)
    if is_main():
        print_json(result) if arguments.json else terminal.print_evaluation(result)


def run_generate(arguments: argparse.Namespace) -> None:
    from jaxtune.evaluate.decoding import SamplingConfig
    from jaxtune.evaluate.dialogue import answer, converse
    from jaxtune.parallel.job import is_alone, is_main
    from jaxtune.runs import folder as runfolder
    from jaxtune.runs.remote import read_places

    if arguments.json and not arguments.prompt:
        raise UserError("--json needs --prompt; without it jaxtune generate is a chat")
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
        top_p=arguments.top_p, min_p=arguments.min_p, seed=arguments.seed,
    )  # fmt: skip
    with in_job(arguments):
        if not arguments.prompt and not is_alone():
            raise UserError("a chat is typed into one process; give a job --prompt, or leave its variables away")
        with read_places([arguments.model], model=True) as (local,):
            folder = runfolder.resolve_model_folder(local)
        if not arguments.prompt:
            converse(folder, system=arguments.system, sampling=sampling)
            return
        answers = answer(folder, arguments.prompt, system=arguments.system, sampling=sampling)
    pairs = [{"prompt": prompt, "answer": text} for prompt, text in zip(arguments.prompt, answers, strict=True)]
    if is_main():
        print_json(pairs) if arguments.json else say("\n".join(answers))


def run_sweep(arguments: argparse.Namespace) -> int:
    from jaxtune.sweep import command

    command.check_arguments(arguments)
    if arguments.power is not None:
        return command.power(arguments)
    with contextlib.nullcontext() if arguments.alone else in_job(arguments):
        return command.run(load_config(arguments), arguments)


def run_transfer(arguments: argparse.Namespace) -> int:
    from jaxtune.sweep import studies

    return studies.transfer(load_config(arguments), arguments)


def run_conflict(arguments: argparse.Namespace) -> int:
    from jaxtune.sweep import studies

    return studies.conflict(arguments, load_config)


def run_recommend(arguments: argparse.Namespace) -> None:
    from jaxtune.sweep import studies

    studies.law(arguments) if arguments.law else studies.surface(arguments)


def run_proxy(arguments: argparse.Namespace) -> None:
    from jaxtune.sweep import studies

    studies.proxy(arguments)


def run_report(arguments: argparse.Namespace) -> None:
    from jaxtune.reports import comparison as compare
    from jaxtune.reports import run as report
    from jaxtune.reports.sweep import write_sweep_report
    from jaxtune.runs.history import read_run
    from jaxtune.runs.remote import read_places, send_pages
    from jaxtune.runs.sweeps import is_sweep, read_sweep, sweep_table

    out, place = arguments.out, arguments.folders[0]
    with read_places(arguments.folders) as folders:
        if len(folders) > 1:
            path = compare.write_comparison(folders, out or pathlib.Path("comparison.html"))
            rows = compare.compare_table([read_run(folder) for folder in folders])
        elif out is not None:
            raise UserError("--out is for a comparison of several runs; the report of one is written into its folder")
        elif is_sweep(folders[0]):
            sweep = read_sweep(folders[0])
            path, rows = write_sweep_report(sweep), sweep_table(sweep)
            path = path if isinstance(place, pathlib.Path) else send_pages(place)
        else:
            for line in report.changed_files(folders[0]):
                say(f"warning: {place}: not as it was when the run ended: {line}", file=sys.stderr)
            path = report.write_report(folders[0], at_end=False)
            rows = compare.compare_table([read_run(folders[0])])
            path = path if isinstance(place, pathlib.Path) else send_pages(place)
    if arguments.json:
        print_json({"report": path, "runs": rows})
    else:
        say(path)


def run_verify(arguments: argparse.Namespace) -> int:
    from jaxtune import verify
    from jaxtune.parallel.job import is_main

    with in_job(arguments):
        outcome = verify.verify(arguments.run_dir, config_path=arguments.config, replay=arguments.replay)
    if is_main():
        print_json(outcome.to_json()) if arguments.json else verify.print_outcome(outcome)
    return 0 if outcome.ok else 1


def run_import(arguments: argparse.Namespace) -> None:
    from jaxtune.hf.inspection import inspect
    from jaxtune.terminal import tables as terminal

    facts = inspect(arguments.folder)
    print_json(facts) if arguments.json else terminal.print_facts(facts)


def run_export(arguments: argparse.Namespace) -> None:
    from jaxtune.hf.push import check_push, push
    from jaxtune.parallel.job import is_main
    from jaxtune.train.export import export_checkpoint

    if arguments.push is not None:
        check_push(arguments.push)
    elif arguments.private:
        raise UserError("--private goes with --push NAME")
    with in_job(arguments):
        export_checkpoint(
            arguments.run_dir, arguments.out, arguments.step, arguments.dtype, overwrite=arguments.overwrite,
            adapter=arguments.adapter,
        )  # fmt: skip
    if not is_main():
        return
    say(arguments.out)
    if arguments.push is not None:
        with Phase(f"uploading to {arguments.push}"):
            run = pathlib.PurePath(arguments.run_dir).name
            message = f"{run}, checkpoint {arguments.step}, by jaxtune {jaxtune.__version__}"
            say(push(arguments.out, arguments.push, private=arguments.private, message=message))
