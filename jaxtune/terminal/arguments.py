"""Parsers of paths and whole numbers on the command line; every path has one of the two."""

import argparse
import pathlib
import re
from collections.abc import Callable

from jaxtune.errors import UserError
from jaxtune.storage.stores import is_url


def local_path(text: str) -> pathlib.Path:
    """The parser of every path on the command line. A URL is refused: as a path it would name a local folder `gs:`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a URL; a local path is needed here. Folders of runs and sweeps may lie in a "
            "bucket (--run-dir gs://bucket/runs/x of jaxtune train), and data and models that a config names"
        )
    return pathlib.Path(text)


def run_place(text: str) -> pathlib.Path | str:
    """The parser of folders of runs and sweeps, which may lie in a bucket: a URL as text without a slash at its end."""
    if not is_url(text):
        return local_path(text)  # which refuses `gs:/bucket`
    from jaxtune.runs.remote import RemoteFolder

    try:
        return RemoteFolder(text, pathlib.Path()).url  # refuses what no installed package reaches
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_job(parser: argparse.ArgumentParser) -> None:
    """Options with which a command becomes one process of a job, where the environment does not say so."""
    parser.add_argument("--coordinator", help="host:port of process 0, to join a job of several processes")
    parser.add_argument("--processes", type=int, help="processes in the job")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    text = "silence after which a process of the job counts as dead"
    parser.add_argument("--heartbeat-seconds", type=int, default=30, help=text)
    text = "time within which all processes of the job must be there"
    parser.add_argument("--start-seconds", type=int, default=300, help=text)


def whole(low: int = 0, high: int = 2**63 - 1) -> Callable[[str], int]:
    """The parser of a whole number from `low` to `high`, both allowed."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # no digits, or more than Python converts
            number = None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number in [{low}, {high}]")
        return number

    return parse
