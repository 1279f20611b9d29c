"""The seal of a run folder: every damage to every kind of file is told; a new report and other tools' files are not."""

import collections
import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
import toy_runs

from jaxtune import cli, verify
from jaxtune.errors import UserError
from jaxtune.reports.comparison import write_comparison
from jaxtune.reports.run import write_report
from jaxtune.runs import folder as runfolder
from jaxtune.runs import seal
from jaxtune.runs.sweeps import read_sweep
from jaxtune.runs.tracker import JsonlTracker
from jaxtune.storage.documents import write_json


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_rows(path: pathlib.Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) if len(lines) > 3 else b"")


def duplicate_row(path: pathlib.Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines]))


def edit_digit(path: pathlib.Path) -> None:
    content = path.read_bytes()
    where = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    i = where[len(where) // 2] if where else 0
    path.write_bytes(content[:i] + (b"4" if content[i : i + 1] == b"3" else b"3") + content[i + 1 :])


DAMAGES: list[Callable[[pathlib.Path], object]] = [
    flip, truncate, cut_rows, duplicate_row, edit_digit, pathlib.Path.unlink, lambda path: path.write_bytes(b"")
]  # fmt: skip


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> pathlib.Path:
    run_dir = toy_runs.write_toy_run(tmp_path_factory.mktemp("sealed") / "run", steps=12)
    (run_dir / "model").mkdir()
    (run_dir / "model" / "config.json").write_text('{"hidden_size": 8}')
    (run_dir / "model" / "model.safetensors").write_bytes(bytes(range(256)))
    (run_dir / "checkpoints" / "00000012" / "params").mkdir(parents=True)
    for name in ("checkpoint.json", "_CHECKPOINT_METADATA", "params/array"):
        (run_dir / "checkpoints" / "00000012" / name).write_text('{"content": 123}')
    write_report(run_dir)
    seal.write_seal(run_dir)
    return run_dir


@pytest.fixture
def run_dir(sealed, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(sealed, tmp_path / "run"))


def test_every_damage_to_every_file_is_told(sealed):
    names = json.loads((sealed / seal.SEAL).read_text())["files"]
    kinds = collections.Counter(pathlib.Path(name).suffix for name in names)
    assert {".json", ".jsonl", ".html", ".safetensors", ""} == set(kinds) and len(names) >= 10
    assert verify.check_files(sealed).ok
    for name in [*names, seal.SEAL]:
        whole = (sealed / name).read_bytes()
        for damage in DAMAGES:
            damage(sealed / name)
            if not (sealed / name).exists() or (sealed / name).read_bytes() != whole:
                found = verify.check_files(sealed)
                assert not found.ok, (name, damage)
                assert any(name in line for line in found.lines), (name, found.lines)
            (sealed / name).write_bytes(whole)
    assert verify.check_files(sealed).ok


def test_checkpoints_bind_their_own_arrays_and_the_seal_the_rest_of_them(run_dir):
    step = run_dir / "checkpoints" / "00000012"
    flip(step / "params" / "array")
    assert verify.check_files(run_dir).ok
    flip(step / "_CHECKPOINT_METADATA")
    assert not verify.check_files(run_dir).ok


def test_a_report_made_again_is_bound_again_and_nothing_else_is(run_dir):
    (run_dir / "report.html").write_text("edited")
    assert not verify.check_files(run_dir).ok
    write_report(run_dir)
    assert verify.check_files(run_dir).ok
    edit_digit(run_dir / "summary.json")
    write_report(run_dir)
    assert verify.check_files(run_dir).lines[0].startswith("summary.json: ")
    assert "Changed after the run" in (run_dir / "report.html").read_text()


def test_the_command_says_when_a_report_draws_what_was_edited(run_dir, capsys):
    assert cli.main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().err == ""
    edit_digit(run_dir / "metrics.jsonl")
    assert cli.main(["report", str(run_dir)]) == 0
    assert "not as it was when the run ended: metrics.jsonl: " in capsys.readouterr().err


def test_a_link_in_the_place_of_the_model_is_not_the_model(run_dir, tmp_path):
    (run_dir / "model").rename(tmp_path / "elsewhere")
    (run_dir / "model").symlink_to(tmp_path / "elsewhere")
    assert runfolder.resolve_model_folder(run_dir) == run_dir / "model"  # the same files
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    for path in (run_dir, run_dir / "model"):
        with pytest.raises(UserError, match="model/config.json: "):
            runfolder.resolve_model_folder(path)


def test_a_run_that_lost_its_seal_is_not_taken_for_one_without(run_dir, capsys):
    (run_dir / seal.SEAL).unlink()
    assert verify.check_files(run_dir).lines == ("seal.json is missing, though the run has ended",)
    assert cli.main(["report", str(run_dir)]) == 0
    assert "not as it was when the run ended: seal.json: missing" in capsys.readouterr().err
    assert "seal.json: missing" in (run_dir / "report.html").read_text()
    for path in (run_dir, run_dir / "model"):
        with pytest.raises(UserError, match="has lost its seal.json"):
            runfolder.resolve_model_folder(path)
    (run_dir / "summary.json").unlink()
    assert runfolder.resolve_model_folder(run_dir) == run_dir / "model"


def test_other_tools_and_notes_are_no_damage(run_dir):
    (run_dir / "tensorboard").mkdir()
    for name in ("tensorboard/events", "mlflow.db", "wandb_run_id", ".writer"):
        (run_dir / name).write_text("x")
    assert seal.differences(run_dir) == seal.Differences()
    (run_dir / "notes.txt").write_text("mine")
    found = verify.check_files(run_dir)
    assert found.ok and "notes.txt came after the end of the run" in found.lines


def test_a_changed_model_is_not_used(run_dir):
    model = run_dir / "model"
    assert runfolder.resolve_model_folder(run_dir) == model
    for damage in (flip, truncate, pathlib.Path.unlink):
        whole = (model / "model.safetensors").read_bytes()
        damage(model / "model.safetensors")
        for path in (run_dir, model):
            with pytest.raises(UserError, match=r"is not the one that the run wrote:\n  - model/model\.safetensors: "):
                runfolder.resolve_model_folder(path)
        (model / "model.safetensors").write_bytes(whole)
    (model / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="not part of the exported model"):
        runfolder.resolve_model_folder(run_dir)


def test_a_run_that_goes_on_has_no_seal_and_an_ended_one_without_is_told(run_dir):
    (run_dir / seal.SEAL).unlink()
    assert not verify.check_files(run_dir).ok
    seal.write_seal(run_dir)
    runfolder.reopen(run_dir)
    assert verify.check_files(run_dir) == verify.Check(
        name="files", ok=True, lines=("the run has not ended; no file is bound",)
    )


def test_a_checkpoint_binds_the_rows_so_far_also_across_a_resume(tmp_path):
    log = JsonlTracker(tmp_path)
    for step in (1, 2, 3):
        log.log({"kind": "train", "step": step, "loss": 1 / step})
    first = log.state()
    log.log({"kind": "train", "step": 4, "loss": 0.1})
    log.close()
    resumed = JsonlTracker(tmp_path, resume_step=3)
    assert resumed.state() == first
    resumed.log({"kind": "train", "step": 4, "loss": 0.2})
    second = resumed.state()
    resumed.close()
    bound = [{"rows": state.rows, "sha256": state.sha256} for state in (first, second)]
    assert [seal.check_log(tmp_path, state) for state in bound] == [None, None]
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for damage in DAMAGES[:5]:
        damage(path)
        assert seal.check_log(tmp_path, bound[1]) is not None, damage
        path.write_bytes(whole)


@pytest.mark.parametrize("name", seal.READ)
@pytest.mark.parametrize("change", [flip, edit_digit, pathlib.Path.unlink])
def test_numbers_that_are_not_those_of_the_end_are_not_set_beside_others(tmp_path, name, change):
    sweep = toy_runs.write_toy_sweep(tmp_path / "sweep", temperatures=("1",), rates=("1e-3", "3e-3"), steps=6)
    one, other = sorted((sweep / "runs").iterdir())[:2]
    for run in (one, other):
        seal.write_seal(run)
    assert len(read_sweep(sweep).arms) == 4
    change(one / name)
    with pytest.raises(UserError, match=f"{one.name} is not as it was at the end of its run: {name} changed"):
        seal.read_unchanged(one)
    with pytest.raises(UserError, match="not as it was at the end"):
        write_comparison([other, one], tmp_path / "page.html")
    if name == "summary.json" and not (one / name).exists():
        assert one.name in read_sweep(sweep).unfinished
    else:
        with pytest.raises(UserError):
            read_sweep(sweep)


def test_a_changed_command_of_a_sealed_run_is_not_followed(tmp_path):
    write_json(tmp_path / "command.json", {"config": "/a/config.py", "overrides": []})
    assert runfolder.read_command(tmp_path) == ("/a/config.py", [])
    seal.write_seal(tmp_path)
    assert runfolder.read_command(tmp_path) == ("/a/config.py", [])
    write_json(tmp_path / "command.json", {"config": "/b/config.py", "overrides": []})
    with pytest.raises(UserError, match="command.json changed"):
        runfolder.read_command(tmp_path)
