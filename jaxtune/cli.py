"""Argument parsing only. Exit codes: 0 success, 1 the user's input, 2 usage; a traceback is a bug."""

import argparse
import dataclasses
import difflib
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxtune.errors import UserError
from jaxtune.mixture.allocation import MixtureConfig, OnCap, Strategy, mix_table

EPILOG = (
    "Options after the config change it: `jaxtune train configs/quickstart.py --run-dir runs/a --optim.peak-lr 1e-3`. "
    "`jaxtune options CONFIG` lists them."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not getattr(arguments, "overrides", False):
        near = difflib.get_close_matches(rest[0], known_options(parser, arguments.command), n=1)
        parser.error(f"unknown argument {rest[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    arguments.rest = rest
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `jaxtune ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def known_options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Option strings of a subcommand."""
    choices: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            choices = dict(action.choices)
    return [option for action in choices[command]._actions for option in action.option_strings]


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(prog="jaxtune", description="Instruction tuning as a research instrument, in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, **flags: bool
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=EPILOG if flags.get("overrides") else None
        )
        command.set_defaults(run=run, **flags)
        return command

    train = add("train", run_train, "Tune a model as a config says; writes a run folder.", overrides=True)
    train.add_argument("config", help="Python file that defines config() -> ExperimentConfig")
    train.add_argument("--run-dir", required=True, type=pathlib.Path, help="folder that the run writes")
    train.add_argument(
        "--resume", action="store_true", help="continue the run in that folder from its last good checkpoint"
    )
    train.add_argument("--resume-step", type=int, help="continue from this checkpoint")
    train.add_argument("--overwrite", action="store_true", help="delete what is in that folder first")
    train.add_argument(
        "--restartable",
        action="store_true",
        help="for launchers that give the same command again: resume if there is a checkpoint, else start",
    )
    train.add_argument("--coordinator", help="host:port of process 0, to join a job of several processes")
    train.add_argument("--processes", type=int, help="processes in the job")
    train.add_argument("--process", type=int, help="number of this process, from 0")
    train.add_argument(
        "--heartbeat-seconds", type=int, default=30, help="silence after which a process of the job counts as dead"
    )

    options = add(
        "options", run_options, "Every option of a config: type, meaning, and its value there.", overrides=True
    )
    options.add_argument("config")
    add_json(options)

    mix = add("mix", run_mix, "Probabilities and counts of a mixture, from sizes or a config.", overrides=True)
    mix.add_argument("config", nargs="?", help="take tasks and mixture from this config")
    mix.add_argument("--sizes", nargs="+", metavar="TASK=N", help="task sizes, e.g. qa=120000 math=8000")
    mix.add_argument("--strategy", choices=[s.value for s in Strategy])
    mix.add_argument("--temperature", type=temperature, help="T: 1 is proportional, inf is equal")
    mix.add_argument("--rate-max", type=float, help="K: no task counts for more than this before the temperature")
    mix.add_argument("--max-examples", type=int, help="E: use at most so many examples of a task")
    mix.add_argument("--max-repeats", type=float, help="R: use each example at most so often")
    mix.add_argument("--weights", nargs="+", metavar="TASK=W", help="explicit rates (implies --strategy weights)")
    mix.add_argument("--on-cap", choices=[c.value for c in OnCap], help="when max-repeats binds")
    mix.add_argument(
        "--allow-underfill", action="store_true", help="take every task at its cap if the budget is out of reach"
    )
    mix.add_argument("--budget", type=int, help="examples to draw")
    add_json(mix)

    validate = add(
        "validate", run_validate, "Every problem of data files or of a config, in one report.", overrides=True
    )
    validate.add_argument("paths", nargs="+", help="data files, or one config")
    validate.add_argument("--limit", type=int, default=20, help="problems shown; all are counted")
    add_json(validate)

    preview = add("preview", run_preview, "What a config will train on: mixture, lengths, masks.", overrides=True)
    preview.add_argument("config")
    preview.add_argument("--html", type=pathlib.Path, help="write the same as one HTML page")
    preview.add_argument("--compare", help="several values side by side, e.g. temperature=1,2,4,inf")
    preview.add_argument("--task", help="show examples of this task only")
    preview.add_argument("--examples", type=int, default=2, help="examples shown per task")
    add_json(preview)

    plan = add(
        "plan-memory", run_plan_memory, "Memory of a training step on one device, and the most rows that fit.",
        overrides=True,
    )  # fmt: skip
    plan.add_argument("config")
    plan.add_argument("--device-gib", type=float, default=16.0, help="memory of a device (default: 16)")
    plan.add_argument("--devices", type=int, help="devices of the job (default: those of the mesh, or those here)")
    plan.add_argument("--platform", choices=["cpu", "gpu", "tpu"], help="kind of the devices (default: as here)")
    add_json(plan)

    evaluate = add(
        "evaluate", run_evaluate, "Validation loss and exact match by task, of a run or a model folder.", overrides=True
    )
    evaluate.add_argument("config", nargs="?", help="tasks and settings (default: those of --run-dir)")
    evaluate.add_argument("--model", type=pathlib.Path, help="model folder (default: the config's)")
    evaluate.add_argument("--run-dir", type=pathlib.Path, help="evaluate the exported model of this run")
    add_json(evaluate)

    generate = add("generate", run_generate, "Answer prompts with a run's model; without --prompt, chat.")
    generate.add_argument("model", type=pathlib.Path, help="run folder or Hugging Face folder")
    generate.add_argument("--prompt", action="append", help="a user message (may be given several times)")
    generate.add_argument("--system", help="system message")
    generate.add_argument("--max-new-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--seed", type=int, default=0)
    add_json(generate)

    sweep = add(
        "sweep", run_sweep, "A grid of overrides and seeds as separate, paired, resumable runs.", overrides=True
    )
    sweep.add_argument("config")
    sweep.add_argument("--sweep-dir", required=True, type=pathlib.Path)
    sweep.add_argument(
        "--grid", nargs="+", required=True, metavar="OPTION=V1,V2", help="e.g. mixture.temperature=1,2,4,inf"
    )
    sweep.add_argument("--seeds", type=int, nargs="+", default=[0])
    sweep.add_argument("--overwrite", action="store_true")
    sweep.add_argument(
        "--stacked",
        action="store_true",
        help="train runs of one shape together, as one program; side by side on the devices of --mesh.trial",
    )
    sweep.add_argument(
        "--stack-size", type=int, metavar="N", help="at most N runs together (each has its own optimizer state)"
    )

    report = add("report", run_report, "Write report.html of a run, or of several, or of a sweep folder.")
    report.add_argument("folders", nargs="+", type=pathlib.Path)
    report.add_argument("--out", type=pathlib.Path, help="file to write (several runs)")
    add_json(report)

    verify = add(
        "verify", run_verify, "Re-derive a finished run's plan and batches; with --replay, re-train steps and compare."
    )
    verify.add_argument("run_dir", type=pathlib.Path)
    verify.add_argument("--config", help="config file (default: the one the run recorded)")
    verify.add_argument(
        "--replay",
        type=int,
        metavar="N",
        default=0,
        help="re-train up to N steps, up to a checkpoint where one is near enough",
    )
    add_json(verify)

    importer = add("import-hf", run_import, "Check that a Hugging Face model folder can be tuned; says what is in it.")
    importer.add_argument("folder")
    add_json(importer)

    exporter = add(
        "export-hf", run_export, "Write a checkpoint of a run as a Hugging Face model folder, or its adapter."
    )
    exporter.add_argument("run_dir", type=pathlib.Path)
    exporter.add_argument("out", type=pathlib.Path)
    exporter.add_argument("--step", help="checkpoint step, `best` (default) or `latest`", default="best")
    exporter.add_argument("--dtype", choices=["float32", "bfloat16"], default=None)
    exporter.add_argument("--adapter", action="store_true", help="the LoRA adapter alone, as a folder that PEFT loads")
    exporter.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def temperature(text: str) -> float:
    """`inf` and numbers above 0."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give e.g. 2 or inf") from None


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


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
        rows = mix_table(sizes, config, budget)
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
    """The config file of a command with its overrides applied."""
    from jaxtune import config

    return config.override(config.load(arguments.config), arguments.rest)


def run_options(arguments: argparse.Namespace) -> None:
    from jaxtune import config

    settings = load_config(arguments)
    if arguments.json:
        print_json(config.to_json(settings))
    else:
        print(config.describe(settings))


def run_train(arguments: argparse.Namespace) -> int:
    from jaxtune.parallel import job as distributed
    from jaxtune.terminal.tables import print_summary
    from jaxtune.train.run import train

    place = distributed.detect(
        os.environ, coordinator=arguments.coordinator, processes=arguments.processes, process=arguments.process
    )
    distributed.start(place, heartbeat_seconds=arguments.heartbeat_seconds)
    with distributed.Guard():
        config = load_config(arguments)
        resume, overwrite = arguments.resume or arguments.resume_step is not None, arguments.overwrite
        if arguments.restartable:
            resume, overwrite = continue_or_start(config, arguments)
        outcome = train(
            config,
            arguments.run_dir,
            command={"config": arguments.config, "overrides": arguments.rest},
            resume=resume,
            resume_step=arguments.resume_step,
            overwrite=overwrite,
        )
    if distributed.is_main():
        print_summary(outcome.summary)
        print(f"run folder: {outcome.run_dir}    report: {outcome.run_dir / 'report.html'}")
    return outcome.exit_code


def continue_or_start(config: Any, arguments: argparse.Namespace) -> tuple[bool, bool]:
    """(resume, overwrite) for --restartable; process 0 decides for all.

    A run that was ended before its first checkpoint starts anew; one with a checkpoint continues, and if that
    checkpoint cannot be used, it is an error.
    """
    from jaxtune.parallel.job import from_main, is_main

    if arguments.resume or arguments.resume_step is not None or arguments.overwrite:
        raise UserError("--restartable decides between resuming and starting; leave --resume and --overwrite away")
    resume = bool(from_main(config.checkpoint.can_resume(arguments.run_dir)))
    begun = bool(from_main((arguments.run_dir / "config.json").exists()))
    if is_main():
        print("resuming the run" if resume else "no checkpoint yet: starting the run", file=sys.stderr)
    return resume, begun and not resume


def run_validate(arguments: argparse.Namespace) -> int:
    from jaxtune.validate import validation as validate

    if len(arguments.paths) == 1 and arguments.paths[0].endswith(".py"):
        arguments.config = arguments.paths[0]
        report = validate.validate_tasks(load_config(arguments).tasks)
    else:
        if arguments.rest:
            raise UserError(f"unknown argument {arguments.rest[0]!r} of jaxtune validate; see jaxtune validate --help")
        report = validate.validate_files(arguments.paths)
    if arguments.json:
        print_json(report.to_json(limit=arguments.limit))
    else:
        validate.print_report(report, limit=arguments.limit)
    return 1 if report.num_errors else 0


def run_preview(arguments: argparse.Namespace) -> None:
    from jaxtune import preview

    preview.run(
        load_config(arguments), html=arguments.html, compare=arguments.compare, task=arguments.task,
        examples=arguments.examples, as_json=arguments.json,
    )  # fmt: skip


def run_plan_memory(arguments: argparse.Namespace) -> None:
    from jaxtune.train import memory

    if not arguments.device_gib > 0 or (arguments.devices is not None and arguments.devices < 1):
        raise UserError("--device-gib must be above 0, and --devices at least 1")
    table = memory.plan_memory(
        load_config(arguments), device_bytes=int(arguments.device_gib * 2**30), devices=arguments.devices,
        platform=arguments.platform,
    )  # fmt: skip
    if arguments.json:
        print_json(table)
    else:
        memory.print_table(table)


def run_evaluate(arguments: argparse.Namespace) -> None:
    from jaxtune import config as configs
    from jaxtune.runs import folder as runfolder
    from jaxtune.terminal import tables as terminal
    from jaxtune.train import run as train

    if arguments.model is not None and arguments.run_dir is not None:
        raise UserError("give --model or --run-dir, not both")
    if arguments.config is not None:
        config = load_config(arguments)
    elif arguments.run_dir is not None:
        config = configs.override(configs.of_run(arguments.run_dir), arguments.rest)
    else:
        raise UserError("jaxtune evaluate takes a config, or --run-dir with a run folder")
    folder = arguments.model or arguments.run_dir
    if folder is not None:
        path = str(runfolder.resolve_model_folder(folder))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path, tokenizer=None))
    result = train.evaluate_only(config)
    if arguments.json:
        print_json(result)
    else:
        terminal.print_evaluation(result)


def run_generate(arguments: argparse.Namespace) -> None:
    from jaxtune.evaluate.decoding import SamplingConfig
    from jaxtune.evaluate.dialogue import answer, converse
    from jaxtune.runs import folder as runfolder

    folder = runfolder.resolve_model_folder(arguments.model)
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
        top_p=arguments.top_p, min_p=arguments.min_p, seed=arguments.seed,
    )  # fmt: skip
    if arguments.prompt:
        answers = answer(folder, arguments.prompt, system=arguments.system, sampling=sampling)
        if arguments.json:
            print_json(
                [{"prompt": prompt, "answer": text} for prompt, text in zip(arguments.prompt, answers, strict=True)]
            )
        else:
            print("\n".join(answers))
        return
    if arguments.json:
        raise UserError("--json needs --prompt; without it jaxtune generate is a chat")
    converse(folder, system=arguments.system, sampling=sampling)


def run_sweep(arguments: argparse.Namespace) -> int:
    from jaxtune.sweep import run as sweep
    from jaxtune.train.loop import Status

    config = load_config(arguments)
    status = sweep.sweep(
        config, arguments.sweep_dir, sweep.parse_grid(arguments.grid), arguments.seeds,
        config_path=arguments.config, overrides=arguments.rest, overwrite=arguments.overwrite,
        stacked=arguments.stacked, stack_size=arguments.stack_size,
    )  # fmt: skip
    return 0 if status is Status.FINISHED else 130


def run_report(arguments: argparse.Namespace) -> None:
    from jaxtune.reports import comparison as compare
    from jaxtune.reports import run as report
    from jaxtune.reports import sweep as ablation
    from jaxtune.runs import history as tracking

    folders, out = arguments.folders, arguments.out
    if len(folders) > 1:
        path = compare.write_comparison(folders, out or pathlib.Path("comparison.html"))
        rows = compare.compare_table([tracking.read_run(folder) for folder in folders])
    elif out is not None:
        raise UserError("--out is for a comparison of several runs; the report of one is written into its folder")
    elif ablation.is_sweep(folders[0]):
        path, rows = ablation.write_sweep_report(folders[0]), ablation.sweep_table(folders[0])
    else:
        path = report.write_report(folders[0])
        rows = compare.compare_table([tracking.read_run(folders[0])])
    if arguments.json:
        print_json(tracking.plain({"report": path, "runs": rows}))
    else:
        print(path)


def run_verify(arguments: argparse.Namespace) -> int:
    from jaxtune import verify

    outcome = verify.verify(arguments.run_dir, config_path=arguments.config, replay=arguments.replay)
    if arguments.json:
        print_json(outcome.to_json())
    else:
        verify.print_outcome(outcome)
    return 0 if outcome.ok else 1


def run_import(arguments: argparse.Namespace) -> None:
    from jaxtune.hf import folder as hf
    from jaxtune.terminal import tables as terminal

    facts = hf.inspect(arguments.folder)
    if arguments.json:
        print_json(facts)
    else:
        terminal.print_facts(facts)


def run_export(arguments: argparse.Namespace) -> None:
    from jaxtune import config
    from jaxtune.train import run as train

    train.export_checkpoint(
        config.of_run(arguments.run_dir), arguments.run_dir, arguments.out, arguments.step, arguments.dtype,
        overwrite=arguments.overwrite, adapter=arguments.adapter,
    )  # fmt: skip
    print(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
