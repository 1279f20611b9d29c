"""SIGKILL at any moment, in runs, sweeps and jobs of two and four processes: the end must be that of no kill at all."""

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
from shared import Log, killing

MOMENTS = ("in a step", "in a step", "while saving", "at start", "at the end", "any time")
START, HEARTBEAT = 60, 10
"""Seconds within which the processes of a job must be there, and within which one must show that it lives."""
OTHERS_END = 90.0
"""Seconds within which the processes of a job end when one of them was killed."""
LOST_HOST = (76, 134, -signal.SIGABRT)
"""Exit codes of a process whose neighbour died."""
GRID = ("--grid", "optim.peak-lr=1e-2,3e-3", "--seeds", 0)


def campaign(folder: pathlib.Path, log: Log, seed: int) -> None:
    """Every kind until its number of kills is reached."""
    config = shared.prepare(folder)
    for kind, wanted, kills_of_one in (("run", 48, 8), ("sweep", 12, 6), ("stacked sweep", 12, 6)):
        repeat(folder, log, seed, kind, wanted, kills_of_one, config)
    for processes, wanted, kills_of_one in ((2, 18, 6), (4, 12, 6)):
        repeat(folder, log, seed, f"job of {processes}", wanted, kills_of_one, config)


def repeat(
    folder: pathlib.Path, log: Log, seed: int, kind: str, wanted: int, kills_of_one: int, config: pathlib.Path
) -> None:
    """Ends of one kind, each killed `kills_of_one` times on its way, until there are `wanted` kills."""
    for number in range(wanted // kills_of_one):
        case = f"{kind} {number + 1}"
        if not log.wants("kills", case):
            continue
        victim = Victim(folder, kind, config)
        expected = victim.never_killed()
        draw = random.Random(f"{seed} {case}")
        found, moments, trouble = victim.killed(number, kills_of_one, draw)
        different = sorted(
            {name for name in expected for name in shared.differences(expected[name], found.get(name, {}))}
        )
        right = not different and not trouble
        told = "every bit as without a kill" if right else f"different: {different}; {trouble}"
        log.add("kills", case, kind, right, f"{told} ({', '.join(moments)})", tried=len(moments))


class Victim:
    """A command that is killed and given again until it ends."""

    def __init__(self, folder: pathlib.Path, kind: str, config: pathlib.Path):
        self.folder, self.kind, self.config = folder, kind, config
        self.processes = int(kind.split()[-1]) if kind.startswith("job") else 1

    def never_killed(self) -> dict[str, Any]:
        """The ends of the runs of a command that was left alone."""
        known = self.folder / f"whole {self.kind}.json"
        if not known.exists():
            place = self.folder / f"whole {self.kind}"
            shutil.rmtree(place, ignore_errors=True)
            codes = [killing_code(child) for child in self.start(place)]
            assert codes == [0] * self.processes, (place.with_suffix(".log")).read_text()[-3000:]
            known.write_text(json.dumps(self.ends(place)))
        return json.loads(known.read_text())

    def killed(self, number: int, kills: int, draw: random.Random) -> tuple[dict[str, Any], list[str], list[str]]:
        """The ends of a command that was killed so often; the moments; what else went wrong."""
        place = self.folder / f"killed {self.kind} {number}"
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        moments: list[str] = []
        trouble: list[str] = []
        for _ in range(6 * kills):
            last = len(moments) >= kills
            children = self.start(place)
            codes: dict[int, int] = {}
            if not last:
                moment = draw.choice(MOMENTS)
                self.wait(place, moment, children, codes, draw)
            if not last and len(codes) < len(children):
                dead = self.kill([child for child in children if child not in codes], draw)
                moments.append(moment)
                trouble += [f"{moment}: {what}" for what in self.wait_for_others(children, codes, dead)]
            codes |= {child: killing_code(child) for child in children if child not in codes}
            if set(codes.values()) == {0}:
                if last:
                    break
                shutil.rmtree(place)  # it ended before its kills: the rest of them hit another one
        else:
            trouble.append(f"did not end: {place.with_suffix('.log').read_text()[-800:]}")
            return {}, moments, trouble
        ends = self.ends(place)
        trouble += [f"left behind: {path}" for path in place.rglob("*partial*")]
        shutil.rmtree(place)
        if trouble:
            shutil.copy(place.with_suffix(".log"), f"{place} trouble.log")
        return ends, moments, trouble

    def start(self, place: pathlib.Path) -> list[int]:
        """The processes of the command."""
        output = place.with_suffix(".log")
        if "sweep" in self.kind:
            stacked = ["--stacked"] if self.kind.startswith("stacked") else []
            command = ("sweep", self.config, "--sweep-dir", place, *GRID, *stacked)
            return [shared.start(shared.jaxtune(*shared.quick(*command)), output)]
        command = ("train", self.config, "--run-dir", place, "--restartable")
        if self.processes == 1:
            return [shared.start(shared.jaxtune(*shared.quick(*command)), output)]
        place_of = {"JAXTUNE_COORDINATOR": f"localhost:{free_port()}", "JAXTUNE_PROCESSES": str(self.processes)}
        command += ("--mesh.devices", self.processes, "--batch.micro-rows", 4)
        command += ("--heartbeat-seconds", HEARTBEAT, "--start-seconds", START)
        job = shared.jaxtune(*shared.quick(*command))
        return [shared.start(job, output, {**place_of, "JAXTUNE_PROCESS": str(i)}) for i in range(self.processes)]

    def run_dirs(self, place: pathlib.Path) -> list[pathlib.Path]:
        """Run folders of the command."""
        return sorted(place.glob("runs/*/")) if "sweep" in self.kind else [place]

    def ends(self, place: pathlib.Path) -> dict[str, Any]:
        """Run folder -> what must be equal at its end; of a sweep, its table as well."""
        found = {
            path.name if path != place else "run": shared.end_of(self.config, path) for path in self.run_dirs(place)
        }
        if "sweep" in self.kind:
            rows = [line.rsplit(",", 1)[0] for line in (place / "results.csv").read_text().splitlines()]
            found["results.csv"] = {"rows without their seconds": rows}
        return found

    def wait(
        self, place: pathlib.Path, moment: str, children: Sequence[int], codes: dict[int, int], draw: random.Random
    ) -> None:
        """Return at the moment, or when a process has ended by itself."""
        step = lambda: max((killing.last_step(path) for path in self.run_dirs(place)), default=0)
        begun, grown, until = step(), draw.randint(1, 6), time.monotonic() + draw.uniform(0, 8)
        reached: dict[str, Callable[[], bool]] = {
            "in a step": lambda: step() >= begun + grown,
            "while saving": lambda: any(killing.saving(path) for path in self.run_dirs(place)),
            "at the end": lambda: any(any(path.glob(".model.partial-*")) for path in self.run_dirs(place)),
            "at start": lambda: True,
            "any time": lambda: time.monotonic() > until,
        }
        while not reached[moment]() and not ended(children, codes):
            time.sleep(0.0005)
        until = time.monotonic() + {"at start": draw.uniform(0, 2.0), "any time": 0.0}.get(
            moment, draw.uniform(0, 0.05)
        )
        while time.monotonic() < until and not ended(children, codes):
            time.sleep(0.0005)

    def kill(self, running: list[int], draw: random.Random) -> list[int]:
        """Kill one process, or all of them at once."""
        chosen = running if draw.random() < 0.25 else [draw.choice(running)]
        for child in chosen:
            os.kill(child, signal.SIGKILL)
        return chosen

    def wait_for_others(self, children: Sequence[int], codes: dict[int, int], dead: list[int]) -> list[str]:
        """The rest of a job must end by itself; returns what it did instead."""
        until = time.monotonic() + OTHERS_END
        while len(codes) < len(children) and time.monotonic() < until:
            ended(children, codes)
            time.sleep(0.01)
        slow = [child for child in children if child not in codes]
        for child in slow:
            os.kill(child, shared.STACKS)  # the log says where it waits
            time.sleep(1.0)
            os.kill(child, signal.SIGKILL)
        trouble = [f"{len(slow)} processes still there {OTHERS_END:.0f} s after a kill"] if slow else []
        wrong = sorted({code for child, code in codes.items() if child not in dead and code not in (*LOST_HOST, 0)})
        return trouble + ([f"others ended with {wrong}"] if wrong else [])


def ended(children: Sequence[int], codes: dict[int, int]) -> bool:
    """Whether any process has ended; its exit code is noted."""
    for child in children:
        if child not in codes and (code := killing.ended(child)) is not None:
            codes[child] = code
    return bool(codes)


def killing_code(child: int) -> int:
    """Exit code of a process, when it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
