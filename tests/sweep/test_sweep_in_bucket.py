"""Sweeps whose folder is in a bucket: hosts without a shared disk claim whole runs, and the results are there."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import shutil

import matplotlib.font_manager  # noqa: F401  (it makes folders of its own in the home when it is first imported)
import pytest
import toy_runs
from helpers import tiny_config, tiny_model
from writes import Writes

from jaxtune import cli
from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.runs.remote import RemoteFolder
from jaxtune.storage import lease, locks
from jaxtune.storage.lease import Lease, holder_of
from jaxtune.storage.locks import FolderInUse
from jaxtune.storage.stores import Store
from jaxtune.sweep import run as sweep
from jaxtune.sweep.halving import Halving
from jaxtune.sweep.language import crossed
from jaxtune.sweep.record import grow, share_rooms, trials_of, written_alone
from jaxtune.sweep.waiting import claimed_now, waiting_runs
from jaxtune.train.decisions import Status
from jaxtune.train.run import TrainResult

TRIALS = trials_of(crossed({"optim.peak_lr": ["1e-2", "1e-3"]}), [0])
NAMES = [trial.name for trial in TRIALS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    tiny_model(folder / "base")
    config = tiny_config(folder)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=None))


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path, monkeypatch):
    """A URL, on a host with an empty working folder and an empty cache."""
    (tmp_path / "host").mkdir()
    monkeypatch.chdir(tmp_path / "host")
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "host" / "cache"))
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    return f"{request.param}://{tmp_path.as_posix()}/bucket/sweeps/x"


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the runs that are trained from now on, by writing what a run writes."""
    names = []

    def train_together(runs, _):
        [run] = runs
        names.append(run.name)
        run.write_folder()
        toy_runs.write_toy_run(run.run_dir, steps=6, peak_lr=run.inputs.config.optim.peak_lr, questions=4)
        summary = json.loads((run.run_dir / "summary.json").read_text())
        return [TrainResult(status=Status.FINISHED, exit_code=0, run_dir=run.run_dir, summary=summary)]

    monkeypatch.setattr(sweep, "train_together", train_together)
    return names


def hold(url: str, name: str, **changes) -> Store:
    """The claim of a process of another host; nobody signs it."""
    store = Store(f"{url}/runs/{name}")
    with Lease(store):
        content = json.loads(store.read(locks.NAME) or b"{}") | {"machine": "another", **changes}
    store.write(locks.NAME, json.dumps(content).encode())
    return store


def test_a_sweep_leaves_all_in_the_bucket_and_an_empty_disk_goes_on_from_there(url, base, trained, capsys, tmp_path):
    writes = Writes()
    writes.open = True
    assert sweep.sweep(base, url, TRIALS[:1]) is Status.FINISHED
    writes.open = False
    store = Store(url)
    assert writes.seen and not writes.outside(tmp_path / "host" / "cache", tmp_path / "bucket")
    assert {"sweep.json", "results.csv", "report.html", f"runs/{NAMES[0]}/metrics.jsonl"} <= set(store.names())
    assert not [name for name in store.names() if name.endswith(locks.NAME)], "nobody claims what is finished"
    here = {path.relative_to(tmp_path / "host").parts[:2] for path in (tmp_path / "host").rglob("*")}
    assert {parts[0] for parts in here} == {"cache"}
    assert not [path for path in (tmp_path / "host" / "cache").rglob(NAMES[0]) if path.parent.name != "runs"]
    shutil.rmtree(tmp_path / "host" / "cache")
    assert sweep.sweep(base, url, TRIALS) is Status.FINISHED
    assert trained == NAMES and f"{NAMES[0]}: finished before" in capsys.readouterr().out
    rows = list(csv.DictReader((store.read("results.csv") or b"").decode().splitlines()))
    assert [row["name"] for row in rows] == NAMES
    assert (store.read("heatmap.png") or b"").startswith(b"\x89PNG")
    assert len(json.loads(store.read("sweep.json") or b"{}")["runs"]) == 2


def test_runs_that_others_train_come_last_and_those_of_dead_hosts_are_taken_over(
    url, base, trained, monkeypatch, capsys
):
    monkeypatch.setattr(lease, "STALE", 0.3)
    grow(RemoteFolder(url, pathlib.Path("cache"), mark="sweep.json"), configs.to_json(base), TRIALS, overwrite=False)
    hold(url, NAMES[0])
    assert sweep.sweep(base, url, TRIALS) is Status.FINISHED
    assert trained == [NAMES[1], NAMES[0]]
    assert "left out" not in capsys.readouterr().out


def test_a_run_of_a_living_host_is_left_to_it(url, base, trained, monkeypatch, capsys):
    monkeypatch.setattr(lease, "STALE", 10.0)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    place = RemoteFolder(url, pathlib.Path("other-cache"), mark="sweep.json")
    grow(place, configs.to_json(base), TRIALS, overwrite=False)
    with Lease(place.run(NAMES[0]).store):
        assert sweep.sweep(base, url, TRIALS) is Status.FINISHED
        with pytest.raises(FolderInUse, match=rf"runs/{NAMES[0]} is being written by process"):
            sweep.sweep(base, url, TRIALS, overwrite=True)
    assert trained == NAMES[1:]
    assert f"{NAMES[0]}: left out, {url}/runs/{NAMES[0]} is being written by process" in capsys.readouterr().out
    rows = list(csv.DictReader((Store(url).read("results.csv") or b"").decode().splitlines()))
    assert [row["name"] for row in rows] == NAMES[1:]


def test_a_run_that_another_host_has_finished_is_not_claimed(url, base, capsys):
    place = RemoteFolder(url, pathlib.Path("cache"), mark="sweep.json")
    grow(place, configs.to_json(base), TRIALS, overwrite=False)
    settings = [configs.override(base, trial.arguments()) for trial in TRIALS]
    waiting = waiting_runs(place, TRIALS, settings, lambda _: {})
    Store(f"{url}/runs/{NAMES[0]}").write("summary.json", b'{"status": "finished"}')
    with contextlib.ExitStack() as held:
        assert list(claimed_now(waiting, held)) == NAMES[1:]
        assert holder_of(Store(f"{url}/runs/{NAMES[1]}")) is not None
    assert f"{NAMES[0]}: another process has finished it" in capsys.readouterr().out


def test_hosts_that_add_runs_lose_none_and_see_what_the_others_wrote(url, tmp_path):
    """The record of a copy must not say that it holds what another host has sent since."""
    one, two = (RemoteFolder(url, tmp_path / name, mark="sweep.json") for name in ("one", "two"))
    grow(one, {"name": "toy"}, TRIALS[:1], overwrite=False)
    Store(f"{url}/runs/a").write("summary.json", b"1")
    with written_alone(one):
        Store(f"{url}/runs/a").write("summary.json", b"22")  # another host's run goes on meanwhile
        (one.folder / "results.csv").write_text("x")
    with written_alone(one):
        assert (one.folder / "runs" / "a" / "summary.json").read_bytes() == b"22"
    grow(two, {"name": "toy"}, TRIALS[1:], overwrite=False)
    assert share_rooms(two, {}) == {}
    with written_alone(one):
        assert [entry["name"] for entry in json.loads((one.folder / "sweep.json").read_text())["runs"]] == NAMES
    with pytest.raises(UserError, match=f"{url} holds a sweep of another config"):
        grow(two, {"name": "other"}, [], overwrite=False)
    grow(two, {"name": "other"}, TRIALS[:1], overwrite=True)
    assert set(Store(url).names()) == {"sweep.json"}


def test_folders_that_hold_no_sweep_and_what_needs_a_disk_are_refused(url, base, trained):
    store = Store(url)
    store.write("config.json", b"{}")
    with pytest.raises(UserError, match=rf"{url} holds files but no sweep \(no sweep.json\)"):
        sweep.sweep(base, url, TRIALS)
    with pytest.raises(UserError, match="give a local --sweep-dir, not"):
        sweep.sweep(base, url, TRIALS, halving=Halving(factor=2.0, rungs=(0.5,)))
    assert trained == [] and set(store.names()) == {"config.json"}


def test_a_sweep_in_a_bucket_is_read_by_the_commands_that_read_sweeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    folder = toy_runs.write_toy_sweep(tmp_path / "b", rates=("1e-3", "3e-3"), temperatures=("1", "2"), steps=6)
    url = f"file://{folder}"
    assert cli.main(["report", url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == f"{url}/report.html" and len(found["runs"]) == 8
    assert {"report.html", "heatmap.png"} <= {path.name for path in folder.iterdir()}
    assert str(tmp_path / "cache") not in (folder / "report.html").read_text()
    assert cli.main(["recommend", url, "--json"]) == 0
    assert (folder / "recommendation.json").is_file()
    capsys.readouterr()
    assert cli.main(["sweep", "config.py", "--sweep-dir", url, "--power", ".1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert cli.main(["report", f"{url}/none"]) == 1 and "nothing is there" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"b", "cache"}
