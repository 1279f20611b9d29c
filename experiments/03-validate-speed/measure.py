"""CPU time of `jaxtune validate` on JSON lines of chats, beside that of parsing alone.

Run:  python experiments/03-validate-speed/measure.py FILE_OR_FOLDER... [--join 8] [--repeats 7]

`--join N` makes longer chats: N consecutive records of a file become one conversation of N exchanges. Each way of
reading takes its turn in every repeat, and the best of its turns counts, so that other work on the machine weighs on
all alike. CPU time of one process, single-threaded; the files are in the page cache.
"""

import argparse
import itertools
import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator

import orjson

from jaxtune.tasks import Shape, Task, from_jsonl
from jaxtune.validate.scan import Scanner
from jaxtune.validate.validation import validate_files


def data_files(paths: list[str]) -> Iterator[pathlib.Path]:
    for path in map(pathlib.Path, paths):
        yield from sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]


def joined(files: list[pathlib.Path], exchanges: int, folder: pathlib.Path) -> list[pathlib.Path]:
    """Copies of the files whose conversations are `exchanges` consecutive ones in one."""
    copies = []
    for k, file in enumerate(files):
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        groups = [records[i : i + exchanges] for i in range(0, len(records), exchanges)]
        copy = folder / f"{k}-{file.name}"
        with copy.open("w", encoding="utf-8") as out:
            for group in groups:
                turns = itertools.chain.from_iterable(record["messages"] for record in group)
                chat = {"id": group[0]["id"], "messages": [turn for turn in turns if turn["role"] != "system"]}
                out.write(json.dumps(chat, ensure_ascii=False) + "\n")
        copies.append(copy)
    return copies


def parse(files: list[pathlib.Path], loads: Callable[[bytes], object]) -> int:
    records = 0
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                loads(line)
                records += 1
    return records


def scan(files: list[pathlib.Path]) -> int:
    records = 0
    for file in files:
        source = from_jsonl(file)
        task = Task(name="measured", splits={"train": source}, shape=Shape.MESSAGES)
        records += sum(len(scanned.rows) for scanned in Scanner(task, Shape.MESSAGES).scan(source))
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--join", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = list(data_files(arguments.paths))
        if arguments.join > 1:
            files = joined(files, arguments.join, pathlib.Path(folder))
        size = sum(file.stat().st_size for file in files)
        ways: dict[str, Callable[[], int]] = {
            "json.loads": lambda: parse(files, json.loads),
            "orjson.loads": lambda: parse(files, orjson.loads),
            "scan (all checks of single records)": lambda: scan(files),
            "validate (scan, duplicates, report)": lambda: validate_files(files).records,
        }
        best = dict.fromkeys(ways, float("inf"))
        records = 0
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                start = time.process_time()
                records = way()
                best[name] = min(best[name], time.process_time() - start)
    print(f"{size / 1e6:.1f} MB, {records:,} records, {size / records:.0f} bytes a record")
    for name, seconds in best.items():
        rate = size / 1e6 / seconds
        print(f"{name:38s} {rate:7.1f} MB per CPU-second   {best['json.loads'] / seconds:5.2f} x json.loads")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
