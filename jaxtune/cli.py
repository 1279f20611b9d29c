"""The command line's arguments: one function a command; what a command does is in `commands`.

Exit codes: 0 success, 1 the user's input, 2 usage, 74 a fault of the disk, 75 stopped after saving, 76 another process
of the job died; a traceback is a bug.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jaxtune
from jaxtune import commands
from jaxtune.errors import UserError, did_you_mean, say
from jaxtune.mixture import OnCap, Strategy
from jaxtune.storage.faults import FaultsOfThreads, foreseen
from jaxtune.sweep import arguments as arms
from jaxtune.terminal import huge_pages, streams
from jaxtune.terminal.arguments import add_job, local_path, run_place, whole
from jaxtune.terminal.display import Phase

EPILOG = (
    "Options after the config change it: `jaxtune train configs/quickstart.py --run-dir runs/a --optim.peak-lr 1e-3`. "
    "`jaxtune options CONFIG` lists them. `--debug` shows the traceback of an error; "
    "`--no-huge-pages` leaves memory on Linux as it is."
)
Subparsers = argparse._SubParsersAction
USE_JAX = ("train", "validate", "preview", "plan-memory", "evaluate", "generate", "sweep", "verify", "export-hf")
"""Commands that need the whole library, whose import takes seconds."""


def entry() -> int:
    """Run the command of this process, which may begin anew first (see `huge_pages`); returns the exit code."""
    huge_pages.restart(sys.argv[1:])
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    parser = build_parser()
    arguments, rest = parser.parse_known_args([text for text in given if text not in ("--debug", huge_pages.OPTION)])
    if rest and not getattr(arguments, "overrides", False):
        arguments.parser.error(f"unknown argument {rest[0]!r}" + arguments.parser.meant(rest[0]))
    arguments.rest = rest
    streams.open_closed()
    # A run outlives its terminal; the other commands exist for what they print.
    outlives = ["stdout"] if arguments.command in ("train", "sweep", "transfer") else []
    with streams.surviving("stderr", *outlives), FaultsOfThreads() as of_threads:
        huge_pages.tell_once()
        return run_command(arguments, of_threads, debug=debug)


def run_command(arguments: argparse.Namespace, of_threads: FaultsOfThreads, *, debug: bool) -> int:
    """Run a parsed command; returns the exit code. What ends it in a foreseen way is told in one message."""
    try:
        if arguments.command in USE_JAX:
            with Phase("loading JAX", first=0.5 if sys.stderr.isatty() else 2.0):
                importlib.import_module("jaxtune.train.run")
        code = arguments.run(arguments) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        if debug:
            traceback.print_exception(error)
        say(f"error: {error}{misplaced(arguments)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `jaxtune ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        told = None if debug else foreseen(error)
        if told is None:
            raise
        of_threads.told()
        code, message = told
        say(f"error: {message}", file=sys.stderr)
        return code


def misplaced(arguments: argparse.Namespace) -> str:
    """A hint for options that were read as the config's, but are spelled like one of the command's own."""
    options = [text for text in arguments.rest if text.startswith("--") and "." not in text]
    hints = [hint for hint in map(arguments.parser.meant, options) if hint]
    return f"\n  {arguments.command} has options of its own{hints[0]}" if hints else ""


class Parser(argparse.ArgumentParser):
    """An argument parser that names the nearest word where one is misspelt, and takes no abbreviations.

    (`--seed 1` is an option of the config; it must not be read as the beginning of `sweep --seeds`.)
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, allow_abbrev=False, **settings)
        self.given: list[str] = []

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def options(self) -> list[str]:
        """Option strings, such as `--run-dir`."""
        return [option for action in self._actions for option in action.option_strings]

    def commands(self) -> list[str]:
        """Names of the subcommands."""
        rows = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [name for action in rows for name in action.choices]

    def meant(self, text: str) -> str:
        """`; did you mean --run-dir?` for an option that is none of this parser's, where one is near."""
        option = text.split("=")[0]
        return "" if option in self.options() else did_you_mean(option, self.options())

    def error(self, message: str) -> NoReturn:
        """Usage and message, and what a misspelt option probably means; exit code 2."""
        if "arguments are required" in message:
            misspelt = [text for text in self.given if text.startswith("--") and self.meant(text)]
            message += f"; unknown: {misspelt[0]}{self.meant(misspelt[0])}" if misspelt else ""
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not among an action's choices, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"{value!r} is none of: {known}{did_you_mean(str(value), action.choices)}"
            )


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="jaxtune", description="Instruction tuning as a research instrument, in JAX.")
    parser.add_argument("--version", action="version", version=f"jaxtune {jaxtune.__version__}")
    rows = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(rows)
    return parser


def command(rows: Subparsers, name: str, run: Callable, text: str, *, overrides: bool = False) -> Parser:
    """A command's parser; with `overrides`, options that it does not know are the config's."""
    parser = rows.add_parser(name, help=text, description=text, epilog=EPILOG if overrides else None)
    parser.set_defaults(run=run, overrides=overrides, parser=parser)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_train(rows: Subparsers) -> None:
    text = "Tune a model as a config says; writes a run folder."
    parser = command(rows, "train", commands.run_train, text, overrides=True)
    parser.add_argument("config", help="Python file that defines config() -> ExperimentConfig; or `quickstart`")
    text = "folder that the run writes, here or in a bucket (gs://bucket/runs/x)"
    parser.add_argument("--run-dir", required=True, type=run_place, help=text)
    text = "continue the run in that folder from its last good checkpoint"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.add_argument("--resume-step", type=whole(), help="continue from this checkpoint")
    text = "resume with other options than the run was started with; the run records from which step"
    parser.add_argument("--accept-change", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true", help="delete what is in that folder first")
    text = "for launchers that give the same command again: resume if there is a checkpoint, else start"
    parser.add_argument("--restartable", action="store_true", help=text)
    add_job(parser)


def add_init(rows: Subparsers) -> None:
    text = "Write a config, two small data files and a README into a new folder: a first experiment to change."
    parser = command(rows, "init", commands.run_init, text)
    parser.add_argument("folder", type=local_path)


def add_options(rows: Subparsers) -> None:
    text = "Every option of a config: type, meaning, and its value there."
    parser = command(rows, "options", commands.run_options, text, overrides=True)
    parser.add_argument("config")
    add_json(parser)


def add_mix(rows: Subparsers) -> None:
    text = "Probabilities and counts of a mixture, from sizes or a config."
    parser = command(rows, "mix", commands.run_mix, text, overrides=True)
    parser.add_argument("config", nargs="?", help="take tasks and mixture from this config")
    parser.add_argument("--sizes", nargs="+", metavar="TASK=N", help="task sizes, e.g. qa=120000 math=8000")
    parser.add_argument("--strategy", choices=[strategy.value for strategy in Strategy])
    parser.add_argument("--temperature", type=temperature, help="T: 1 is proportional, inf is equal")
    parser.add_argument("--rate-max", type=float, help="K: no task counts for more than this before the temperature")
    parser.add_argument("--max-examples", type=int, help="E: use at most so many examples of a task")
    parser.add_argument("--max-repeats", type=float, help="R: use each example at most so often")
    parser.add_argument("--weights", nargs="+", metavar="TASK=W", help="explicit rates (implies --strategy weights)")
    parser.add_argument("--on-cap", choices=[choice.value for choice in OnCap], help="when max-repeats binds")
    text = "take every task at its cap if the budget is out of reach"
    parser.add_argument("--allow-underfill", action="store_true", help=text)
    parser.add_argument("--budget", type=int, help="examples to draw")
    add_json(parser)


def add_validate(rows: Subparsers) -> None:
    text = "Every problem of data files or of a config, in one report."
    parser = command(rows, "validate", commands.run_validate, text, overrides=True)
    parser.add_argument("paths", nargs="+", help="data files or folders of them, here or at URLs; or one config")
    parser.add_argument("--limit", type=whole(), default=20, help="problems shown; all are counted")
    add_json(parser)


def add_preview(rows: Subparsers) -> None:
    text = "What a config will train on: mixture, lengths, masks."
    parser = command(rows, "preview", commands.run_preview, text, overrides=True)
    parser.add_argument("config")
    parser.add_argument("--html", type=local_path, help="write the same as one HTML page")
    parser.add_argument("--compare", help="several values side by side, e.g. temperature=1,2,4,inf")
    parser.add_argument("--task", help="show examples of this task only")
    parser.add_argument("--examples", type=whole(), default=2, help="examples shown per task")
    parser.add_argument("--id", help="show the example whose record has this id, or stands at this FILE:LINE")
    parser.add_argument("--index", type=whole(), metavar="N", help="show the example of record N of a task, from 0")
    parser.add_argument("--search", metavar="TEXT", help="show examples whose text holds this")
    add_json(parser)


def add_plan_memory(rows: Subparsers) -> None:
    text = "Memory of a training step on one device, and the most rows that fit."
    parser = command(rows, "plan-memory", commands.run_plan_memory, text, overrides=True)
    parser.add_argument("config")
    parser.add_argument("--device-gib", type=float, default=16.0, help="memory of a device (default: 16)")
    parser.add_argument(
        "--devices", type=whole(1, 2**24), help="devices of the job (default: those of the mesh, or those here)"
    )
    parser.add_argument("--platform", choices=["cpu", "gpu", "tpu"], help="kind of the devices (default: as here)")
    text = "compile the step for a TPU slice that need not be here, e.g. v5p:4x4x4 or v6e:4x4 (extra tpu): its memory, "
    text += "its collective operations, an estimate of its speed, and rows and rematerialisation that fit"
    parser.add_argument("--compile", metavar="SLICE", help=text)
    add_json(parser)


def add_evaluate(rows: Subparsers) -> None:
    text = "Validation loss and exact match by task, of a run or a model folder."
    parser = command(rows, "evaluate", commands.run_evaluate, text, overrides=True)
    parser.add_argument("config", nargs="?", help="tasks and settings (default: those of --run-dir)")
    parser.add_argument("--model", type=run_place, help="model folder (default: the config's)")
    parser.add_argument("--run-dir", type=run_place, help="evaluate the exported model of this run")
    text = "measure these tasks of lm-eval too (extra lm-eval); with --model and no config, only them"
    parser.add_argument("--lm-eval", nargs="+", default=[], metavar="TASK", help=text)
    parser.add_argument("--lm-eval-include", metavar="FOLDER", help="folder of your own lm-eval task files")
    add_job(parser)
    add_json(parser)


def add_generate(rows: Subparsers) -> None:
    text = "Answer prompts with a run's model; without --prompt, chat."
    parser = command(rows, "generate", commands.run_generate, text)
    parser.add_argument("model", type=run_place, help="run folder or Hugging Face folder")
    parser.add_argument("--prompt", action="append", help="a user message (may be given several times)")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--max-new-tokens", type=whole(1, 2**20), default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=whole(1, 2**31 - 1))
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    add_job(parser)
    add_json(parser)


def add_sweep(rows: Subparsers) -> None:
    text = "Settings and seeds as paired, resumable runs: grids, lists, random designs, mixtures."
    parser = command(rows, "sweep", commands.run_sweep, text, overrides=True)
    arms.add_folder(parser, run_place)
    arms.add_settings(parser, local_path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    text = "what winners are chosen by and surfaces are fitted to"
    parser.add_argument("--measure", choices=["macro_loss", "macro_exact_match"], default="macro_loss", help=text)
    text = "print the seeds that a difference of D (nats, or points of exact match) needs, and run nothing"
    parser.add_argument("--power", type=float, metavar="D", help=text)
    add_json(parser)
    text = "order: one after the other, with the bits of runs alone; batched: adapters in one product with their base"
    parser.add_argument("--stack-mode", choices=["order", "batched"], default="order", help=text)
    text = "at each rung one setting in FACTOR goes on, with all that are within a standard error of the best"
    parser.add_argument("--halving", type=float, metavar="FACTOR", help=text)
    text = "where --halving compares settings, as shares of a run (default .25,.5)"
    parser.add_argument("--rungs", metavar="SHARE,...", help=text)
    text = "judge each rung at the end of a branch, so long in parts of the steps so far, on which the rate goes to 0"
    parser.add_argument("--rung-decay", type=float, metavar="SHARE", help=text)
    text = "join no job, whatever the environment says: take whole runs that no other process of the folder has claimed"
    parser.add_argument("--alone", action="store_true", help=text)
    add_job(parser)


def add_transfer(rows: Subparsers) -> None:
    text = "What training on one task changes on another: runs on tasks alone, in pairs or in subsets, with intervals."
    parser = command(rows, "transfer", commands.run_transfer, text, overrides=True)
    arms.add_transfer(parser, local_path)
    add_json(parser)


def add_conflict(rows: Subparsers) -> None:
    text = "Whether tasks pull a model the same way: cosines of their gradients and losses one step ahead."
    parser = command(rows, "conflict", commands.run_conflict, text, overrides=True)
    arms.add_conflict(parser, local_path)
    add_json(parser)


def add_recommend(rows: Subparsers) -> None:
    text = "The best setting of a sweep by a surface over its numeric options, with its region and its chances."
    parser = command(rows, "recommend", commands.run_recommend, text)
    parser.add_argument("sweep_dir", type=run_place)
    parser.add_argument("--measure", choices=["macro_loss", "macro_exact_match"], default="macro_loss")
    text = "of a sweep of mixtures: fit each task's loss to the shares of all, and give the best shares"
    parser.add_argument("--law", action="store_true", help=text)
    add_json(parser)


def add_proxy(rows: Subparsers) -> None:
    text = "Whether a small model orders the settings of a sweep as a large one does."
    parser = command(rows, "proxy", commands.run_proxy, text)
    arms.add_proxy(parser, local_path)
    add_json(parser)


def add_report(rows: Subparsers) -> None:
    text = "Write report.html of a run, or of several, or of a sweep folder."
    parser = command(rows, "report", commands.run_report, text)
    parser.add_argument("folders", nargs="+", type=run_place)
    parser.add_argument("--out", type=local_path, help="file to write (several runs)")
    add_json(parser)


def add_verify(rows: Subparsers) -> None:
    text = "Re-derive a finished run's plan and batches; with --replay, re-train steps and compare."
    parser = command(rows, "verify", commands.run_verify, text)
    parser.add_argument("run_dir", type=run_place)
    parser.add_argument("--config", help="config file (default: the one the run recorded)")
    text = "re-train up to N steps, up to a checkpoint where one is near enough"
    parser.add_argument("--replay", type=whole(), metavar="N", default=0, help=text)
    add_job(parser)
    add_json(parser)


def add_import(rows: Subparsers) -> None:
    text = "Check that a Hugging Face model folder can be tuned; says what is in it."
    parser = command(rows, "import-hf", commands.run_import, text)
    parser.add_argument("folder")
    add_json(parser)


def add_export(rows: Subparsers) -> None:
    text = "Write a checkpoint of a run as a Hugging Face model folder, or its adapter."
    parser = command(rows, "export-hf", commands.run_export, text)
    parser.add_argument("run_dir", type=run_place)
    parser.add_argument("out", type=local_path)
    parser.add_argument("--step", help="checkpoint step, `best` (default) or `latest`", default="best")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=None)
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapter alone, as a folder that PEFT loads")
    text = "upload the folder to the Hugging Face hub as this model, owner/model (extra hub)"
    parser.add_argument("--push", metavar="NAME", help=text)
    parser.add_argument("--private", action="store_true", help="a model that --push makes is private")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    add_job(parser)


COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    *(
        add_init,
        add_train,
        add_options,
        add_mix,
        add_validate,
        add_preview,
        add_plan_memory,
        add_evaluate,
        add_generate,
    ),
    *(add_sweep, add_transfer, add_conflict, add_recommend, add_proxy, add_report, add_verify, add_import, add_export),
)


def temperature(text: str) -> float:
    """`inf` and numbers above 0."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give e.g. 2 or inf") from None


if __name__ == "__main__":
    sys.exit(main())
