"""Options of the commands that run several arms, as arguments of their parsers."""

import argparse
import pathlib
from collections.abc import Callable

from jaxtune.terminal.arguments import whole

PathParser = Callable[[str], pathlib.Path | str]
"""Reads a path, or a URL as a text, from the command line."""


def add_folder(parser: argparse.ArgumentParser, path: PathParser) -> None:
    """Options of every command that trains several runs: config, folder, dry run, stacking."""
    parser.add_argument("config")
    parser.add_argument("--sweep-dir", required=True, type=path)
    text = "print the runs, the programs they share, their steps and an estimate of time, and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true")
    text = "train runs of one shape together, as one program; side by side on the devices of --mesh.trial"
    parser.add_argument("--stacked", action="store_true", help=text)
    text = "at most N runs together (each has its own optimizer state)"
    parser.add_argument("--stack-size", type=whole(1), metavar="N", help=text)


def add_settings(parser: argparse.ArgumentParser, path: PathParser) -> None:
    """The forms in which the settings of a sweep are written."""
    text = 'e.g. mixture.temperature=1,2,4,inf "mixture.weights=qa 1 math 1,qa 1 math 0"; a value may be several words'
    parser.add_argument("--grid", nargs="+", default=[], metavar="OPTION=V1,V2", help=text)
    parser.add_argument("--zip", action="store_true", help="pair the values of the grid instead of crossing them")
    text = 'a JSONL file of settings: {"overrides": {"optim.peak-lr": "1e-3"}, "tag": "slow"}'
    parser.add_argument("--arms", type=path, metavar="FILE", help=text)
    text = "N settings spread evenly over --space by scrambled Sobol points"
    parser.add_argument("--random", type=whole(1, 10**6), metavar="N", help=text)
    text = "e.g. optim.peak-lr=log:1e-4:1e-2 mixture.temperature=inv:1:inf batch.rows=choice:8:16"
    parser.add_argument("--space", nargs="+", default=[], metavar="OPTION=LAW:LOW:HIGH", help=text)
    text = "N mixtures drawn from a Dirichlet law around the tasks' natural shares"
    parser.add_argument("--mixtures", type=whole(0, 10**6), metavar="N", help=text)
    text = "how closely --mixtures keep to the natural shares (default 1: as widely as a flat law)"
    parser.add_argument("--concentration", type=float, default=1.0, metavar="A", help=text)
    text = "seed of the designs of --random and --mixtures"
    parser.add_argument("--design-seed", type=whole(), default=0, metavar="S", help=text)
    text = "each cluster of tasks left out once; `curve`: also beside 1, 2, ... of the other clusters"
    parser.add_argument("--leave-out", choices=["clusters", "curve"], help=text)
    text = "the folder's winner and the config's own setting on N fresh seeds"
    parser.add_argument("--confirm", type=whole(1, 10**6), metavar="N", help=text)
    text = "N more settings where the fitted surface promises the most"
    parser.add_argument("--refine", type=whole(1, 10**6), metavar="N", help=text)


def add_transfer(parser: argparse.ArgumentParser, path: PathParser) -> None:
    """The options of `jaxtune transfer`."""
    add_folder(parser, path)
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="two or more tasks of the config")
    text = "every pair; random subsets (for many tasks); or each task alone against the neutral one"
    parser.add_argument("--design", choices=["pairs", "subsets", "single"], default="pairs", help=text)
    text = "other tasks on top of the same examples, or in place of some of them at the same total; both may be given"
    parser.add_argument("--mode", nargs="+", choices=["added", "replaced"], default=["added"], help=text)
    text = "the neutral task, which teaches the form of a chat only (default: `format`, if the config has it)"
    parser.add_argument("--baseline", metavar="TASK", help=text)
    text = "training examples of a task alone (default: the config's budget in equal parts)"
    parser.add_argument("--examples", type=whole(1), metavar="N", help=text)
    parser.add_argument(
        "--subsets", type=whole(1, 10**6), metavar="N", help="sets of --design subsets (default: three a task)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])


def add_conflict(parser: argparse.ArgumentParser, path: PathParser) -> None:
    """The options of `jaxtune conflict`."""
    parser.add_argument("place", metavar="CONFIG|RUN", help="a config, for its base model; or a run folder")
    parser.add_argument(
        "--batches", type=whole(1, 10**6), default=16, metavar="N", help="batches of each task (default: 16)"
    )
    parser.add_argument(
        "--tokens", type=whole(1, 2**24), default=1024, metavar="N", help="slots of a batch (default: 1024)"
    )
    text = "a finished sweep of `jaxtune transfer`: does the cheap number rank pairs as the dear one does?"
    parser.add_argument("--transfer", type=path, metavar="SWEEP", help=text)
    parser.add_argument("--out", type=path, metavar="FILE", help="write the numbers as JSON")


def add_proxy(parser: argparse.ArgumentParser, path: PathParser) -> None:
    """The options of `jaxtune proxy`."""
    parser.add_argument("small", type=path, help="sweep folder of the small model")
    parser.add_argument("large", type=path, help="sweep folder of the large one, over the same settings")
    parser.add_argument("--measure", choices=["macro_loss", "macro_exact_match"], default="macro_loss")
