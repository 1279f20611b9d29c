"""Faults of resources: full and read-only disks, limits, closed streams. The run must be there afterwards."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import shared
from shared import Log, Said

EXIT_STORAGE = 74


def campaign(folder: pathlib.Path, log: Log, seed: int) -> None:
    """Every fault once; those that need a file system of their own need the right to mount one."""
    config = shared.prepare(folder / "project")
    faults = Faults(folder, config)
    for name, fault in faults.all().items():
        if log.wants("resources", name):
            right, said = fault()
            log.add("resources", name, name.partition(":")[0], right, said)


class Faults:
    """The faults, and what each must leave behind."""

    def __init__(self, folder: pathlib.Path, config: pathlib.Path):
        self.folder, self.config, self.output = folder, config, folder / "said.log"

    def all(self) -> dict[str, Callable[[], tuple[bool, str]]]:
        """Name -> the fault."""
        return {
            "disk full: 60 kB left for the run": lambda: self.full(60, "run"),
            "disk full: 400 kB left for the run": lambda: self.full(400, "run"),
            "disk full: 1000 kB left for the run": lambda: self.full(1000, "run"),
            "disk full: 20 kB left for the cache": lambda: self.full(20, "cache"),
            "limit: files of 20 kB": self.file_size,
            "read-only: the run's folder": lambda: self.mounted("run", "ro"),
            "read-only: the cache": lambda: self.mounted("cache", "ro"),
            "limit: 64 open files": self.open_files,
            "streams: stderr closed": lambda: self.closed(2),
            "streams: stdout is a full device": self.full_device,
            "streams: the reader of a pipe leaves": self.broken_pipe,
            "signals: SIGHUP of a closed terminal": lambda: self.signalled(signal.SIGHUP),
        }

    # Faults

    def full(self, kilobytes: int, what: str) -> tuple[bool, str]:
        """A run on a device that fills up; with room again it must go on to the end of a run without a fault."""
        with self.device(2000) as device:
            run_dir, cache = (device / "run", None) if what == "run" else (self.folder / f"full {kilobytes}", device)
            filler = device / "filler"
            filler.write_bytes(bytes(max(0, shutil.disk_usage(device).free - 1024 * kilobytes)))
            said = self.train(run_dir, cache)
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=64m", device], check=True)
            again = self.train(run_dir, cache)
            different = self.compare(run_dir)
            shutil.rmtree(run_dir, ignore_errors=True)
        told = said.code == EXIT_STORAGE and not said.crashed and "no space is left" in said.text
        return told and again.code == 0 and not different, f"{said.in_short()}; then exit {again.code}, {different}"

    def mounted(self, what: str, option: str) -> tuple[bool, str]:
        """A folder that cannot be written."""
        with self.device(64000) as device:
            (device / "run").mkdir()
            subprocess.run(["mount", "-o", f"remount,{option}", device], check=True)
            run_dir = device / "run" if what == "run" else self.folder / "read-only"
            said = self.train(run_dir, device if what == "cache" else None)
        told = said.code in (1, EXIT_STORAGE) and not said.crashed and "read-only" in said.text
        return told, said.in_short()

    def file_size(self) -> tuple[bool, str]:
        """Files may not grow."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run_dir = self.folder / "file size"
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        said = self.train(run_dir, None, before=limit)
        again = self.train(run_dir, None)
        different = self.compare(run_dir)
        told = said.code == EXIT_STORAGE and not said.crashed
        return told and again.code == 0 and not different, f"{said.in_short()}; then exit {again.code}, {different}"

    def open_files(self) -> tuple[bool, str]:
        """Too few open files: refused before anything is done."""
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        said = self.train(self.folder / "open files", None, before=limit)
        return not said.crashed and said.code in (1, EXIT_STORAGE) and "open files" in said.text, said.in_short()

    def closed(self, stream: int) -> tuple[bool, str]:
        """A run whose terminal is gone goes on."""
        run_dir = self.folder / "closed"
        said = self.train(run_dir, None, before=lambda: os.close(stream))
        return said.code == 0 and not self.compare(run_dir), said.in_short()

    def full_device(self) -> tuple[bool, str]:
        """stdout on a device that is full: the run is saved."""
        run_dir = self.folder / "full device"
        said = self.train(run_dir, None, before=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
        return said.code == 0 and not self.compare(run_dir), said.in_short()

    def broken_pipe(self) -> tuple[bool, str]:
        """Nobody reads what a run prints."""

        def nobody_reads() -> None:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)

        run_dir = self.folder / "broken pipe"
        said = self.train(run_dir, None, before=nobody_reads)
        return said.code == 0 and not self.compare(run_dir), said.in_short()

    def signalled(self, number: signal.Signals) -> tuple[bool, str]:
        """Ended by a signal in the middle, a run goes on as if nothing had happened."""
        run_dir = self.folder / "signalled"
        shutil.rmtree(run_dir, ignore_errors=True)
        child = shared.start(self.command(run_dir, None), self.output)
        code = None
        while shared.killing.last_step(run_dir) < 9 and code is None:
            code = shared.killing.ended(child)
        assert code is None, self.output.read_text()
        os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        again = self.train(run_dir, None)
        different = self.compare(run_dir)
        return again.code == 0 and not different, f"exit {code}; then exit {again.code}, {different}"

    # What they share

    def command(self, run_dir: pathlib.Path, cache: pathlib.Path | None) -> Callable[[], int]:
        """The run, which goes on where it can."""
        options = () if cache is None else ("--data.cache-dir", cache)
        return shared.jaxtune(*shared.quick("train", self.config, "--run-dir", run_dir, "--restartable", *options))

    def train(
        self, run_dir: pathlib.Path, cache: pathlib.Path | None, *, before: Callable[[], object] | None = None
    ) -> Said:
        """The run to its end, however that looks."""
        return shared.run(self.command(run_dir, cache), self.output, seconds=300, before=before)

    def compare(self, run_dir: pathlib.Path) -> list[str]:
        """What differs from the run without a fault."""
        whole = self.folder / "whole"
        if not (whole / "seal.json").exists():
            shutil.rmtree(whole, ignore_errors=True)
            said = self.train(whole, None)
            assert said.code == 0, said.text
        if not (run_dir / "summary.json").exists():
            return ["it has not ended"]
        return shared.differences(shared.end_of(self.config, whole), shared.end_of(self.config, run_dir))

    @contextlib.contextmanager
    def device(self, kilobytes: int) -> Iterator[pathlib.Path]:
        """A small file system in memory."""
        place = self.folder / "device"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", place], check=True)
