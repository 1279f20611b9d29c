"""Every reader of a run or sweep folder, fed with files that were cut, edited or made up: success or a `UserError`."""

import contextlib
import copy
import json
import pathlib
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_runs import write_toy_run, write_toy_sweep

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.reports.comparison import compare_table, write_comparison
from jaxtune.reports.run import write_report
from jaxtune.reports.sweep import write_sweep_report
from jaxtune.runs import folder as runfolder
from jaxtune.runs import seal
from jaxtune.runs.documents import read_manifest
from jaxtune.runs.history import read_run
from jaxtune.runs.sweeps import read_sweep, sweep_table
from jaxtune.storage.documents import UnreadableDocument, write_json, write_sealed
from jaxtune.sweep.request import seconds_per_step
from jaxtune.train.run import finished_before, is_finished

FILES = ("config", "environment", "manifest", "mixture", "samples", "generations", "summary", "command", "metrics")
STRANGE: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, 1e30, -1e30, "", "x", "inf", "\x1b[2J", [], [1], ["a"], [[]], [None], {}, {"a": 1},
    {"a": None}, {"step": 1}, {"": {}}, {"a": ["b"]}, {"before": {"qa": [{}]}},
]  # fmt: skip
"""Values that none of the files has where it is put."""


class Good:
    """The text of every file of a sound folder, with a short name for hypothesis to print."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __repr__(self) -> str:
        return "<sound folder>"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Good:
    """A finished run over three tasks; one of them is no trained one."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    sizes = {"qa": 420, "math": 28, "code": 90}
    write_toy_run(folder, steps=12, sizes=sizes, trained=("qa", "math"), questions=8)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    answer = {"id": "qa-test-0", "prompt": "a", "prediction": "b", "reference": "c", "correct": False}
    rows.append(json.dumps({"kind": "answers", "step": 6, "answers": {"qa": [answer]}}))
    rows.append(json.dumps({"kind": "spike", "step": 12, "loss": 3.0, "examples": ["qa:1"]}))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    changes = [{"after_step": 3, "date": "2026-01-01", "options": {"optim.peak_lr": {"then": 1e-3, "now": 2e-3}}}]
    write_json(folder / "manifest.json", {"changes": changes, "config": {"seed": 0}})
    write_json(folder / "command.json", {"config": "config.py", "overrides": ["--seed", "1"], "folder": "/tmp"})
    return Good(folder)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where every value inside a JSON value stands; of lists, the first two items."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def edited(value: Any, place: tuple, new: Any) -> Any:
    """The JSON value with another value at a place, or without what stands there (`new` is `...`)."""
    if not place:
        return None if new is ... else new
    value = copy.deepcopy(value)
    inside = value
    for key in place[:-1]:
        inside = inside[key]
    if new is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = new
    return value


def read_all(folder: pathlib.Path) -> int:
    """Every reader of a run folder, all of them in any case; returns how many refused it."""
    other = folder.parent / "other"
    readers = (
        lambda: write_report(folder), lambda: read_run(folder), lambda: is_finished(folder),
        lambda: is_finished(folder) and finished_before(folder), lambda: runfolder.first_numbers(folder),
        lambda: runfolder.read_command(folder), lambda: runfolder.read_working_folder(folder),
        lambda: read_manifest(folder),
        lambda: compare_table([read_run(folder), read_run(other)]),
        lambda: write_comparison([folder, other], folder.parent / "page.html"),
        lambda: write_comparison([other, folder], folder.parent / "page.html"),
    )  # fmt: skip
    refused = 0
    for reader in readers:
        try:
            reader()
        except UserError as error:
            assert str(folder) in str(error)
            refused += 1
    return refused


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_a_run_folder_with_an_edited_file_is_read_or_refused(name, data, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(run.folder, folder / "run")
    (folder / "other").symlink_to(run.folder)
    lines = name == "metrics"
    path = folder / "run" / (f"{name}.jsonl" if lines else f"{name}.json")
    values = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    place = data.draw(st.sampled_from([place for place in places(values) if not lines or place]), label="place")
    new = data.draw(st.sampled_from([..., *STRANGE]), label="new value")
    changed = edited(values, place, new)
    path.write_text("".join(json.dumps(row) + "\n" for row in changed) if lines else json.dumps(changed))
    read_all(folder / "run")
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
@given(kind=st.sampled_from(["cut", "noise", "flip", "deep", "empty"]), where=st.integers(0, 1 << 14))
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
def test_a_run_folder_with_a_damaged_file_is_read_or_refused(name, kind, where, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(run.folder, folder / "run")
    (folder / "other").symlink_to(run.folder)
    path = folder / "run" / (f"{name}.jsonl" if name == "metrics" else f"{name}.json")
    content = path.read_bytes()
    where %= len(content)
    damaged = {
        "cut": content[:where],
        "noise": content[:where] + b"\xff\x00" + content[where + 2 :],
        "flip": content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :],
        "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "empty": b"",
    }
    path.write_bytes(damaged[kind])
    read_all(folder / "run")
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("generations", {"before": {"qa": [{"id": "a"}]}}),
        ("generations", {"before": {"qa": [{"id": [1], "prediction": "x", "correct": True}]}}),
        ("samples", {"qa": [{"tokens": ["a", "b"], "weights": [1]}]}),
        ("samples", {"qa": [{"tokens": ["a"], "weights": [None]}]}),
        ("summary", {"status": "finished", "best": {"step": "3", "metric": "loss"}}),
        ("summary", {"status": "finished", "after": {"task_loss": [1]}}),
        ("summary", {}),
        ("mixture", {"tasks": [{"size": 3}]}),
        ("mixture", {"tasks": [{"task": "qa", "size": "many"}]}),
        ("environment", {"devices": ["cpu"]}),
        ("manifest", {"changes": [{"after_step": 1}]}),
        ("command", {"config": "a.py", "overrides": "--seed"}),
    ],
)
def test_documents_of_another_shape_are_refused_with_their_place(name, value, run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "other").symlink_to(run.folder)
    assert read_all(tmp_path / "run") == 1  # the manifest of a toy run is not sealed
    write_json(tmp_path / "run" / f"{name}.json", value)
    assert read_all(tmp_path / "run") > (0 if name == "manifest" else 1)


def test_a_sealed_manifest_of_another_shape_is_refused(tmp_path):
    write_sealed(tmp_path / "manifest.json", {"config": {}, "plan": 5})
    with pytest.raises(UnreadableDocument, match="manifest.json: the whole is an object; an object with the key 'base"):
        read_manifest(tmp_path)


def test_the_seal_of_a_run_lists_files_and_nothing_else(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    seal.write_seal(tmp_path / "run")
    assert not seal.differences(tmp_path / "run").problems
    for files in ({"config.json": 5}, {"config.json": {"bytes": 1}}, [], {"config.json": {"bytes": "1", "sha256": ""}}):
        write_sealed(tmp_path / "run" / seal.SEAL, {"format": 1, "files": files})
        with pytest.raises(UserError, match="seal.json"):
            seal.differences(tmp_path / "run")
        write_report(tmp_path / "run")  # it draws, and says that the seal is damaged
        assert "seal.json" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Good:
    """A finished sweep of four runs."""
    folder = tmp_path_factory.mktemp("sound sweep") / "sweep"
    return Good(write_toy_sweep(folder, temperatures=("1", "2"), rates=("1e-3",), steps=12))


def read_sweep_folder(folder: pathlib.Path) -> None:
    readers = (
        lambda: sweep_table(read_sweep(folder)), lambda: write_sweep_report(read_sweep(folder)),
        lambda: seconds_per_step(folder),
    )  # fmt: skip
    for reader in readers:
        with contextlib.suppress(UserError):
            reader()
    assert cli.main(["recommend", str(folder), "--json"]) in (0, 1)


@given(data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_a_sweep_with_an_edited_record_or_summary_is_read_or_refused(data, sweep, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("edited") / "sweep"
    shutil.copytree(sweep.folder, folder)
    name = data.draw(
        st.sampled_from(["sweep.json", *(str(p.relative_to(folder)) for p in folder.rglob("summary.json"))])
    )
    value = json.loads((folder / name).read_text())
    place = data.draw(st.sampled_from(places(value)), label="place")
    new = data.draw(st.sampled_from([..., *STRANGE]), label="new value")
    (folder / name).write_text(json.dumps(edited(value, place, new)))
    read_sweep_folder(folder)
    capsys.readouterr()
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("where", ["../other", "/etc", "runs/../../x"])
def test_the_runs_of_a_sweep_lie_in_its_folder(where, sweep, tmp_path):
    shutil.copytree(sweep.folder, tmp_path / "sweep")
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    record["runs"][0]["dir"] = where
    write_json(tmp_path / "sweep" / "sweep.json", record)
    with pytest.raises(UserError, match="lies outside the sweep"):
        read_sweep(tmp_path / "sweep")
