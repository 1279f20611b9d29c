"""Damaged files of runs, checkpoints, exported models, caches, inputs and sweeps: told or made again, never used."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import shared
from shared import Log, Said, killing

KINDS = ("flip", "flip", "cut", "zeros", "grow", "delete", "exchange")
GRID = ("--grid", "optim.peak-lr=1e-2,3e-3", "--seeds", 0)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A folder whose files are damaged, one at a time, and the command that must notice."""

    kind: str
    folder: pathlib.Path
    """Copied for each case."""
    files: Callable[[pathlib.Path], list[pathlib.Path]]
    cases: int
    judge: Callable[[pathlib.Path, pathlib.Path, pathlib.Path], tuple[bool, str]]
    """(copy of the folder, damaged file, file for output) -> right, and what was said."""


def campaign(folder: pathlib.Path, log: Log, seed: int) -> None:
    """Every subject, until its number of cases is reached."""
    config = shared.prepare(folder / "project")
    for subject in Subjects(folder, config).all():
        for number in range(subject.cases):
            case = f"{subject.kind} {number + 1}"
            if not log.wants("damages", case):
                continue
            draw = random.Random(f"{seed} {case}")
            copy = folder / "copy" / subject.folder.name
            shutil.rmtree(folder / "copy", ignore_errors=True)
            shutil.copytree(subject.folder, copy, symlinks=True)
            files = subject.files(copy)
            file = files[number % len(files)]  # every file before any a second time
            how = damage(file, draw.choice(KINDS), draw, files)
            right, said = subject.judge(copy, file, folder / "said.log")
            log.add("damages", case, subject.kind, right, f"{file.relative_to(copy)}, {how}: {said}")


def damage(file: pathlib.Path, kind: str, draw: random.Random, others: Sequence[pathlib.Path]) -> str:
    """Damage a file; returns how."""
    content = file.read_bytes()
    if kind == "delete":
        file.unlink()
        return "deleted"
    other = draw.choice(others).read_bytes()
    place = draw.randrange(max(1, len(content)))
    if kind == "exchange" and other != content:
        file.write_bytes(other)
        return "content of another file"
    if kind == "cut" and content:
        file.write_bytes(content[:place])
        return f"cut after {place} bytes"
    if kind == "zeros" and content[place : place + 64].strip(b"\0"):
        file.write_bytes(content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :])
        return f"zeros at {place}"
    if kind == "flip" and content:
        bit = draw.randrange(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        return f"bit {bit} of byte {place} flipped"
    file.write_bytes(content + b"x")
    return "grown by a byte"


class Subjects:
    """Sound folders, made once, and how each is read."""

    def __init__(self, folder: pathlib.Path, config: pathlib.Path):
        self.folder, self.config, self.project = folder, config, config.parent

    def all(self) -> list[Subject]:
        """Every kind of file."""
        finished, stopped, sweep = self.finished(), self.stopped(), self.sweep()
        top = lambda copy: [path for path in sorted(copy.rglob("*")) if is_own(path) and below(path, copy) == "top"]
        saved = lambda copy: [path for path in sorted(copy.rglob("*")) if is_own(path) and below(path, copy) == "saved"]
        model = lambda copy: sorted(path for path in (copy / "model").iterdir() if path.is_file())
        newest = lambda copy: [path for path in saved(copy) if path.relative_to(copy).parts[1] == latest(copy)]
        inputs = lambda copy: [*sorted((copy / "base").iterdir()), *sorted(copy.glob("*.jsonl"))]
        tokens = lambda copy: sorted(path for path in (copy / "cache").rglob("*") if path.name in ("data", "meta.json"))
        plain = lambda copy: sorted(path for path in (copy / "cache" / "decompressed").rglob("*") if path.is_file())
        return [
            Subject("run folder", finished, top, 45, self.by_verify),
            Subject("checkpoints, verified", finished, saved, 30, self.by_verify),
            Subject("exported model, verified", finished, model, 15, self.by_verify),
            Subject("exported model, used", finished, model, 20, self.by_use),
            Subject("checkpoints, resumed", stopped, newest, 25, self.by_resume),
            Subject("token cache", self.packed(), tokens, 25, self.by_planning),
            Subject("decompressed data", self.packed(), plain, 10, self.by_planning),
            Subject("model and data of a run", self.project_alone(), inputs, 20, self.by_verify_of_project),
            Subject("sweep folder", sweep, self.of_sweep, 20, self.by_sweep),
        ]

    def of_sweep(self, copy: pathlib.Path) -> list[pathlib.Path]:
        names = (
            "sweep.json",
            "results.csv",
            "summary.json",
            "config.json",
            "metrics.jsonl",
            "mixture.json",
            "seal.json",
        )
        return [path for name in names for path in sorted(copy.rglob(name))]

    # Sound folders

    def make(self, name: str, *arguments: object) -> pathlib.Path:
        """The folder that a command writes, made once."""
        place, making = self.folder / name, self.folder / f"making {name}"
        if not place.exists():
            shutil.rmtree(making, ignore_errors=True)
            said = shared.run(shared.jaxtune(*arguments, making), self.folder / "making.log", seconds=600)
            assert said.code == 0, said.text
            making.rename(place)
        return place

    def finished(self) -> pathlib.Path:
        return self.make("finished", *shared.quick("train", self.config), "--run-dir")

    def sweep(self) -> pathlib.Path:
        return self.make("sweep", *shared.quick("sweep", self.config), *GRID, "--sweep-dir")

    def stopped(self) -> pathlib.Path:
        """A run that was stopped by SIGTERM after its 13th step."""
        place = self.folder / "stopped"
        if not (place / "checkpoints").exists():
            shutil.rmtree(place, ignore_errors=True)
            command = shared.quick("train", self.config, "--run-dir", place)
            child = shared.start(shared.jaxtune(*command), self.folder / "making.log")
            code = None
            while killing.last_step(place) < 13 and code is None:
                code = killing.ended(child)
                time.sleep(0.001)
            assert code is None, (self.folder / "making.log").read_text()
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
        return place

    def packed(self) -> pathlib.Path:
        """A project whose data are compressed, with its caches."""
        import gzip

        from jaxtune.data.jobs import code_fingerprint

        place = self.folder / f"packed {code_fingerprint()[:12]}"  # other code looks for other stores
        if not (place / "identity.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(
                self.project, place, ignore=shutil.ignore_patterns("cache", "programs", "making", "answer*")
            )
            for file in place.glob("*.jsonl"):
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
            config = place / "config.py"
            config.write_text(config.read_text().replace(".jsonl", ".jsonl.gz"))
            (place / "identity.json").write_text(json.dumps(self.identity(place)))
        return place

    def project_alone(self) -> pathlib.Path:
        """A project with a finished run in it."""
        place = self.folder / "alone"
        if not (place / "run" / "seal.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(self.project, place, ignore=shutil.ignore_patterns("cache", "making", "answer*"))
            command = shared.quick("train", place / "config.py", "--run-dir", place / "run")
            said = shared.run(shared.jaxtune(*command), self.folder / "making.log", seconds=600)
            assert said.code == 0, said.text
        return place

    def identity(self, project: pathlib.Path) -> Any:
        """What a run of a project would be bound to: fingerprints of data, plan and batches."""
        return shared.in_child(lambda: planned(project / "config.py"), self.folder)

    # Readers

    def by_verify(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """`verify` names the file, and `report` draws or refuses."""
        said = shared.run(shared.jaxtune("verify", copy), output)
        drawn = shared.run(shared.jaxtune("report", copy, "--json"), output)
        noticed = said.refused and (file.name in said.text or file.parent.name in said.text)
        return noticed and not drawn.crashed, in_short(said, file) + (drawn.in_short() if drawn.crashed else "")

    def by_use(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """`generate` or `evaluate` refuses the model of the run."""
        command = ("generate", copy, "--prompt", "a") if len(file.name) % 2 else ("evaluate", "--run-dir", copy)
        said = shared.run(shared.jaxtune(*command), output)
        return said.refused, f"{command[0]}: {in_short(said, file)}"

    def by_resume(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """`train --resume` refuses and names a sound checkpoint, or the file says nothing about the state."""
        said = shared.run(shared.jaxtune(*shared.quick("train", self.config, "--run-dir", copy, "--resume")), output)
        if said.refused:
            return "--resume-step" in said.text, in_short(said, file)
        known = self.folder / "end of stopped.json"
        if not known.exists():
            whole = self.folder / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(self.folder / "stopped", whole)
            command = shared.quick("train", self.config, "--run-dir", whole, "--resume")
            assert shared.run(shared.jaxtune(*command), output).code == 0
            known.write_text(json.dumps(shared.end_of(self.config, whole)))
        different = shared.differences(json.loads(known.read_text()), shared.end_of(self.config, copy))
        return said.code == 0 and not different, f"resumed; different: {different}"

    def by_planning(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """What would be trained is the same as before, from a cache that is made again where it must be."""
        here = shared.run(lambda: dump(planned(copy / "config.py"), copy / "now.json"), output)
        if here.refused:
            return True, here.in_short()
        if here.code:
            return False, here.in_short()
        same = json.loads((copy / "now.json").read_text()) == json.loads((copy / "identity.json").read_text())
        noticed = "again" in here.text or file.suffix == ".jsonl"  # a copy that is gone is made without a word
        return same and noticed, f"{in_short(here, file)}; {'the same' if same else 'OTHER'} data and batches"

    def by_verify_of_project(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """`verify` with the damaged project says what changed, or why it cannot be read."""
        said = shared.run(shared.jaxtune("verify", copy / "run", "--config", copy / "config.py"), output)
        parts = [
            f"base_model {file.name}",
            f"tokenizer {file.name}",
            f"data {file.name.partition('-')[0]}",
            "template: ",
        ]
        named = any(part in said.text for part in parts) or ("error: " in said.text and file.name in said.text)
        return said.refused and named, in_short(said, file)

    def by_sweep(self, copy: pathlib.Path, file: pathlib.Path, output: pathlib.Path) -> tuple[bool, str]:
        """The sweep's command, given again, refuses or ends with the table that it had."""
        before = (self.folder / "sweep" / "results.csv").read_text()
        said = shared.run(shared.jaxtune(*shared.quick("sweep", self.config, *GRID, "--sweep-dir", copy)), output)
        if said.refused:
            return True, in_short(said, file)
        clockless = lambda text: [line.rsplit(",", 1)[0] for line in text.splitlines()]
        same = said.code == 0 and clockless((copy / "results.csv").read_text()) == clockless(before)
        return same, "the same table" if same else said.in_short()


def planned(config: pathlib.Path) -> dict[str, Any]:
    """Fingerprints of data, plan and batches of a config's run."""
    from jaxtune import config as configs
    from jaxtune.train import identity, resolution

    whole = identity.identify(resolution.resolve(configs.load(config), show_progress=False))
    return {part: whole[part] for part in ("plan", "batches", "blocks", "data")}


def dump(value: Any, path: pathlib.Path) -> int:
    path.write_text(json.dumps(value))
    return 0


def below(path: pathlib.Path, run_dir: pathlib.Path) -> str:
    """The part of a run folder that a file belongs to."""
    return {"checkpoints": "saved", "model": "model"}.get(path.relative_to(run_dir).parts[0], "top")


def is_own(path: pathlib.Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def latest(run_dir: pathlib.Path) -> str:
    """Name of the newest checkpoint."""
    return max(path.name for path in (run_dir / "checkpoints").glob("[0-9]" * 8))


def in_short(said: Said, file: pathlib.Path) -> str:
    """The line of the output that names the file, else the last ones."""
    lines = [line.strip() for line in said.text.splitlines() if file.name in line]
    return f"exit {said.code}: {lines[0][:300]}" if lines else said.in_short()
