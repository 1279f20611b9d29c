"""Tokenised data sets, made once: keyed by all that decides them, by several processes, resumed after a kill."""

import ast
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import cloudpickle

from jaxtune.data.encoding import Encoding, encode_records
from jaxtune.data.sharing import bring, send
from jaxtune.data.store import FORMAT, DamagedStore, Part, TaskTokens, allow_open_stores, merge, open_store
from jaxtune.data.workers import end_with_parent
from jaxtune.errors import UserError, say
from jaxtune.storage.documents import made_folder
from jaxtune.storage.stores import Store
from jaxtune.tasks import Problem, ProblemLog, Task
from jaxtune.tasks.problems import Severity
from jaxtune.terminal.progress import ItemProgress

PART = 1024
"""Records in one part: what a kill can lose, and what one job of a process does."""
PARTS_EACH = 8
"""Fewest parts for which a further process is worth its start, where nobody says how many: a few seconds of work."""
_LOCKS = 32
_PACKAGE = Path(__file__).parent.parent
_LIBRARIES = (
    "tokenizers",
    "sentencepiece",
    "jinja2",
    "numpy",
    "orjson",
    "pyarrow",
    "array-record",
    "tensorflow-datasets",
)


def tokenize(
    tasks: Sequence[Task],
    split: str,
    encoding: Encoding,
    folder: Path | str,
    *,
    processes: int | None = 1,
    show_progress: bool = True,
    shared: Store | None = None,
) -> dict[str, TaskTokens]:
    """The tokenised split of every task; from `folder`, where it is there already and whole.

    What is missing there is brought from `shared`, a folder in a bucket, and what is made is sent to it, for other
    hosts and for this one on another disk. Raises `StoreError` where that cannot be reached. `processes` of None are
    those of `automatic_processes`, each with `PARTS_EACH` parts at least.

    The examples of a task are the records that pass the length policy in every wording. Raises UserError, with the
    first problems of all tasks and the number of all, when records cannot be used; and for a task with no usable
    example.
    """
    folder = Path(folder)
    allow_open_stores(2 * len(tasks))  # a training and a validation split
    out: dict[str, TaskTokens] = {}
    jobs = [Job(task, split, encoding, folder) for task in tasks]
    with _locked(folder, [job.store.name for job in jobs]):
        missing = []
        for job in jobs:
            found = job.finished()
            if found is None and shared is not None and bring(shared, job.store):
                found = job.finished()
            if found is None:
                missing.append(job)
            else:
                out[job.task.name] = found
        if missing:
            _run(missing, processes, show_progress)
            for job in missing:
                out[job.task.name] = job.merged()
                if shared is not None:
                    send(shared, job.store)
    for task in tasks:
        if not len(out[task.name]):
            outcomes = ", ".join(f"{count} {reason}" for reason, count in out[task.name].outcomes.items())
            raise UserError(
                f"task {task.name!r} has no usable example in {split!r}: {outcomes or 'no records'}. Check its files, "
                f"raise --data.seq-len ({encoding.max_length}), or cut long examples with --data.length-policy"
            )
    return {task.name: out[task.name] for task in tasks}


@functools.cache
def code_fingerprint() -> str:
    """sha256 over what decides tokens besides data and settings: the source of this module and of all modules of the
    package that it imports, directly or not, and the versions of the libraries that read, render and tokenise."""
    digest = hashlib.sha256()
    for file in sorted(_imported(Path(__file__))):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\0".encode())
    return digest.hexdigest()


def _imported(file: Path) -> set[Path]:
    """A source file of the package and the ones that it imports, directly or not."""
    found, todo = {file}, [file]
    while todo:
        for node in ast.walk(ast.parse(todo.pop().read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(_PACKAGE.name):
                continue
            base = _PACKAGE.joinpath(*str(node.module).split(".")[1:])
            names = (base, *(base / alias.name for alias in node.names))
            new = {path for name in names for path in (name.with_suffix(".py"), name / "__init__.py") if path.is_file()}
            new -= {_PACKAGE / "__init__.py"}  # the front names everything, for type checkers
            todo += new - found
            found |= new
    return found


class Job:
    """Tokenising of one split of one task: its store and the parts that are done."""

    def __init__(self, task: Task, split: str, encoding: Encoding, folder: Path):
        self.task, self.split, self.encoding, self.size = task, split, encoding, PART
        self.facts = {
            "data": task.fingerprint(split),
            "templates": task.num_templates,
            "part": self.size,
            "code": code_fingerprint(),
            "format": FORMAT,
            **encoding.facts(),
        }
        key = hashlib.sha256(json.dumps([task.name, self.facts], sort_keys=True).encode()).hexdigest()
        self.store = folder / f"{_slug(task.name)}-{split}-{key[:32]}"
        self.parts = self.store.with_name(self.store.name + ".parts")

    @property
    def num_records(self) -> int:
        return len(self.task.source(self.split))

    @property
    def num_parts(self) -> int:
        return -(-self.num_records // self.size)

    def records_of(self, number: int) -> range:
        """The records of one part."""
        return range(number * self.size, min((number + 1) * self.size, self.num_records))

    def part(self, number: int) -> Path:
        return self.parts / f"{number:06d}.npz"

    def finished(self) -> TaskTokens | None:
        """The store if it is there and whole; a damaged one is removed, to be made again."""
        if not self.store.exists():
            return None
        try:
            return open_store(self.store, self.facts)
        except DamagedStore as damage:
            say(f"token cache damaged, making it again: {damage}", file=sys.stderr, flush=True)
            shutil.rmtree(self.store)
            return None

    def missing_parts(self) -> list[int]:
        """Parts still to do; a damaged one is removed."""
        missing = []
        for number in range(self.num_parts):
            try:
                Part.read(self.part(number))
            except DamagedStore:
                self.part(number).unlink(missing_ok=True)
                missing.append(number)
        return missing

    def encode(self, number: int) -> tuple[int, list[Problem]]:
        """Do one part; returns how many records it has and the errors in them. With errors it is not kept."""
        records = self.records_of(number)
        part, problems = encode_records(self.task, self.split, records, self.encoding)
        errors = [problem for problem in problems if problem.severity is Severity.ERROR]
        if not errors:
            part.write(self.part(number), self.encoding.token_limit)
        return len(records), errors

    def merged(self) -> TaskTokens:
        """The finished store, made from the parts."""
        self.task.source(self.split).check_unchanged()
        parts = [self.part(number) for number in range(self.num_parts)]
        merge(parts, self.store, task=self.task.name, split=self.split, facts=self.facts)
        shutil.rmtree(self.parts, ignore_errors=True)
        return TaskTokens(self.store)


def _slug(name: str) -> str:
    """A task's name for people who look into the folder; stores are told apart by their keys."""
    return name.replace("/", "_")[:60]


def _run(jobs: Sequence[Job], processes: int | None, show_progress: bool) -> None:
    """Tokenise all missing parts of some jobs."""
    todo = []
    for k, job in enumerate(jobs):
        job.parts.mkdir(parents=True, exist_ok=True)
        todo += [(k, number) for number in job.missing_parts()]
    encode_parts(jobs, todo, processes, show_progress)


def encode_parts(
    jobs: Sequence[Job], todo: Sequence[tuple[int, int]], processes: int | None, show_progress: bool
) -> None:
    """Do parts, given as (number of the job, number of the part); raises one UserError for all errors."""
    total = sum(len(jobs[k].records_of(number)) for k, number in todo)
    log = ProblemLog()
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(ItemProgress("tokenise", total, unit="records")) if show_progress else None
        for count, found in _results(jobs, todo, processes):
            log.add(found)
            if display is not None:
                display.advance(count)
    log.raise_if_any()


def _results(
    jobs: Sequence[Job], todo: Sequence[tuple[int, int]], processes: int | None
) -> Iterator[tuple[int, list[Problem]]]:
    """Results of the parts as they are done."""
    if processes is None:
        processes = max(1, min(automatic_processes(), len(todo) // PARTS_EACH))
    if processes == 1 or len(todo) < 2:
        for k, number in todo:
            yield jobs[k].encode(number)
        return
    payload = _pickled(jobs)
    context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads and locks half-way
    workers = min(processes, len(todo))
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(payload, list(sys.path))
    )
    with pool:
        try:
            futures = [pool.submit(_work, k, number) for k, number in todo]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process that tokenised ended before its time (data.processes={processes}). Where memory is short, "
                "the system ends processes: take fewer. A script that calls jaxtune keeps its own work under "
                'if __name__ == "__main__": because each process reads the script first. What is tokenised so far stays'
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def automatic_processes() -> int:
    """The cores that this process may use, where it is the command line's or nobody's script; else one.

    A new process reads the file of the program that started it, and a script may do its work all over again there.
    """
    main = sys.modules["__main__"]
    named = getattr(getattr(main, "__spec__", None), "name", None) or Path(getattr(main, "__file__", _PACKAGE)).name
    return len(os.sched_getaffinity(0)) if named.split(".")[0] == _PACKAGE.name else 1


_jobs: Sequence[Job] = ()
"""In a worker process: the jobs."""


def _start_worker(payload: bytes, path: list[str]) -> None:
    global _jobs
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process; read when the first batch is encoded
    sys.path[:] = path
    _jobs = cloudpickle.loads(payload)


def _work(k: int, number: int) -> tuple[int, list[Problem]]:
    return _jobs[k].encode(number)


def _pickled(jobs: Sequence[Job]) -> bytes:
    """The jobs for another process. Functions of modules that it could not import (a config file's) go by value."""
    modules = [
        module for name, module in list(sys.modules.items()) if "." not in name and not _importable(name, module)
    ]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(list(jobs))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _importable(name: str, module: ModuleType) -> bool:
    """Whether a new process finds the module by its name (`__main__` goes by value in any case)."""
    if name == "__main__" or getattr(module, "__file__", None) is None:
        return True
    return any(finder.find_spec(name, None) is not None for finder in sys.meta_path)


@contextlib.contextmanager
def _locked(folder: Path, stores: Sequence[str]) -> Iterator[None]:
    """Only one run at a time makes a store; others wait, and then find it.

    Stores share a few lock files, so that thousands of tasks need few open files; all runs take them in one order.
    """
    made_folder(folder)
    numbers = sorted({int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS for name in stores})
    with contextlib.ExitStack() as stack:
        for number in numbers:
            file = stack.enter_context(open(folder / f"lock-{number:02d}", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
