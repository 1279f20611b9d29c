"""The list of long tests, `long.txt`, and the pytest option that measures it again.

A test is long when its own set-up or call, with the shared fixtures it asks for, takes a second of processor time.
Functions are listed by file and name; `make test` leaves them out, `make test-long` and `.ci/run` run them.

    python -m pytest -n 2 --dist loadgroup --long-from 1 -m "not slow and not parity and not bits"

measures all of them and writes the list again. Without `-m`, which leaves the long ones out, they stay on the list and
others may join it.
"""

import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import pytest

LIST = pathlib.Path(__file__).parent / "long.txt"
OWN, SHARED = "own seconds", "seconds of shared fixture "


def name_of(nodeid: str) -> str:
    """A test's file and function, without its parameters."""
    return nodeid.split("[")[0].removeprefix("tests/")


def listed(path: pathlib.Path = LIST) -> frozenset[str]:
    """Names of the long tests."""
    return frozenset(line for line in path.read_text().splitlines() if line)


def mark(items: Iterable[pytest.Item], names: frozenset[str]) -> None:
    """Mark as `long` the items whose function is listed."""
    for item in items:
        if name_of(item.nodeid) in names:
            item.add_marker(pytest.mark.long)


def cpu_seconds() -> float:
    """Processor time of this process and of the children it waited for: the same on a busy machine."""
    return sum(os.times()[:4])


class Durations:
    """Processor seconds of tests: a plugin of the workers, which measure, and of the process that writes the list."""

    def __init__(self, least: float, path: pathlib.Path = LIST) -> None:
        self.least, self.path = least, path
        self.shared: dict[tuple[str, str], float] = {}  # in a worker: seconds by name and place of a fixture
        self.made = 0.0  # of these, in the present phase
        self.phase: dict[str, float] = {}
        self.own: defaultdict[str, float] = defaultdict(float)
        self.places: defaultdict[str, set[str]] = defaultdict(set)
        self.fixtures: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[None]:
        begun = cpu_seconds()
        result = yield
        if fixturedef.scope != "function":
            key, taken = (fixturedef.argname, fixturedef.baseid), cpu_seconds() - begun
            self.shared[key] = max(taken, self.shared.get(key, 0.0))
            self.made += taken
        return result

    def timed(self, phase: str) -> Iterator[None]:
        begun, self.made = cpu_seconds(), 0.0
        result = yield
        self.phase[phase] = max(0.0, cpu_seconds() - begun - self.made)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        return (yield from self.timed("setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        return (yield from self.timed("call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        report = yield
        report.user_properties.append((OWN, self.phase.pop(call.when, 0.0)))
        for (name, place), seconds in self.shared.items() if call.when == "setup" else ():
            if name in getattr(item, "fixturenames", ()) and item.nodeid.startswith(place):
                report.user_properties.append((f"{SHARED}{place}::{name}", seconds))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = name_of(report.nodeid)
        for kind, value in report.user_properties:
            if kind == OWN and isinstance(value, float):
                self.own[name] = max(self.own[name], value)
            elif kind.startswith(SHARED) and isinstance(value, float):
                place = kind.removeprefix(SHARED)
                self.places[name].add(place)
                self.fixtures[place] = max(value, self.fixtures.get(place, 0.0))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            new = renewed(listed(self.path), self.seconds(), self.least)
            self.path.write_text("".join(f"{name}\n" for name in sorted(new)))

    def seconds(self) -> dict[str, float]:
        """Seconds of each function that ran."""
        return {name: own + sum(self.fixtures[place] for place in self.places[name]) for name, own in self.own.items()}


def renewed(before: frozenset[str], seconds: Mapping[str, float], least: float) -> frozenset[str]:
    """The list after a measurement: what was not measured stays, what was is long from `least` seconds on."""
    return frozenset(before - seconds.keys()) | {name for name, taken in seconds.items() if taken >= least}
