"""Tokenising by all processes of a job, each its share of the parts, which they hand one another through a bucket.

Process 0 says what is missing, and joins the parts; its store goes to the bucket, from where the others bring it. No
lock is held while processes wait for one another, as another job on the same hosts may hold it and wait in its turn.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from jaxtune.data.encoding import Encoding
from jaxtune.data.jobs import Job, encode_parts
from jaxtune.data.sharing import META, send
from jaxtune.data.store import DamagedStore, Part
from jaxtune.errors import UserError
from jaxtune.parallel.gathering import lines_of_all
from jaxtune.parallel.job import answer_of_main, is_alone
from jaxtune.storage.stores import Store
from jaxtune.tasks import Task


def tokenize_together(
    tasks: Iterable[Task], split: str, encoding: Encoding, folder: Path, shared: Store, *,
    processes: int | None = 1, show_progress: bool = True,
) -> None:  # fmt: skip
    """Make the stores that neither process 0 nor the bucket has, and put them into the bucket.

    All processes of a job must call it; a process alone does nothing. Each works in its own `folder`. Raises UserError
    on all of them where one finds records that cannot be used, or has other data.
    """
    if is_alone():
        return
    jobs = [Job(task, split, encoding, folder) for task in tasks]
    wanted = answer_of_main(lambda: missing_everywhere(jobs, shared))
    mine = [job for job in jobs if job.store.name in wanted]
    every = [(k, number) for k, job in enumerate(mine) for number in range(job.num_parts)]
    share = every[jax.process_index() :: jax.process_count()]
    refused = None
    try:
        if len(mine) < len(wanted):
            raise UserError("this process has other data, or another tokenizer or version, than process 0")
        todo = [(k, number) for k, number in share if not has_part(mine[k], number, shared)]
        encode_parts(mine, todo, processes, show_progress)
        shared.put({part_name(mine[k], number): mine[k].part(number) for k, number in share})
    except UserError as error:
        refused = error
    failed = lines_of_all([] if refused is None else [str(jax.process_index())])  # and all have sent what they did
    if refused is not None:
        raise refused
    if failed:
        raise UserError(
            f"process {', '.join(failed)} of this job could not tokenise its share; its own message says why"
        )
    answer_of_main(lambda: join(mine, shared))


def missing_everywhere(jobs: Sequence[Job], shared: Store) -> list[str]:
    """Names of the stores that are neither here nor in the bucket; those that are here alone are sent."""
    missing = []
    for job in jobs:
        if shared.version(posixpath.join(job.store.name, META)) is not None:
            continue
        if job.finished() is None:
            missing.append(job.store.name)
        else:
            send(shared, job.store)
    return missing


def part_name(job: Job, number: int) -> str:
    """Name of a part in the bucket."""
    return posixpath.join(job.parts.name, job.part(number).name)


def has_part(job: Job, number: int, shared: Store) -> bool:
    """Whether a part is done: here, or in the bucket, of which it is brought then; a damaged one is not."""
    file, name = job.part(number), part_name(job, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() and shared.version(name) is not None:
        aside = file.with_name(f"{file.name}.{os.getpid()}.incoming")
        shared.ask("get", shared.path(name), str(aside))
        os.replace(aside, file)
    try:
        Part.read(file)
    except DamagedStore:
        file.unlink(missing_ok=True)
        return False
    return True


def join(jobs: Sequence[Job], shared: Store) -> None:
    """Bring the parts that other processes did, make stores of all, and leave those in the bucket, and no parts."""
    for job in jobs:
        names = [part_name(job, number) for number in range(job.num_parts)]
        lost = [names[number] for number in range(job.num_parts) if not has_part(job, number, shared)]
        if lost:
            raise UserError(f"{shared.url} does not hold {lost[0]} whole, which another process put there; start again")
        job.merged()
        send(shared, job.store)
        for name in names:
            shared.ask("rm_file", shared.path(name))
